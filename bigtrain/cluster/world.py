"""This process's rank and the number of ranks, and the collectives outside the engine.

A process without torch.distributed is a world of one rank, where these functions do no communication.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from bigtrain.errors import RankError, UserError

T = TypeVar("T")
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
"""The collective under its newest name: torch warns at every call of the older one, which torch 2.8 has alone."""


def initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


_ALONE = ContextVar("alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Within it this thread is a world of one rank: for work that one rank does without the others."""
    token = _ALONE.set(True)
    try:
        yield
    finally:
        _ALONE.reset(token)


def rank() -> int:
    return dist.get_rank() if initialised() and not _ALONE.get() else 0


def size() -> int:
    return dist.get_world_size() if initialised() and not _ALONE.get() else 1


def local_size() -> int:
    """Ranks on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def local_rank() -> int:
    """This rank's number on its node."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0


def is_main() -> bool:
    return rank() == 0


def ensure_group(device: torch.device) -> None:
    """Creates a process group of one rank if no launcher created one, for a library that needs a group."""
    if not initialised():
        store = dist.HashStore()  # type: ignore[attr-defined]
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum over ranks, in place."""
    if size() > 1:
        dist.all_reduce(tensor)
    return tensor


def concatenated_over_ranks(tensor: Tensor) -> Tensor:
    """All ranks' tensors [n, ...], which have the same shape, in the order of ranks: [ranks n, ...] on every rank."""
    gathered = tensor.new_empty(dist.get_world_size() * len(tensor), *tensor.shape[1:])
    _ALL_GATHER(gathered, tensor.contiguous())
    return gathered


def _object_device() -> torch.device:
    """The device on which object collectives put their bytes: that of the process group's backend."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def broadcast_object(value: T) -> T:
    """Rank 0's value on every rank."""
    if size() == 1:
        return value
    box: list[Any] = [value]
    dist.broadcast_object_list(box, src=0, device=_object_device())
    return box[0]


def gather_objects(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on every rank."""
    if size() == 1:
        return [value]
    values: list[Any] = [None] * size()
    dist.all_gather_object(values, value)
    return values


def gather_on_main(value: T) -> list[T]:
    """Every rank's value, in the order of ranks, on rank 0; an empty list on the others."""
    if size() == 1:
        return [value]
    values: list[Any] | None = [None] * size() if is_main() else None
    dist.gather_object(value, values)
    return values or []


def on_main(work: Callable[[], T]) -> T:
    """Rank 0 does the work; every rank gets its result, or raises its UserError."""
    return _agreed(work if is_main() else None)


def main_first(work: Callable[[], T]) -> T:
    """Rank 0 does the work first, then the others do it too, and profit from what it cached."""
    results: list[T] = []  # not broadcast: an index of millions of samples takes hundreds of megabytes
    _agreed((lambda: results.append(work())) if is_main() else None)
    if is_main():
        return results[0]
    try:
        return work()
    except UserError as error:
        raise RankError(f"rank {rank()}: {error}") from None


def _agreed(work: Callable[[], T] | None) -> Any:
    outcome: tuple[str, Any] = ("value", None)
    if work is not None:
        try:
            outcome = ("value", work())
        except UserError as error:
            outcome = ("error", str(error))
    kind, value = broadcast_object(outcome)
    if kind == "error":
        raise UserError(value)
    return value
