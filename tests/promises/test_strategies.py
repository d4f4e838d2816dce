"""Promises 1 and 6 under every strategy: the same weights, moments and averages on two processes."""

from pathlib import Path

import pytest

from tests.families_table import CASES
from tests.promises.comparing import assert_close
from tests.promises.matrix import DDP, DDP_UNSHARDED, STEADY_ADAM, ZERO1, ZERO2, ZERO3
from tests.runs_of import logged

TOLERANCE = 1e-5
"""float32, and sums in another order."""
toy_quickly = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name != "toy")) for name in CASES]
)
"""The toy has all that a strategy must get right: penalties, batch statistics, power iteration, components that alternate."""


@pytest.mark.needs(DDP, ZERO1, ZERO2)
@toy_quickly
def test_sharded_moments_and_gradients_train_alike(family: str, runs: list[Path]) -> None:
    """Clipped, with accumulation, and with penalties on whole weights where the family has one."""
    ddp, zero1, zero2 = runs
    norms = [value for row in logged(ddp / "run") for name, value in row.items() if name.startswith("gradient_norm/")]
    # Those of so small a perceptron have small gradients.
    assert max(norms) > STEADY_ADAM["clip_norm"] or family == "mlp_gan", "some updates must be clipped"
    assert_close(zero1, ddp, TOLERANCE)
    assert_close(zero2, ddp, TOLERANCE)


@pytest.mark.needs(DDP_UNSHARDED, ZERO3)
@toy_quickly
def test_sharded_weights_train_alike(family: str, runs: list[Path]) -> None:
    ddp, zero3 = runs
    assert_close(zero3, ddp, TOLERANCE)
