"""How the tests compare two runs by what lies in their folders."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs_of import final_tensors, logged, snapshots


def differences(one: Path, other: Path) -> dict[str, float]:
    """The largest difference of each tensor that two runs hold; both must hold the same ones."""
    ours, theirs = held(one / "run"), held(other / "run")
    assert shapes(ours) == shapes(theirs)
    return {name: _difference(ours[name], theirs[name]) for name in ours if ours[name].numel()}


def held(run: Path) -> dict[str, torch.Tensor]:
    """The tensors of a run's newest checkpoint, and of its snapshots of averages."""
    kept = snapshots(run)
    assert kept or "posthoc: null" in (run / "recipe.yaml").read_text(), "it was told to keep some"
    return final_tensors(run) | kept


def shapes(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    difference = float((one.double() - other.double()).abs().max())
    return difference if difference == difference else float("inf")


def assert_close(one: Path, other: Path, tolerance: float) -> None:
    """Weights, moments, averages and logged rows."""
    apart = {name: value for name, value in differences(one, other).items() if value > tolerance}
    assert not apart, sorted(apart.items(), key=lambda item: -item[1])[:10]
    rows, others = logged(one / "run"), logged(other / "run")
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    for row, its in zip(rows, others, strict=True):
        assert row == pytest.approx(its, rel=tolerance, abs=tolerance)


def assert_same_bits(whole: Path, parts: Path) -> None:
    """Of a run that went on after a stop, which may have logged the step of the stop too."""
    assert differences(whole, parts).keys() == differences(parts, whole).keys()
    ours, theirs = held(whole / "run"), held(parts / "run")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    rows = {row["step"]: row for row in logged(parts / "run")}
    assert all(rows[row["step"]] == row for row in logged(whole / "run"))


def pictures(folder: Path) -> dict[str, np.ndarray]:
    """What a run has drawn in training, by name, without the moving picture: levels of 0 to 255."""
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in (folder / "run" / "samples").glob("*.png")}
