"""torch's DataLoader as this house needs it: items in order, errors as one sentence, workers that end when asked to.

Workers leave their arrays in memory that this process shares with them and that is used again and again. torch would make new
shared memory for every tensor: its pages and the handing over of its descriptor cost as much as reading small images does,
and it comes out of /dev/shm, of which a container has 64 MiB.
"""

import gc
import io
import itertools
import mmap
import pickle
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bigtrain.cluster.launch import die_with_parent
from bigtrain.errors import UserError

_AHEAD = 2
"""Items that each worker is asked for ahead of their use."""
_ALIGNMENT = 64
_MOST_ROOM = 2**28
"""Bytes of one slot; memory is taken only as it is written to, but systems refuse what they could never give."""


class Loader:
    """torch's DataLoader over ready-made batches: items in order, errors clean, and an end when it is asked for.

    `room`: bytes that the arrays and tensors of one batch take; those of a larger one go through a pipe, which is slower.
    """

    def __init__(
        self, batches: Dataset[Any], items: Iterator[Any], workers: int, pin_memory: bool, room: int = 0
    ) -> None:
        forks = workers > 0 and sys.platform == "linux"
        # The item after so many is asked for when this one is given, and by then this one has been copied out of its slot.
        self._slots = _Slots(_AHEAD * workers, min(room, _MOST_ROOM)) if forks else None
        loader = DataLoader(
            _Packing(batches, self._slots),
            batch_size=None,
            sampler=enumerate(items),
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_settle,
            # A forked worker shares the index with this process; one that is started anew would hold a copy of it.
            multiprocessing_context="fork" if forks else None,
            generator=torch.Generator(),  # else every loader would advance torch's global generator
        )
        self._iterator: Any = iter(loader)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            raise StopIteration
        item = next(self._iterator)
        if isinstance(item, UserError):
            self.close()
            raise item
        return item

    def close(self) -> None:
        iterator, self._iterator = self._iterator, None
        workers = getattr(iterator, "_workers", [])
        if workers:
            iterator._shutdown_workers()
        for worker in workers:  # torch would send SIGTERM, which they ignore, to one that hangs on a dead file system
            if worker.is_alive():
                worker.kill()


class _Packing(Dataset[Any]):
    """Items by (their place in the order, what to read). Hands a UserError over as an item: torch would bury its sentence
    under the worker's traceback."""

    def __init__(self, batches: Dataset[Any], slots: "_Slots | None") -> None:
        self._batches, self._slots = batches, slots

    def __getitem__(self, numbered: tuple[int, Any]) -> Any:
        place, item = numbered
        try:
            batch = self._batches[item]
        except UserError as mistake:
            return mistake
        if self._slots is None or get_worker_info() is None:
            return batch
        return self._slots.pack(batch, place)


class _Slots:
    """Memory for the arrays of `count` batches of `room` bytes, shared with the processes that are forked hereafter."""

    def __init__(self, count: int, room: int) -> None:
        self._count, self._room = count, -(-room // mmap.PAGESIZE) * mmap.PAGESIZE
        self._bytes = np.frombuffer(mmap.mmap(-1, max(self._count * self._room, 1)), np.uint8)
        self._key = next(_keys)
        _all_slots[self._key] = self

    def pack(self, batch: Any, place: int) -> "_Packed":
        """In a worker: the arrays of the batch of this place in the order go into the slot that is free by then."""
        buffers: list[pickle.PickleBuffer] = []
        words = _pickled(batch, buffers.append)
        arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        *begins, end = itertools.accumulate((-(-len(array) // _ALIGNMENT) * _ALIGNMENT for array in arrays), initial=0)
        if end > self._room:
            return _Packed(self._key, _pickled(batch, None), [])
        first = place % self._count * self._room
        spans = [(first + begin, first + begin + len(array)) for begin, array in zip(begins, arrays, strict=True)]
        for array, (begin, stop) in zip(arrays, spans, strict=True):
            self._bytes[begin:stop] = array
        return _Packed(self._key, words, spans)

    def unpack(self, words: bytes, spans: list[tuple[int, int]]) -> Any:
        """In the main process: the batch, its arrays copied, for the slot is soon used again."""
        return pickle.loads(words, buffers=[self._bytes[begin:stop].copy() for begin, stop in spans])


class _Packed:
    """What a worker gives instead of a batch: unpickled, as it comes out of the worker's queue, it is the batch."""

    def __init__(self, *packed: Any) -> None:
        self._packed = packed

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpacked, self._packed


_keys = itertools.count()
_all_slots: "weakref.WeakValueDictionary[int, _Slots]" = weakref.WeakValueDictionary()


def _unpacked(key: int, words: bytes, spans: list[tuple[int, int]]) -> Any:
    return _all_slots[key].unpack(words, spans)


def _pickled(batch: Any, apart: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=apart).dump(batch)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Tensors as arrays, whose bytes pickle can put apart."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if type(value) is Tensor else NotImplemented


def _as_it_is(batch: Any) -> Any:
    return batch


def _settle(worker: int) -> None:
    """What a worker does first. A collection would write to all objects that it shares with the main process: copy them."""
    gc.freeze()
    _follow_main_process()


def _follow_main_process() -> None:
    """Slurm and Ctrl-C signal every process of a job; workers must outlive the checkpoint that is then written. But not
    the process that reads from them: torch's own workers look for it only between two batches, and one may hang in one."""
    die_with_parent(signal.SIGKILL)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
