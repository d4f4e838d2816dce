"""Evaluation passes over ranks: no collectives within a pass; at its end all ranks agree on how it ended."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar

T = TypeVar("T")


class Stopped(Exception):
    """The caller's `should_stop` returned True; nothing has been measured."""


@dataclass(frozen=True)
class Reading:
    """How a pass reads its images: `batch` at a time on each rank, by `workers` processes per rank (0: in this process).

    `should_stop` is called once per batch.
    """

    batch: int
    workers: int
    should_stop: Callable[[], bool] = lambda: False

    def check_stop(self) -> None:
        """A sign of life. Raises Stopped if `should_stop` says so; only within `together`, or the other ranks would wait for
        this one."""
        beats.beat()
        if self.should_stop():
            raise Stopped


@contextmanager
def stoppable(should_stop: Callable[[], bool]) -> Iterator[None]:
    """Within it, any call of a network is a sign of life, and raises Stopped once `should_stop` says so: one batch of samples,
    or of bounds on a likelihood, may take a thousand calls. Only within `together`."""

    def check(*_: object) -> None:
        beats.beat()
        if should_stop():
            raise Stopped

    hook = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        hook.remove()


def together(what: str, work: Callable[[], T]) -> T:
    """Every rank does its work, then all learn how it ended: if one rank raised UserError or Stopped, every rank raises it.

    `what` it does, for a message about a rank that hangs in it; work of one name goes in pieces (beats.beat) that take about
    equally long.
    """
    end, text, result = "done", "", None
    try:
        with beats.work(what):
            result = work()
    except UserError as error:
        end, text = "error", str(error)
    except Stopped:
        end = "stopped"
    ends = dict(reversed(world.gather_objects((end, text))))
    if "error" in ends:
        raise UserError(ends["error"])
    if "stopped" in ends:
        raise Stopped
    return result  # type: ignore[return-value]


def on_main(what: str, work: Callable[[], T]) -> T:
    """Rank 0 does the work; every rank gets its result, or raises its UserError or Stopped. `what`: as of `together`."""
    result = together(what, work if world.is_main() else lambda: None)
    return world.broadcast_object(result)  # type: ignore[return-value]


def gather_rows(rows: Tensor) -> Tensor | None:
    """Rank 0 gets all ranks' rows [n, ...], in the order of ranks, where n may differ; other ranks get None."""
    counts = world.gather_objects(len(rows))
    if len(counts) == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    if not world.is_main():
        dist.gather(padded, dst=0)
        return None
    parts = [torch.empty_like(padded) for _ in counts]
    dist.gather(padded, parts, dst=0)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def gather_by_number(numbers: np.ndarray, rows: Tensor) -> Tensor | None:
    """Rank 0 gets all ranks' rows [n, ...] in ascending order of their numbers, int64 [n]; other ranks get None."""
    gathered = gather_rows(rows)
    order = gather_rows(torch.from_numpy(numbers).to(rows.device))
    return None if gathered is None or order is None else gathered[order.argsort()]


class Progress:
    """A progress bar on rank 0, in images of all ranks together; assumes that all advance at the same rate."""

    def __init__(self, total: int, what: str) -> None:
        self._total = total
        self._bar = ProgressBar(total, what, "images", quiet=not world.is_main())

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def add(self, count: int) -> None:
        """Counts `count` images of this rank."""
        self._bar.update(min(count * world.size(), self._total - self._bar.n))
