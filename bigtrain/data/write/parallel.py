"""Runs many tasks in processes: reports progress, raises one clean error, and leaves nothing running."""

import contextlib
import multiprocessing
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from bigtrain.errors import UserError
from bigtrain.signals import ENDING

T = TypeVar("T")
R = TypeVar("R")
Progress = Callable[[int], Any]
"""Called with the number of units done since the last call."""
Work = Callable[[T, Progress], R]
_REPORT_EVERY_S = 0.1


def run(work: Work[T, R], tasks: Sequence[T], workers: int, progress: Progress) -> list[R]:
    """Calls work(task, progress) for every task, in `workers` processes (0 or 1: in this one); results in the tasks' order.

    `work` must be a module's function: each process is spawned and imports it, so that it cannot hang on a lock that this
    process held. The first UserError of a task ends all processes and is raised here; any other error is raised as
    RuntimeError with its traceback. A process whose parent has died ends at its next report.
    """
    if workers <= 1 or len(tasks) <= 1:
        return [work(task, progress) for task in tasks]
    context = multiprocessing.get_context("spawn")
    numbered = list(enumerate(tasks))
    readers: dict[Connection, Any] = {}
    try:
        for share in range(min(workers, len(tasks))):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_serve, args=(work, numbered[share::workers], writer), daemon=True)
            process.start()
            writer.close()
            readers[reader] = process
        return _collect(dict(readers), len(tasks), progress)
    finally:
        for process in readers.values():
            process.kill()
            process.join()


def _collect(readers: dict[Connection, Any], count: int, progress: Progress) -> list[Any]:
    results: dict[int, Any] = {}
    while readers:
        for reader in wait(list(readers)):
            assert isinstance(reader, Connection)
            try:
                kind, value = reader.recv()
            except EOFError:
                process = readers.pop(reader)
                process.join()
                if process.exitcode != 0:
                    raise RuntimeError(f"a worker process ended with exit code {process.exitcode}") from None
                continue
            if kind == "progress":
                progress(value)
            elif kind == "result":
                results[value[0]] = value[1]
            elif kind == "user_error":
                raise UserError(value)
            else:
                raise RuntimeError(f"a worker process failed:\n{value}")
    return [results[number] for number in range(count)]


def _serve(work: Work[Any, Any], tasks: Sequence[tuple[int, Any]], writer: Connection) -> None:
    """What a worker process runs: its tasks one by one. It ignores signals: the parent gets them, and ends this process."""
    for ignored in (signal.SIGINT, *ENDING):
        signal.signal(ignored, signal.SIG_IGN)
    report = _Reports(writer)
    with contextlib.suppress(BrokenPipeError):  # the parent has died, so the rest is not needed
        try:
            for number, task in tasks:
                result = work(task, report)
                report.flush()
                writer.send(("result", (number, result)))
        except BrokenPipeError:
            raise
        except UserError as error:
            writer.send(("user_error", str(error)))
        except Exception:
            writer.send(("failure", traceback.format_exc()))


class _Reports:
    """Sends progress a few times a second: a message for every image would cost as much as the image."""

    def __init__(self, writer: Connection) -> None:
        self._writer, self._count, self._sent_at = writer, 0, time.monotonic()

    def __call__(self, count: int) -> None:
        self._count += count
        if time.monotonic() - self._sent_at > _REPORT_EVERY_S:
            self.flush()

    def flush(self) -> None:
        self._writer.send(("progress", self._count))
        self._count, self._sent_at = 0, time.monotonic()
