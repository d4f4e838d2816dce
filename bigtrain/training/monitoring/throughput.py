"""Speed, waiting times and memory of a run, for the rows of metrics.jsonl.

All of it is measured once per row, and every rank takes part.
"""

import resource
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from bigtrain.cluster import world
from bigtrain.training.monitoring.comm_timer import CommTimer

PEAK_FLOPS = {
    "NVIDIA A100-PCIE-40GB": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "NVIDIA A100-SXM4-40GB": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "NVIDIA A100 80GB PCIe": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "NVIDIA A100-SXM4-80GB": {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
    "NVIDIA GeForce RTX 4090": {"bf16": 165.2e12, "tf32": 82.6e12, "fp32": 82.6e12},
    "NVIDIA H100 PCIe": {"bf16": 756e12, "tf32": 378e12, "fp32": 51.2e12},
    "NVIDIA H100 80GB HBM3": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
    "NVIDIA H200": {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 66.9e12},
}
"""Peaks in FLOP/s, by the name that CUDA gives the device: dense bfloat16 and dense TF32 on tensor cores, and plain float32, as
bigtrain turns TF32 off unless a recipe asks for it (training/engine/kernels.py). From NVIDIA's data sheets; those of the A100,
the H100 PCIe and the RTX 4090, and all of TF32, are from memory. A partition (MIG) has another name, and so is not here."""
GIB = 2**30


def peak_flops(device_name: str, precision: str) -> float | None:
    """The peak of a device in FLOP/s, or None for one that is not in the table."""
    return PEAK_FLOPS.get(device_name, {}).get(precision)


class _Measured(NamedTuple):
    """One rank's measurements of an interval."""

    own_s: float
    data_s: float
    communication_s: float
    peak: int
    reserved: int
    host: int


class Throughput:
    """Turns the measurements of all ranks into the values of a row."""

    def __init__(
        self, device: torch.device, images_per_step: int, precision: str, flops_per_step: Callable[[], float]
    ) -> None:
        """`flops_per_step`: counts the FLOPs of all ranks together, not counting what activation checkpointing recomputes; only
        called for a device whose peak is known. Others have no `throughput/mfu`."""
        self.device, self.images_per_step = device, images_per_step
        self.waits = CommTimer(device)
        """Times the waits for other ranks that no component times itself."""
        peak = peak_flops(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None
        flops = None if peak is None else _counted(flops_per_step)
        self.ideal_s = None if peak is None or flops is None else flops / (peak * world.size())
        """Seconds that a step would take at the device's peak; None if that is not known."""

    def read(self, seconds: float, steps: int, data_s: float, waited_s: Sequence[float | None]) -> dict[str, float]:
        """`seconds` of wall time for `steps`, of which this rank waited `data_s` for data and each component `waited_s` for
        other ranks (None: not measured). A collective: every rank calls it.

        `throughput/`: images per second of all ranks and per GPU; `mfu`; the share of the time that ranks waited, on average
        (no `communication_wait_share` if a component does not measure it or there is only one rank); `rank_s`, seconds per step
        in which a rank did not wait: of the fastest rank, the mean, and of the slowest, and which rank that is. Batch
        statistics are exchanged within the forward pass and count as work. `memory/`: peaks since the start, the largest of any
        rank: of tensors on the GPU (of the process on a CPU), of the allocator, of the process in host memory.
        """
        seconds, steps = max(seconds, 1e-9), max(steps, 1)
        measured = [wait for wait in waited_s if wait is not None]
        communication_s = self.waits.read() + sum(measured)
        own = max(0.0, seconds - data_s - communication_s) / steps
        ranks = world.gather_objects(_Measured(own, data_s, communication_s, *memory_peaks(self.device)))
        work = [rank.own_s for rank in ranks]
        images = steps * self.images_per_step / seconds
        row = {"throughput/images_per_s": images, "throughput/images_per_s_per_gpu": images / len(ranks)}
        if self.ideal_s is not None:
            row["throughput/mfu"] = self.ideal_s * steps / seconds
        row["throughput/data_wait_share"] = _mean_share([rank.data_s for rank in ranks], seconds)
        if len(ranks) > 1 and len(measured) == len(waited_s):
            waited = [rank.communication_s for rank in ranks]
            row["throughput/communication_wait_share"] = _mean_share(waited, seconds)
        row |= {
            "throughput/rank_s/min": min(work),
            "throughput/rank_s/mean": sum(work) / len(work),
            "throughput/rank_s/max": max(work),
            "throughput/slowest_rank": work.index(max(work)),
            "memory/peak_gib": max(rank.peak for rank in ranks) / GIB,
        }
        if self.device.type == "cuda":
            row["memory/reserved_peak_gib"] = max(rank.reserved for rank in ranks) / GIB
        row["memory/host_peak_gib"] = max(rank.host for rank in ranks) / GIB
        return row


def memory_peaks(device: torch.device) -> tuple[int, int, int]:
    """Peak bytes so far: of tensors, of the device's allocator, and of this process in host memory."""
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device), host
    return host, host, host


def _mean_share(waited: list[float], seconds: float) -> float:
    return min(1.0, sum(waited) / len(waited) / seconds)


def _counted(flops_per_step: Callable[[], float]) -> float | None:
    """The count, or None with a warning: a family whose FLOPs cannot be counted can still be trained."""
    try:
        return flops_per_step()
    except Exception as error:
        warnings.warn(f"no throughput/mfu: the FLOPs of a step cannot be counted ({error})", stacklevel=2)
        return None
