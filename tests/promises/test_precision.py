"""bf16 is a way to compute, not to keep: weights, moments, averages and statistics stay float32."""

from pathlib import Path

import pytest
import torch

from tests.families_table import CASES
from tests.promises.comparing import differences
from tests.promises.matrix import BF16, FIRST_HALF
from tests.runs_of import final_tensors


@pytest.mark.needs(FIRST_HALF, BF16)
@pytest.mark.parametrize("family", CASES)
def test_bf16_touches_neither_weights_nor_averages_nor_statistics(family: str, runs: list[Path]) -> None:
    """And it changes the numbers, or it would not be on."""
    exact, rounded = runs
    kept = final_tensors(rounded / "run")
    assert {tensor.dtype for tensor in kept.values() if tensor.is_floating_point()} == {torch.float32}
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    assert (max(differences(exact, rounded).values()) > 0) == CASES[family].multiplies
