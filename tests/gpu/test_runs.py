"""Whole runs on a GPU: resumed, in processes of their own, under every strategy, on several GPUs."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from bigtrain.cluster import world
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, _NormaliseOverRanks
from bigtrain.training.engine.gradients import GradientSum
from tests.families_table import CASES
from tests.gpu.devices import CPU, GPU, NEEDS_GPU, on_devices, on_each_device
from tests.gpu.training import trainer_of
from tests.promises.comparing import assert_close, assert_same_bits
from tests.promises.matrix import STEADY_ADAM
from tests.runs_of import ROOT, command, environment, optimizers_of, train, unsharded, write_recipe

SAVED = {"steps": 6, "log_every": 2, "save_every": 3}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@on_devices(on_cpu=["toy"])
def test_a_deterministic_run_that_was_stopped_ends_with_the_same_bits(
    family: str, device: torch.device, precision: str, tmp_path: Path
) -> None:
    """Weights, moments, averages, codebooks and logged rows."""
    options, keys = CASES[family].options, SAVED | {"deterministic": True, "precision": precision}
    trainer_of(options, tmp_path / "whole", device, **keys).run()
    for stop in (3, 6):
        trainer_of(options, tmp_path / "parts", device, f"train.steps={stop}", **keys).run()
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


@on_devices(on_cpu=["gan"])
def test_the_command_trains_and_resumes(family: str, device: torch.device, tmp_path: Path) -> None:
    """As a user starts it: workers, bf16, pictures, and an evaluation of what it can evaluate cheaply."""
    recipe = write_recipe(tmp_path, CASES[family].options, **SAVED, precision="bf16")
    picture = [] if family == "code_prior" else ["train.sample_every=3"]
    overrides = ["data.workers=2", *picture, *CASES[family].drawing]
    for stop in (3, 6):
        start(device, recipe, f"train.steps={stop}", *overrides)
    assert (tmp_path / "run" / "checkpoints" / "step_00000006").is_dir()
    if picture:
        assert (tmp_path / "run" / "samples" / "step_00000006.png").is_file()


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3"])
@on_devices(on_cpu=["toy"])
def test_a_strategy_of_deepspeed_ends_as_ddp_does(
    family: str, device: torch.device, strategy: str, tmp_path: Path
) -> None:
    """On one rank, whose collectives go through NCCL where there is a GPU."""
    options = optimizers_of(unsharded(family), STEADY_ADAM)
    for name in ("ddp", strategy):
        recipe = write_recipe(tmp_path / name, options, **SAVED | {"deterministic": True})
        start(device, recipe, f"engine.strategy={name}")
    assert_close(tmp_path / "ddp", tmp_path / strategy, 1e-3)


@pytest.mark.parametrize(
    "device",
    [
        pytest.param(CPU, id="cpu", marks=pytest.mark.slow),
        pytest.param(
            GPU,
            id="gpu",
            marks=[*NEEDS_GPU, pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")],
        ),
    ],
)
def test_two_ranks_train_as_one(device: torch.device, tmp_path: Path) -> None:
    options = optimizers_of(CASES["toy"].options, STEADY_ADAM)
    for ranks in (1, 2):
        recipe = write_recipe(tmp_path / str(ranks), options, **SAVED | {"deterministic": True})
        start(device, recipe, ranks=ranks)
    assert_close(tmp_path / "1", tmp_path / "2", 1e-3)


def start(device: torch.device, recipe: Path, *overrides: str, ranks: int = 1) -> None:
    """Trains in processes of its own; on a GPU in such as nobody forked, as CUDA cannot be used after a fork."""
    if device.type == "cpu":
        train(recipe, *overrides, processes=ranks)
        return
    words = command(ROOT / "tests" / "drive.py", recipe, *overrides, processes=ranks)
    own = environment(ACCELERATE_USE_CPU="false")
    ended = subprocess.run(words, cwd=ROOT, env=own, capture_output=True, text=True, timeout=540)
    assert ended.returncode == 0, ended.stderr[-6000:]


# -- collectives of one rank ----------------------------------------------------------------------------------------------


@pytest.fixture
def group(device: torch.device) -> Iterator[None]:
    """A process group of this process alone: NCCL on a GPU."""
    world.ensure_group(device)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@on_each_device
def test_gradients_are_summed_in_buckets(device: torch.device) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).to(device)
    network.to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 8, 8, device=device)
    network(x).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in network.parameters()]
    gradients = GradientSum(list(network.parameters()), world=2)
    for _ in range(2):
        gradients.reset()
        gradients.arm()
        network(x).square().mean().backward()
        for summed, own in zip(gradients.wait(), expected, strict=True):
            torch.testing.assert_close(summed, own)
    assert gradients.waits.read() >= 0


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@on_each_device
def test_batch_norm_over_ranks_is_batch_norm(device: torch.device, dtype: torch.dtype) -> None:
    norm = SyncedBatchNorm(4).to(device)
    results = []
    for over_ranks in (True, False):
        x = torch.linspace(-1, 2, 2 * 4 * 3 * 3, device=device).view(2, 4, 3, 3).to(dtype).requires_grad_()
        norm.zero_grad()
        out = _NormaliseOverRanks.apply(x, norm.weight, norm.bias, norm.eps)[0] if over_ranks else norm(x)
        out.float().pow(3).sum().backward()
        results.append([out.float(), x.grad.float(), norm.weight.grad, norm.bias.grad])
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    for ours, its in zip(*results, strict=True):
        torch.testing.assert_close(ours, its, rtol=tolerance, atol=tolerance)


@pytest.mark.usefixtures("group")
@on_each_device
def test_sums_and_objects_cross_the_group(device: torch.device) -> None:
    total = torch.arange(3.0, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    assert total.tolist() == [0, 1, 2]
    box, gathered = [{"a": 1}], [None]
    dist.broadcast_object_list(box, src=0, device=world._object_device())
    dist.all_gather_object(gathered, "b")
    assert (box, gathered) == ([{"a": 1}], ["b"])
