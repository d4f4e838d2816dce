"""Steps on a GPU that is not there: our code for GPUs runs, and neither waits for the device nor mixes devices.

All of a step but the backward pass, which needs a device: then gradients are zeros.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.families_table import CASES
from tests.gpu.pretended import DEVICE, Waits, pretended_gpu
from tests.runs_of import ROOT, run


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_no_step_waits_for_the_device_or_mixes_devices(family: str, tmp_path: Path) -> None:
    """bf16 does what fp32 does, and casts. Both are tried of one family of each sort of training."""
    precisions = ["fp32", "bf16"] if family in ("gan", "vqvae", "diffusion") else ["bf16"]
    printed = run(ROOT / "tests" / "gpu" / "pretended_steps.py", family, tmp_path, *precisions).stdout
    assert json.loads(printed.splitlines()[-1]) == {precision: [] for precision in precisions}


HOST_TO_DEVICE: dict[str, Callable[[torch.Tensor], object]] = {
    "values": lambda x: torch.tensor([1.0, 2.0], device=DEVICE),
    "a scalar": lambda x: torch.as_tensor(3, device=DEVICE),
    "pageable memory": lambda x: torch.zeros(3).to(DEVICE, non_blocking=True),
    "pinned, waited for": lambda x: torch.zeros(3).pin_memory().to(DEVICE),
    "into a tensor": lambda x: x.copy_(torch.zeros(4)),
    "an index": lambda x: x[torch.tensor([1])],
    "to the host": lambda x: x.cpu(),
}


@pytest.mark.parametrize("operation", HOST_TO_DEVICE.values(), ids=HOST_TO_DEVICE)
def test_copies_that_wait_are_found(operation: Callable[[torch.Tensor], object]) -> None:
    assert len(watched(operation).found) == 1


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.tolist(),
        lambda x: float(x[0]),
        lambda x: bool((x > 0).all()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
    ],
)
def test_values_that_the_host_reads_are_errors(operation: Callable[[torch.Tensor], object]) -> None:
    with pytest.raises(Exception, match=r"aten\.(_local_scalar_dense|nonzero|index)"):
        watched(operation)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x.copy_(torch.zeros(4).pin_memory(), non_blocking=True),
        lambda x: torch.where(x > 0, 1.0, x),
        lambda x: x[torch.zeros(2, dtype=torch.int64, device=DEVICE)],
        lambda x: x + torch.ones(()),
    ],
)
def test_what_does_not_wait_is_not_found(operation: Callable[[torch.Tensor], object]) -> None:
    assert watched(operation).found == []


def watched(operation: Callable[[torch.Tensor], object]) -> Waits:
    with pretended_gpu() as waits:
        x = torch.zeros(4, device=DEVICE)
        waits.watching = True
        operation(x)
    return waits
