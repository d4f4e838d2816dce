"""The devices that the tests of this folder run on: a GPU; and in the slow suite a CPU, so that no line waits for a GPU to be
run for the first time. What only CUDA has is passed over there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.families_table import CASES

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
WITHOUT_GPU = "no GPU here, so what only a GPU can show is not tested"
NEEDS_GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason=WITHOUT_GPU))


def on_devices(families: Sequence[str] = tuple(CASES), on_cpu: Sequence[str] | None = None) -> Any:
    """Gives a test `device` and `family`: each of `families` on the GPU, and `on_cpu` (None: all of them) on the CPU."""
    here = families if on_cpu is None else on_cpu
    return pytest.mark.parametrize(
        ("device", "family"),
        [pytest.param(CPU, family, id=f"cpu-{family}", marks=pytest.mark.slow) for family in here]
        + [pytest.param(GPU, family, id=f"gpu-{family}", marks=NEEDS_GPU) for family in families],
    )


on_each_device = pytest.mark.parametrize(
    "device", [pytest.param(CPU, id="cpu", marks=pytest.mark.slow), pytest.param(GPU, id="gpu", marks=NEEDS_GPU)]
)
"""Gives a test `device`."""


@contextmanager
def no_waits(device: torch.device) -> Iterator[None]:
    """Within it, whatever makes the host wait for a GPU raises an error."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("default")
