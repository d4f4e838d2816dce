"""launch/train.py with the toy family registered: python tests/drive.py RECIPE [section.key=value ...]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the family)
from bigtrain.cli import run_cli
from launch.train import main

if __name__ == "__main__":
    run_cli(main)
