"""Steps on a GPU: the numbers of the CPU, and a host that runs ahead."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import SpectralNorm
from tests.families_table import CASES
from tests.gpu.devices import CPU, no_waits, on_devices
from tests.gpu.training import begun, losses_by_step, losses_of, trainer_of
from tests.promises.matrix import STEADY_ADAM
from tests.runs_of import optimizers_of

WITH_CONVOLUTIONS = ("gan", "vqvae", "pixel_prior", "diffusion", "code_prior")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@on_devices(on_cpu=["toy"])
def test_no_step_makes_the_host_wait(family: str, device: torch.device, precision: str, tmp_path: Path) -> None:
    """Reading, draws, losses, updates, statistics and averages; also right after a row was logged."""
    trainer = trainer_of(CASES[family].options, tmp_path, device, steps=20, precision=precision)
    with begun(trainer):
        for _ in range(2):  # kernels are compiled and chosen, and tables are copied once
            trainer._take_step()
        losses_of(trainer)
        with no_waits(device):
            for _ in range(4):
                trainer._take_step()
        values = losses_of(trainer)
    assert all(torch.isfinite(torch.tensor(value)) for value in values.values()), values


@on_devices(on_cpu=["gan", "code_prior"])
def test_batches_are_pinned(family: str, device: torch.device, tmp_path: Path) -> None:
    """By the loader's thread where there are workers, and by the process itself."""
    for workers in (0, 1):
        trainer = trainer_of(CASES[family].options, tmp_path, device, f"data.workers={workers}", steps=2)
        with begun(trainer):
            batch = trainer.microbatches._next_batch()
            assert {tensor.is_pinned() for tensor in (*batch.values(), batch.flips)} == {device.type == "cuda"}


@on_devices(on_cpu=["toy"])
def test_losses_are_those_of_a_cpu(family: str, device: torch.device, tmp_path: Path) -> None:
    """But for the order of sums: noise, labels, times and batches are the same."""
    options = optimizers_of(CASES[family].options, STEADY_ADAM)
    rows, expected = (
        losses_by_step(trainer_of(options, tmp_path / kind.type, kind, steps=20, deterministic=True), 3)
        for kind in (device, CPU)
    )
    assert rows[0] == pytest.approx(expected[0], rel=2e-4, abs=2e-5)
    assert rows[2] == pytest.approx(expected[2], rel=2e-2, abs=2e-3)


@on_devices()
def test_bfloat16_changes_losses_a_little(family: str, device: torch.device, tmp_path: Path) -> None:
    rows, expected = (
        losses_by_step(trainer_of(CASES[family].options, tmp_path / kind, device, steps=20, precision=kind), 1)
        for kind in ("bf16", "fp32")
    )
    losses = {name: value for name, value in expected[0].items() if name.startswith("loss/")}
    assert {name: rows[0][name] for name in losses} == pytest.approx(losses, rel=0.1, abs=0.1)
    assert (rows[0] != expected[0]) == CASES[family].multiplies


@on_devices(WITH_CONVOLUTIONS)
def test_convolutions_read_channels_last(family: str, device: torch.device, tmp_path: Path) -> None:
    """Another layout would be copied at every convolution."""
    trainer = trainer_of(CASES[family].options, tmp_path, device, steps=20)
    others: list[str] = []

    def look(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if not inputs[0].is_contiguous(memory_format=torch.channels_last):
            others.append(f"{name}: {tuple(inputs[0].shape)} {inputs[0].stride()}")

    for component, network in trainer.networks.items():
        for name, module in network.named_modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | SpectralNorm) and module.weight.dim() == 4:
                assert module.weight.is_contiguous(memory_format=torch.channels_last), name
                module.register_forward_pre_hook(
                    lambda module, inputs, name=f"{component}.{name}": look(name, module, inputs)
                )
    with begun(trainer):
        trainer._take_step()
    assert others == []


@on_devices(on_cpu=["toy"])
def test_a_compiled_network_has_the_same_losses(family: str, device: torch.device, tmp_path: Path) -> None:
    options = optimizers_of(CASES[family].options, STEADY_ADAM)
    torch.compiler.reset()
    rows, expected = (
        losses_by_step(trainer_of(options, tmp_path / compiled, device, f"engine.compile={compiled}", steps=20), 2)
        for compiled in ("true", "false")
    )
    torch.compiler.reset()
    assert rows[0] == pytest.approx(expected[0], rel=1e-3, abs=1e-4)
    assert rows[1] == pytest.approx(expected[1], rel=2e-2, abs=2e-3)


@on_devices(on_cpu=["gan"])
def test_memory_stays_below_what_is_planned(family: str, device: torch.device, tmp_path: Path) -> None:
    """The plan counts activations with a CPU's kernels, and leaves out workspaces; a step must not need twice as much."""
    from bigtrain.training.cost.memory import residents
    from bigtrain.training.cost.step import step_cost

    trainer = trainer_of(CASES[family].options, tmp_path, device, steps=20, batch_size=64)
    cost = step_cost(trainer.family, 64, "fp32")
    averages = list(trainer.ema.by_name())
    planned = sum(residents(cost.components, averages, "ddp", offload=False, ranks=1, accumulate=1).gpu.values())
    with begun(trainer):
        trainer._take_step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        trainer._take_step()
        used = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    assert used < 2 * (planned + cost.peak + cost.batch) + 2**25, (used, planned, cost.peak)
