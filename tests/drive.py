"""The train door with the toy family registered: python tests/drive.py [--float64] RECIPE [section.key=value ...]

float64 is not a precision that a recipe can ask for: it is the tests' microscope for sums in another order.
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tests.toy  # noqa: F401  (registers the family)
from bigtrain.doors import door
from launch.train import main

if __name__ == "__main__":
    if "--float64" in sys.argv:
        sys.argv.remove("--float64")
        torch.set_default_dtype(torch.float64)
    door(main)
