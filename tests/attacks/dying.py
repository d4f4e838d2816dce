"""A command that may die before a chosen operation on files: python tests/attacks/dying.py SCRIPT [WORD ...]

The environment variable DYING says how, as JSON:

    {"under": [FOLDER, ...], "operations": PATH, "at": 3, "death": "SIGKILL"}

Each operation that changes something in those folders is written to the file `operations`, a line each. Before that with the
number `at` (null: never) the process sends itself the signal, or the operation raises an OSError (ENOSPC).
"""

import errno
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the families of the tests)
from bigtrain.cli import run_cli

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
AUDITED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
FOLDERS_BY_NUMBER = {"os.rename": 2, "os.mkdir": 2, "os.remove": 1, "os.rmdir": 1}
"""Which argument of the event is the open folder that a path begins in, -1 if there is none."""


class Operations:
    """Counts them, and dies before one."""

    def __init__(self, under: list[str], operations: str, at: int | None, death: str) -> None:
        self._under = tuple(under)
        self._file = os.open(operations, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self._at, self._death = at, death
        self._count = 0
        self._lock = threading.RLock()

    def watch(self) -> None:
        sys.addaudithook(self._audited)
        for name in ("fsync", "fdatasync"):  # no audit events
            setattr(os, name, self._flushing(name, getattr(os, name)))

    def _flushing(self, name: str, flush: Callable[[int], None]) -> Callable[[int], None]:
        def flushing(descriptor: int) -> None:
            self._before(f"os.{name}", os.readlink(f"/proc/self/fd/{descriptor}"))
            flush(descriptor)

        return flushing

    def _audited(self, event: str, words: tuple[Any, ...]) -> None:
        if event not in AUDITED or not isinstance(words[0], str | bytes | os.PathLike):
            return
        if event == "open" and not (words[2] or 0) & WRITING:
            return
        path = os.fsdecode(words[0])
        folder = words[FOLDERS_BY_NUMBER[event]] if event in FOLDERS_BY_NUMBER else -1
        if isinstance(folder, int) and folder >= 0:
            path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
        self._before(event, os.path.abspath(path))

    def _before(self, operation: str, path: str) -> None:
        if not path.startswith(self._under):
            return
        with self._lock:
            number, self._count = self._count, self._count + 1
            os.write(self._file, f"{operation} {path}\n".encode())
        if number != self._at:
            return
        if self._death == "ENOSPC":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        os.kill(os.getpid(), signal.Signals[self._death])


def main(script: str, words: list[str]) -> None:
    launched = importlib.import_module(f"launch.{script}")
    if "DYING" in os.environ:
        Operations(**json.loads(os.environ["DYING"])).watch()
    sys.argv[1:] = words
    run_cli(launched.main)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
