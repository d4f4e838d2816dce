"""Files that are whole or not there: written aside, flushed to the disk, renamed."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any


def aside(path: Path) -> Path:
    """A hidden name beside `path` that no other process uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.tmp")


def sync_folder(folder: Path) -> None:
    """Makes renames within the folder survive a power cut."""
    sync(folder)


def sync(path: Path) -> None:
    """Makes what stands in a file survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_flushed(path: Path, data: bytes) -> None:
    """Writes and flushes to the disk under the name as given; for files inside a folder that is renamed as a whole."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def write_bytes(path: Path, data: bytes) -> None:
    """Replaces `path` by `data` at once. Raises OSError (a full disk, say) with what stood there untouched."""
    temporary = aside(path)
    try:
        write_flushed(temporary, data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: Any, indent: int | None = 2) -> None:
    write_bytes(path, (json.dumps(value, indent=indent) + "\n").encode())


def sha256_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cache_folder() -> Path:
    """Where things are kept that can be made again: $BIGTRAIN_CACHE, else the user's cache folder."""
    if "BIGTRAIN_CACHE" in os.environ:
        return Path(os.environ["BIGTRAIN_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "bigtrain"
