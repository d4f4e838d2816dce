"""Atomic writes: a file is written under a temporary name, flushed to the disk, and renamed.

What is neither a plain file nor absent is never replaced: a link would be lost, and so would a device.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from bigtrain import beats
from bigtrain.untrusted import open_plain

_PIECE = 2**20
"""Bytes that are read at a time to be hashed; each is a sign of life."""
_ASIDE = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")


def aside(path: Path) -> Path:
    """A hidden path in the same folder that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


@contextlib.contextmanager
def opened_aside(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new file at such a path, locked while its writer lives, so that the file of a killed process can be recognised. It is
    removed when the block ends, unless the block has renamed it; a signal that comes while it is made leaves none either."""
    while True:
        temporary = aside(path)
        try:
            with temporary.open("xb") as file:
                with contextlib.suppress(OSError):  # a file system without locks: then leftovers are never removed
                    fcntl.flock(file, fcntl.LOCK_EX)
                if temporary.exists():  # otherwise another process removed it as a leftover between these lines
                    yield temporary, file
                    return
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()


def is_leftover(name: str) -> bool:
    """Whether a file or folder of this name is one of `aside`, which a killed process left."""
    return _ASIDE.fullmatch(name) is not None


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left half written or half deleted in a folder, if there is one; only for a process that has
    locked it."""
    for path in folder.glob(".*.tmp"):
        if not is_leftover(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes renames within the folder survive a power cut."""
    sync(folder)


def sync(path: Path) -> None:
    """Makes the content of a file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def follow_umask(folder: Path) -> None:
    """Gives the files within a folder the mode of any new file: safetensors makes its own readable for their owner alone."""
    probe = aside(folder / "mode")
    try:
        probe.touch()
        mode = stat.S_IMODE(os.stat(probe).st_mode)
    finally:
        probe.unlink(missing_ok=True)
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def write_flushed(path: Path, data: bytes) -> None:
    """Writes to `path` itself and flushes to the disk; for files in a folder that is renamed afterwards."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def check_replaceable(path: Path) -> None:
    """Raises OSError if there is something at `path` that is no plain file; a symbolic link is none."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        what = "a link" if stat.S_ISLNK(mode) else "a folder" if stat.S_ISDIR(mode) else "no plain file"
        raise OSError(errno.EEXIST, f"is {what}, which is not replaced", str(path))


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces the content of `path` atomically. Raises OSError (a full disk, or `check_replaceable`) and leaves the old
    content in place."""
    check_replaceable(path)
    with opened_aside(path) as (temporary, file):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.replace(temporary, path)
    sync_folder(path.parent)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def make_folder(path: Path) -> None:
    """Makes a folder within one that exists, unless there is one. Raises OSError, also for a link to a folder: what is written
    there would land elsewhere."""
    try:
        path.mkdir()
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise OSError(errno.EEXIST, "is a link, or no folder", str(path)) from None


def sha256_of(path: Path, read: Callable[[int], object] = lambda size: None) -> str:
    """Raises OSError, also for what is no plain file. `read`: is told of each piece how many bytes it has."""
    digest, piece = hashlib.sha256(), bytearray(_PIECE)
    with open_plain(path) as file:
        while size := file.readinto(piece):
            digest.update(memoryview(piece)[:size])
            read(size)
            beats.beat()
    return digest.hexdigest()


def cache_folder() -> Path:
    """The folder for files that can be made again: $BIGTRAIN_CACHE, else the user's cache folder."""
    if "BIGTRAIN_CACHE" in os.environ:
        return Path(os.environ["BIGTRAIN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bigtrain"
