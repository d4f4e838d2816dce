"""What files on this machine were found to hold: the sha256 of each, measured once and remembered for as long as the file has
the same device, inode, size and times.

The record is a file of the user's cache folder to which all processes of a node append; a lock beside it lets one process of
the node measure at a time. As a script, `python -m bigtrain.data.read.file_hashes` measures the files that its input names, one
a line ("cached PATH" or "kept PATH"), in their order, at the lowest priority, until its parent ends.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import psutil

from bigtrain.runs.atomic import cache_folder
from bigtrain.untrusted import open_plain

log = logging.getLogger(__name__)

PIECE = 2**22
LARGEST_RECORD = 2**24
"""Bytes of the record; a longer one is begun anew."""
Identity = tuple[int, int, int, int, int]


def identity_of(status: os.stat_result, is_cached: bool = False) -> Identity:
    """What a file cannot keep if its content is changed, nor another file have.

    The time of the inode's change is part of it, as that of the content can be set back; but not of a file in the cache of
    shards, where it is the time of the last use.
    """
    changed = 0 if is_cached else status.st_ctime_ns
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, changed


class FileHashes:
    """The hashes that are known on this node; to this process alone, with a warning, where nothing can be written for them."""

    def __init__(self) -> None:
        self._path = cache_folder() / "verified" / f"{platform.node() or 'node'}.txt"
        self._known: dict[Identity, str] = {}
        self._read_bytes = 0
        self._is_shared = True
        with self._recording():
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)

    def known(self, identity: Identity) -> str | None:
        """The sha256 of the file with this identity; None if nobody has measured it."""
        if identity not in self._known:
            with self._recording():
                self._read()
        return self._known.get(identity)

    def measure(
        self, path: str | Path, is_cached: bool = False, pulse: Callable[[int], None] = lambda _: None
    ) -> tuple[Identity, str]:
        """(identity, sha256) of the file, read to its end unless a process of this node has done so, or does now. `pulse` is
        called with the bytes that were read since its last call. Raises OSError."""
        with self._alone(pulse), open_plain(path) as file:
            before = identity_of(os.fstat(file.fileno()), is_cached)
            sha256 = self.known(before)
            if sha256 is not None:
                return before, sha256
            digest = hashlib.sha256()
            while piece := file.read(PIECE):
                digest.update(piece)
                pulse(len(piece))
            # If it was written to meanwhile, nothing is known of it.
            if identity_of(os.fstat(file.fileno()), is_cached) == before:
                self.remember(before, digest.hexdigest())
            return before, digest.hexdigest()

    def remember(self, identity: Identity, sha256: str) -> None:
        """Records a hash that was measured, in one write, so that processes that append at once do not mix their lines."""
        self._known[identity] = sha256
        if self._is_shared:
            with self._recording():
                self._append(f"{' '.join(map(str, identity))} {sha256}\n")

    def _append(self, line: str) -> None:
        if self._path.exists() and self._path.stat().st_size > LARGEST_RECORD:
            self._path.unlink(missing_ok=True)
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def _alone(self, pulse: Callable[[int], None]) -> Iterator[None]:
        """One process of the node at a time; all at once where nothing can be locked, which only costs time."""
        with contextlib.ExitStack() as stack:
            if self._is_shared:
                with self._recording():
                    lock = stack.enter_context(open(self._path.with_suffix(".lock"), "ab"))
                    while not _locked(lock):
                        pulse(0)
                        time.sleep(0.05)
            yield

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Without the record from the first error on."""
        try:
            yield
        except OSError as error:
            if self._is_shared:
                log.warning(
                    "%s: cannot be used (%s), so shards are verified anew by every process; set BIGTRAIN_CACHE to a folder "
                    "that can be written",
                    self._path.parent,
                    error.strerror,
                )
            self._is_shared = False

    def _read(self) -> None:
        """Takes over the lines that were appended since the last call; one that is incomplete is read the next time."""
        try:
            with open(self._path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._read_bytes:  # begun anew
                    self._read_bytes = 0
                file.seek(self._read_bytes)
                content = file.read()
        except FileNotFoundError:
            return
        whole, newline, _ = content.rpartition(b"\n")
        self._read_bytes += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            *numbers, sha256 = line.split() or [b""]
            if len(numbers) == 5 and all(number.isdigit() for number in numbers):
                device, inode, size, written, changed = map(int, numbers)
                self._known[device, inode, size, written, changed] = sha256.decode("ascii", "replace")


def _locked(file: IO[bytes]) -> bool:
    """Whether this process has locked the file now. Raises OSError on a file system without locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def main() -> None:
    parent = os.getppid()
    os.nice(19)
    if sys.platform == "linux":
        psutil.Process().ionice(psutil.IOPRIO_CLASS_IDLE)
    hashes = FileHashes()

    def end_with_parent(_: int) -> None:
        if os.getppid() != parent:
            sys.exit()

    for line in sys.stdin:
        try:
            cached, _, path = line.rstrip("\n").partition(" ")
            hashes.measure(path, cached == "cached", end_with_parent)
        except OSError:
            continue  # who needs the file says so


if __name__ == "__main__":
    main()
