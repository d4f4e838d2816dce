"""torch's DataLoader as this house needs it: items in order, errors as one sentence, workers that end when asked to."""

import gc
import signal
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from bigtrain.cluster.launch import die_with_parent
from bigtrain.errors import UserMistake


class Loader:
    """torch's DataLoader over ready-made batches: items in order, errors clean, and an end when it is asked for."""

    def __init__(self, batches: Dataset[Any], items: Iterator[Any], workers: int, pin_memory: bool) -> None:
        loader = DataLoader(
            _Mistakes(batches),
            batch_size=None,
            sampler=items,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=pin_memory,
            worker_init_fn=_settle,
            # A forked worker shares the index with this process; one that is started anew would hold a copy of it.
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            generator=torch.Generator(),  # else every loader would advance torch's global generator
        )
        self._iterator: Any = iter(loader)

    def __iter__(self) -> "Loader":
        return self

    def __next__(self) -> Any:
        if self._iterator is None:
            raise StopIteration
        item = next(self._iterator)
        if isinstance(item, UserMistake):
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


class _Mistakes(Dataset[Any]):
    """Hands a UserMistake over as an item: torch would bury its sentence under the worker's traceback."""

    def __init__(self, batches: Dataset[Any]) -> None:
        self._batches = batches

    def __getitem__(self, item: Any) -> Any:
        try:
            return self._batches[item]
        except UserMistake as mistake:
            return mistake


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
