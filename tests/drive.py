"""The train door with the toy family registered: python tests/drive.py [--float64] RECIPE [section.key=value ...] [-- ...]

What follows a `--` is another run, of another folder, in the same processes.

float64 is not a precision that a recipe can ask for: it is the tests' microscope for sums in another order. And zero3
shards every parameter here, though it would keep networks as small as the tests' whole on every rank.
"""

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tests.toy  # noqa: F401  (registers the family)
from bigtrain.cli import run_cli
from bigtrain.training.engine import zero
from launch.train import main

zero.PERSISTENT_ELEMENTS = 0


def runs(argv: Sequence[str]) -> None:
    for separator, arguments in groupby(argv, lambda word: word == "--"):
        if not separator:
            main(list(arguments))


if __name__ == "__main__":
    if "--float64" in sys.argv:
        sys.argv.remove("--float64")
        torch.set_default_dtype(torch.float64)
    run_cli(runs)
