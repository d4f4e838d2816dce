"""launch/train.py with the toy family registered: python tests/drive.py RECIPE [section.key=value ...]

TRACKERS_END_S: seconds that trackers have at the end of training, for tests that would not wait for as long as users do.
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the family)
from bigtrain.cli import run_cli
from bigtrain.training.monitoring import tracking
from launch.train import main

if __name__ == "__main__":
    tracking.TRAINED_S = float(os.environ.get("TRACKERS_END_S", tracking.TRAINED_S))
    run_cli(main)
