"""What somebody else may have written: files are opened only if they are plain ones, read up to a bound, and parsed as JSON up
to a depth; text of theirs is printed on one line without control characters."""

import errno
import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

JSON_BYTES = 2**26
"""The largest JSON file that is read whole, unless its reader names another bound: 64 MiB."""
JSON_DEPTH = 64
"""Levels of mappings and lists within each other; our own files have less than ten."""


def open_plain(path: str | Path) -> BufferedReader:
    """The file, opened for reading. Raises OSError if it is a FIFO, a device or a socket, the reading of which may never end.

    Symbolic links are followed: people keep their data elsewhere.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        check_plain(os.fstat(descriptor), path)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_plain(status: os.stat_result, path: str | Path) -> None:
    """Raises OSError unless the status is that of a plain file."""
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, f"is {_kind(status.st_mode)}, not a plain file", str(path))


def read_plain(path: str | Path, limit: int) -> bytes:
    """The content of a plain file. Raises OSError if it is none, or holds more than `limit` bytes."""
    with open_plain(path) as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise OSError(errno.EFBIG, f"holds more than {limit} bytes", str(path))
    return content


def read_json(path: str | Path, limit: int = JSON_BYTES) -> Any:
    """The value in a JSON file. Raises OSError as `read_plain` does, and ValueError as `parse_json` does."""
    return parse_json(read_plain(path, limit))


def parse_json(content: bytes | str) -> Any:
    """The value of JSON text. Raises ValueError, whatever is wrong: bytes that are no UTF-8, numbers of thousands of digits,
    more than JSON_DEPTH levels."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError(f"it has more than {JSON_DEPTH} levels") from None
    _check_depth(value)
    return value


def _check_depth(value: Any) -> None:
    level, depth = [value], 0
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        if depth > JSON_DEPTH:
            raise ValueError(f"it has more than {JSON_DEPTH} levels")
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]


def one_line(text: str) -> str:
    """The text as it may be printed: line breaks and control characters, by which a name could write over the screen or look
    like a second message, are written as escapes."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape", "replace").decode() for one in text)


def looked_for(path: str | Path) -> str:
    """Where a relative path was looked for, to end a message that there is nothing; nothing for an absolute one."""
    return "" if Path(path).is_absolute() else f" (looked for {Path(path).absolute()})"


def _kind(mode: int) -> str:
    kinds = (
        (stat.S_ISFIFO, "a FIFO"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    return next((name for is_kind, name in kinds if is_kind(mode)), "something else")
