"""Safetensors files that are written piece by piece."""

from pathlib import Path

import pytest
import safetensors.torch
import torch

from bigtrain import beats
from bigtrain.runs import tensor_file
from bigtrain.runs.tensor_file import write_tensors

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def tensors() -> dict[str, torch.Tensor]:
    """Every dtype and every shape that is special."""
    torch.manual_seed(0)
    made = {f"of {dtype}": (100 * torch.randn(3, 5)).to(dtype) for dtype in DTYPES}
    made["a number"] = torch.tensor(2.5)
    made["nothing"] = torch.empty(0, 4)
    made["transposed"] = torch.randn(3, 5).T
    return made


def test_a_file_is_the_one_that_the_library_writes(tmp_path: Path) -> None:
    written = tensors()
    write_tensors(tmp_path / "ours", written)
    read = safetensors.torch.load_file(tmp_path / "ours")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)
    safetensors.torch.save_file({name: each.contiguous() for name, each in written.items()}, tmp_path / "library")
    assert (tmp_path / "ours").stat().st_size == (tmp_path / "library").stat().st_size


def test_each_piece_is_a_sign_of_life_and_is_flushed_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "_PIECE", 100)
    monkeypatch.setattr(tensor_file, "_UNFLUSHED", 400)
    flushed_at: list[int] = []
    monkeypatch.setattr(tensor_file.os, "fsync", lambda file: flushed_at.append(beats.own().count - before))
    before = beats.own().count
    write_tensors(tmp_path / "file", {"large": torch.arange(250.0)})
    assert flushed_at == [4, 8, 10]
    assert torch.equal(safetensors.torch.load_file(tmp_path / "file")["large"], torch.arange(250.0))
