"""Sees what a command must not do because of what others have written: change files elsewhere, run programs, connect.

What is seen: what Python reports as audit events. Native code that opens a file is seen by what it leaves (hostile.py).
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((1, 3),),
    "os.symlink": ((1, 2),),
    "os.mkdir": ((0, 2),),
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.truncate": ((0, None),),
    "os.chmod": ((0, 2),),
    "os.utime": ((0, 3),),
}
"""By the audit event: which of its arguments are a path that is changed, and the folder that this is relative to."""
RUNS = {"os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pty.spawn"}
CONNECTS = {"socket.connect", "socket.getaddrinfo"}
PROGRAMS = ("git", "uname", "ldconfig")
"""What is asked for the commit, the processor and the libraries."""


class Watch:
    """An audit hook that writes a line to the file `seen` for each such act, and does not prevent it."""

    def __init__(self, seen: Path, allowed: Sequence[Path]) -> None:
        """`allowed`: the folders and files that may change; what is in them must not be executed."""
        self._allowed = [path.resolve() for path in allowed]
        self._seen = os.open(seen, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & WRITING and not isinstance(path, int):
                self._changes(event, path, None)
        elif event in CHANGES:
            for path, folder in CHANGES[event]:
                self._changes(event, arguments[path], None if folder is None else arguments[folder])
        elif event in RUNS:
            if os.path.basename(os.fsdecode(arguments[0])) not in PROGRAMS:
                self._say(f"ran: {event} {arguments[:2]!r}")
        elif event == "exec":
            source = str(getattr(arguments[0], "co_filename", ""))
            if os.path.isabs(source) and self._allows(Path(source)):
                self._say(f"ran: {source}")
        elif event in CONNECTS and _is_elsewhere(arguments):
            self._say(f"connected: {event} {arguments[1:]!r}")

    def _changes(self, event: str, path: Any, folder: Any) -> None:
        changed = located(path, folder)
        if changed is not None and changed != Path(os.devnull) and not self._allows(changed):
            self._say(f"changed: {event} {changed}")

    def _allows(self, path: Path) -> bool:
        return any(path.is_relative_to(folder) for folder in self._allowed)

    def _say(self, text: str) -> None:
        os.write(self._seen, (ascii(text)[1:-1] + "\n").encode())


def located(path: Any, folder: Any = None) -> Path | None:
    """The absolute path of what is changed: the links of its folders are followed, not the last one. None for what has no path:
    a pipe, or memory. `path` may be a descriptor; `folder`: the descriptor of the folder that it is relative to."""
    if isinstance(path, int):
        named = os.readlink(f"/proc/self/fd/{path}")
        return Path(named) if named.startswith("/") else None
    text = os.fsdecode(path)
    if isinstance(folder, int) and folder >= 0:
        text = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), text)
    whole = os.path.abspath(text)
    return Path(os.path.realpath(os.path.dirname(whole)), os.path.basename(whole))


def _is_elsewhere(arguments: tuple[Any, ...]) -> bool:
    host = arguments[0] if isinstance(arguments[0], str | bytes) else arguments[1][0]
    return host not in ("127.0.0.1", "localhost", "::1", None)
