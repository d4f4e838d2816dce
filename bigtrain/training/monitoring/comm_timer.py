"""How long a rank waits for the others, measured without synchronising with the device."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from bigtrain.cluster import world


class CommTimer:
    """Sums the time that a device spends in regions that only wait for other ranks.

    On a GPU two events around a region in the device's stream measure it, so that only time that computation did not hide
    counts; they are not read before `read`. On a CPU it is the wall clock. On a single rank it measures nothing.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._active = world.size() > 1
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._used = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The region; exceptions pass through."""
        if not self._active:
            yield
            return
        if not self._on_gpu:
            begin = time.perf_counter()
            yield
            self._seconds += time.perf_counter() - begin
            return
        if self._used == len(self._events):  # events are reused after `read`
            self._events.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        first, last = self._events[self._used]
        self._used += 1
        first.record()
        yield
        last.record()

    def read(self) -> float:
        """Seconds since the last call; waits for the device."""
        for first, last in self._events[: self._used]:
            last.synchronize()
            self._seconds += first.elapsed_time(last) / 1e3
        seconds, self._seconds, self._used = self._seconds, 0.0, 0
        return seconds
