"""torch's DataLoader with what this code needs: items in order, errors without a worker's traceback, workers that end at once.

Workers put their arrays into slots of memory that they share with this process and that are reused. torch would allocate new
shared memory for every tensor: its pages and the passing of its descriptor cost as much as reading small images, and it comes
from /dev/shm, of which a container has 64 MiB.
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
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from bigtrain.cluster.launch import die_with_parent
from bigtrain.errors import UserError
from bigtrain.signals import ENDING

_AHEAD = 2
"""Items that each worker prepares ahead of their use."""
_ALIGNMENT = 64
_MAX_SLOT_BYTES = 2**28
"""Largest slot in bytes. Memory is used only when it is written to, but a system refuses to map more than it could give."""


class Loader:
    """torch's DataLoader over `batches`, which maps each of `items` to a whole batch, in the order of `items`.

    Raises a worker's UserError as it is. `slot_bytes`: bytes of a slot for the arrays and tensors of one batch; a larger
    batch goes through a pipe, which is slower.
    """

    def __init__(
        self, batches: Dataset[Any], items: Iterator[Any], workers: int, pin_memory: bool, slot_bytes: int = 0
    ) -> None:
        forks = workers > 0 and sys.platform == "linux"
        # A slot is reused _AHEAD * workers items later; that item is requested only after this one was copied out of the slot.
        self._slots = _Slots(_AHEAD * workers, min(slot_bytes, _MAX_SLOT_BYTES)) if forks else None
        loader = DataLoader(
            _Packing(batches, self._slots),
            batch_size=None,
            sampler=enumerate(items),
            num_workers=workers,
            prefetch_factor=_AHEAD if workers else None,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_init_worker,
            # A forked worker shares the index with this process; a spawned one would hold a copy of it.
            multiprocessing_context="fork" if forks else None,
            generator=torch.Generator(),  # otherwise every loader would advance torch's global generator
        )
        with _signals_blocked():
            self._iterator: Any = iter(loader)  # starts the workers

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
        for worker in workers:  # for one that hangs on a dead file system: torch sends SIGTERM, which workers ignore
            if worker.is_alive():
                worker.kill()


class _Packing(Dataset[Any]):
    """Batches by (position in the order, item of the loader). Returns a UserError instead of raising it, because torch would
    wrap its message in the worker's traceback."""

    def __init__(self, batches: Dataset[Any], slots: "_Slots | None") -> None:
        self._batches, self._slots = batches, slots

    def __getitem__(self, numbered: tuple[int, Any]) -> Any:
        position, item = numbered
        try:
            batch = self._batches[item]
        except UserError as error:
            return error
        if self._slots is None or get_worker_info() is None:
            return batch
        return self._slots.pack(batch, position)


class _Slots:
    """Memory for the arrays of `count` batches of `slot_bytes` bytes each, shared with processes that are forked later."""

    def __init__(self, count: int, slot_bytes: int) -> None:
        self._count, self._slot_bytes = count, -(-slot_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._bytes = np.frombuffer(mmap.mmap(-1, max(self._count * self._slot_bytes, 1)), np.uint8)
        self._key = next(_keys)
        _all_slots[self._key] = self

    def pack(self, batch: Any, position: int) -> "_Packed":
        """In a worker: copies the arrays of the batch at this position of the order into its slot, which is free by then."""
        buffers: list[pickle.PickleBuffer] = []
        pickled = _pickled(batch, buffers.append)
        arrays = [np.frombuffer(buffer.raw(), np.uint8) for buffer in buffers]
        *begins, end = itertools.accumulate((-(-len(array) // _ALIGNMENT) * _ALIGNMENT for array in arrays), initial=0)
        if end > self._slot_bytes:
            return _Packed(self._key, _pickled(batch, None), [])
        first = position % self._count * self._slot_bytes
        spans = [(first + begin, first + begin + len(array)) for begin, array in zip(begins, arrays, strict=True)]
        for array, (begin, stop) in zip(arrays, spans, strict=True):
            self._bytes[begin:stop] = array
        return _Packed(self._key, pickled, spans)

    def unpack(self, pickled: bytes, spans: list[tuple[int, int]]) -> Any:
        """In the main process: the batch with copies of its arrays, because the slot is reused soon."""
        return pickle.loads(pickled, buffers=[self._bytes[begin:stop].copy() for begin, stop in spans])


class _Packed:
    """What a worker sends instead of a batch; unpickling it, on leaving the worker's queue, gives the batch."""

    def __init__(self, *packed: Any) -> None:
        self._packed = packed

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _unpacked, self._packed


_keys = itertools.count()
_all_slots: "weakref.WeakValueDictionary[int, _Slots]" = weakref.WeakValueDictionary()


def _unpacked(key: int, pickled: bytes, spans: list[tuple[int, int]]) -> Any:
    return _all_slots[key].unpack(pickled, spans)


def _pickled(batch: Any, apart: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    file = io.BytesIO()
    _Pickler(file, protocol=5, buffer_callback=apart).dump(batch)
    return file.getvalue()


class _Pickler(pickle.Pickler):
    """Pickles tensors as numpy arrays, whose bytes pickle can keep out of band."""

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if type(value) is Tensor else NotImplemented


def _as_it_is(batch: Any) -> Any:
    return batch


_IGNORED = (signal.SIGINT, *ENDING)
"""By workers."""


@contextmanager
def _signals_blocked() -> Iterator[None]:
    """Workers that are started within inherit the block until they ignore these signals: a handler that torch gives them before
    would end them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _init_worker(worker: int) -> None:
    """Runs first in a worker. Without the freeze, a garbage collection would write to all objects that the worker shares with
    the main process, and so copy them."""
    gc.freeze()
    _ignore_signals_but_die_with_main()


def _ignore_signals_but_die_with_main() -> None:
    """Slurm and Ctrl-C signal every process of a job, but workers must live until the checkpoint that follows is written. They
    must die with the main process, though: torch's workers check for it only between batches, and a batch may hang."""
    die_with_parent(signal.SIGKILL)
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
