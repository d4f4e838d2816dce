"""Promises 2 and 3: stopping does not change the experiment; a checkpoint is whole or it is not there."""

from pathlib import Path

import pytest

from tests.families_table import CASES
from tests.promises.comparing import assert_same_bits
from tests.promises.matrix import DAMAGED, RESUMED, WHOLE

families = pytest.mark.parametrize("family", CASES)
toy_quickly = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] * (name != "toy")) for name in CASES]
)
"""No family has a part in finding the damage; and what it carries through a checkpoint, the test before shows of all."""


@pytest.mark.needs(WHOLE, RESUMED)
@families
def test_stopping_and_going_on_in_another_process_changes_no_bit(family: str, runs: list[Path]) -> None:
    """Stopped within a logging interval, and with workers for the data afterwards."""
    assert_same_bits(*runs)


@pytest.mark.needs(WHOLE, DAMAGED)
@toy_quickly
def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_it_is_used(family: str, runs: list[Path]) -> None:
    whole, damaged = runs
    newest = max((damaged / "run" / "checkpoints").glob("step_*"))
    file = min(newest.glob("*.weights.safetensors")).name
    assert f"{newest} is damaged ({file} is not what was written)" in (damaged / "stderr.0").read_text()
    assert_same_bits(whole, damaged)
