"""Profiles a few steps with PyTorch's profiler, if the recipe has `train.profile`."""

import os
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import Field
from torch.profiler import ProfilerActivity, profile

from bigtrain.cluster import world
from bigtrain.errors import RankError
from bigtrain.options import MOST, Options
from bigtrain.runs import atomic

ROWS = 40
"""Operators in the table."""


class ProfileOptions(Options):
    """Which steps are profiled. They run slower than others, and the first steps of a process are not typical."""

    start_step: int = Field(ge=0, le=MOST)
    """The first profiled step, counted from 0. A run that is resumed after it profiles nothing."""
    steps: int = Field(default=3, gt=0, le=100)
    """Number of steps; a trace takes some megabytes for each."""


class ProfilerWindow:
    """Writes RUN/profile/step_STEP_rank_RANK.json.gz, a trace that https://ui.perfetto.dev and chrome://tracing open.

    A .txt file beside it lists the operators that took most time and, on GPUs, for how long only NCCL kernels ran.
    """

    def __init__(self, options: ProfileOptions | None, folder: Path, device: torch.device) -> None:
        self._options, self._folder, self._device = options, folder, device
        self._profiler: profile | None = None

    def before(self, step: int) -> None:
        """Call before step `step`: opens the window if it is the first step of it."""
        if self._options is None or step != self._options.start_step:
            return
        activities = [ProfilerActivity.CPU]
        if self._device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        self._profiler = profile(activities=activities, record_shapes=True)
        self._profiler.start()

    def ends_before(self, step: int) -> bool:
        """Whether the window is open and has ended before `step`: then call `close`, which may take minutes."""
        return (
            self._profiler is not None
            and self._options is not None
            and step >= self._options.start_step + self._options.steps
        )

    def close(self) -> None:
        """Ends an open window, even before its last step, and writes the trace."""
        if self._profiler is None or self._options is None:
            return
        profiler, self._profiler = self._profiler, None
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # kernels that the last step has queued belong to the window
        profiler.stop()
        name = f"step_{self._options.start_step:08d}_rank_{world.rank():04d}"
        aside = self._folder / f".{name}.tmp.json.gz"  # the profiler compresses files of this ending
        try:
            atomic.make_folder(self._folder)
            aside.unlink(missing_ok=True)  # the profiler would write through a link
            profiler.export_chrome_trace(str(aside))
            os.replace(aside, self._folder / f"{name}.json.gz")
            atomic.write_bytes(self._folder / f"{name}.txt", self._table(profiler).encode())
        except OSError as error:
            raise RankError(
                f"{self._folder}: rank {world.rank()} cannot write its trace ({error.strerror}); make room on the "
                "disk, or go on with train.profile=null"
            ) from error

    def _table(self, profiler: profile) -> str:
        kind = self._device.type
        table = profiler.key_averages().table(sort_by=f"self_{kind}_time_total", row_limit=ROWS)
        kernels = [
            (event.name, event.time_range.start, event.time_range.end)
            for event in profiler.events() or []
            if event.device_type.name == "CUDA"
        ]
        if not kernels:
            return table
        nccl = [(start, end) for name, start, end in kernels if "nccl" in name.lower()]
        others = [(start, end) for name, start, end in kernels if "nccl" not in name.lower()]
        window_us = max(end for _, _, end in kernels) - min(start for _, start, _ in kernels)
        alone_us = exposed(nccl, others)
        share = 100 * alone_us / window_us
        return f"{table}\nNCCL kernels alone on the device: {alone_us / 1e3:.3f} ms, {share:.1f} % of the window\n"


def exposed(intervals: Iterable[tuple[float, float]], covers: Iterable[tuple[float, float]]) -> float:
    """The length of the union of `intervals` outside the union of `covers`."""
    intervals, covers = list(intervals), list(covers)
    return _length([*intervals, *covers]) - _length(covers)


def _length(intervals: Iterable[tuple[float, float]]) -> float:
    """The length of the union of (begin, end) pairs."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total
