"""TF32 is used within the steps of a run that asks for it, on GPUs, and nowhere else."""

import contextlib
from pathlib import Path

import pytest
import torch

from bigtrain.training.engine import kernels
from bigtrain.training.engine.kernels import faster_precision, tf32
from bigtrain.training.trainer import Trainer
from launch.train import main as train
from tests.runs_of import FAMILIES, write_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def settings() -> tuple[str, bool]:
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


@pytest.fixture(autouse=True)
def as_commands_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_float32_matmul_precision("highest")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize(
    ("precision", "device", "within"),
    [
        ("tf32", GPU, ("high", True)),
        ("tf32", CPU, ("highest", False)),
        ("fp32", GPU, ("highest", False)),
        ("bf16", GPU, ("highest", False)),
    ],
)
def test_products_are_rounded_only_where_it_is_asked_for(
    precision: str, device: torch.device, within: tuple[str, bool]
) -> None:
    with contextlib.suppress(KeyError), tf32(precision, device):
        assert settings() == within
        raise KeyError
    assert settings() == ("highest", False)


def test_the_steps_of_a_run_are_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    update = Trainer._update

    def looked_at(self: Trainer, *arguments: object) -> torch.Tensor:
        seen.append(settings())
        return update(self, *arguments)  # type: ignore[arg-type]

    def pretended(precision: str, device: torch.device) -> object:
        return tf32(precision, GPU)

    monkeypatch.setattr(Trainer, "_update", looked_at)
    monkeypatch.setattr("bigtrain.training.trainer.tf32", pretended)
    train([str(write_recipe(tmp_path, FAMILIES["toy"], steps=2, precision="tf32"))])
    assert set(seen) == {("high", True)}
    assert settings() == ("highest", False)


def test_fp32_on_a_gpu_with_tensor_cores_is_told_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: kernels.TENSOR_CORES)
    assert "NVIDIA A100; a new run with train.precision=tf32" in str(faster_precision("fp32", GPU))
    assert faster_precision("tf32", GPU) is faster_precision("bf16", GPU) is faster_precision("fp32", CPU) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert faster_precision("fp32", GPU) is None
