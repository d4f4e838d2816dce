"""The members of a tar, found by its headers alone, and anything doubtful is an error: the file may come from anybody.

Nothing is ever unpacked to disk, so a member's name is no path; but names that would leave a folder, links and devices
are no part of an honest set, and are refused.
"""

import contextlib
import hashlib
import io
import mmap
import os
import tarfile
from collections.abc import Iterable, Iterator
from typing import IO, Protocol

from bigtrain.errors import UserError

BLOCK = tarfile.BLOCKSIZE
END_OF_TAR = bytes(2 * BLOCK)
NOT_COMPRESSED = "compressed tars cannot be read at random; unpack it to a plain .tar (pictures are compressed already)"
TRUNCATED = "the shard is truncated or damaged; copy it here again"
_COMPRESSED_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd", b"\x04\x22\x4d\x18")
_CHUNK = 2**24
_BEGINNING = 1024
"""Bytes of each member that count in an outline."""


class Readable(Protocol):
    """As much of an open binary file as it takes to list a tar."""

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int: ...

    def read(self, size: int = -1, /) -> bytes: ...


class TarBytes(Protocol):
    """The bytes of a tar, by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> bytes: ...


class _Part(io.RawIOBase):
    """Bytes begin .. end of a file as a file, for a tar within a tar."""

    def __init__(self, file: Readable, begin: int, end: int) -> None:
        self._file, self._begin, self._length, self._position = file, begin, end - begin, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, self._length)[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(self._length - self._position, 0)
        self._file.seek(self._begin + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data


def members(path: object, file: Readable, begin: int, end: int) -> Iterator[tuple[str, int, int]]:
    """(name, offset in the file, size) of each plain file in the tar at begin .. end of `file`; checks that it is whole.

    Python's tarfile takes an archive that stops between two members, or goes on after its end, for a whole one. Raises
    UserError, which names `path`. Memory does not grow with the number of members.
    """
    part = _Part(file, begin, end)
    if part.read(6).startswith(_COMPRESSED_MAGIC):
        raise UserError(f"{path}: {NOT_COMPRESSED}")
    part.seek(0)
    latest, after = "its start", 0
    try:
        with tarfile.open(fileobj=part, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # tarfile keeps all that it has seen
                latest, after = f"member {member.name}", member.offset_data + -(-member.size // BLOCK) * BLOCK
                if member.size < 0:  # tarfile would go back, and read the same headers without end
                    raise UserError(f"{path}: {latest} has a size below zero: {TRUNCATED}")
                if member.isdir() or _is_note(member.name):
                    continue
                if not member.isreg() or member.issparse():
                    raise UserError(f"{path}: {latest} is not a plain file; write it with plain files")
                if member.name.startswith("/") or ".." in member.name.split("/"):
                    raise UserError(f"{path}: {latest} would lie outside of its folder; write it with names below it")
                yield member.name, begin + member.offset_data, member.size
    except tarfile.TarError as error:
        raise UserError(f"{path}: after {latest}: {error}: {TRUNCATED}") from None
    _check_end(path, part, latest, after)


def _check_end(path: object, part: _Part, latest: str, after: int) -> None:
    part.seek(after)
    if part.read(len(END_OF_TAR)) != END_OF_TAR:
        raise UserError(f"{path}: after {latest} there is neither a member nor the archive's end: {TRUNCATED}")
    while chunk := part.read(_CHUNK):
        if chunk.count(0) != len(chunk):
            raise UserError(
                f"{path}: there is more after the archive's end (tars joined by cat?); write it as one archive"
            )


def outline(data: TarBytes, found: Iterable[tuple[str, int, int]]) -> str:
    """A hash of a tar, whose `members` are `found`, without what its members hold after their first 1024 bytes: what can be
    known of a tar at a URL without fetching all of it. As hexadecimal digits."""
    digest = hashlib.sha256(f"outline of {len(data)} bytes\n".encode())
    position = 0
    for _, offset, size in found:
        digest.update(data[position : offset + min(size, _BEGINNING)])
        position = offset + size
    digest.update(data[position : len(data)])
    return digest.hexdigest()


def outline_of(path: object, file: IO[bytes]) -> str:
    """The outline of a tar on this machine. Raises UserError, which names `path`, for one that is damaged."""
    with mapped(path, file) as data:
        return outline(data, members(path, file, 0, len(data)))


@contextlib.contextmanager
def mapped(path: object, file: IO[bytes]) -> Iterator[mmap.mmap]:
    """The bytes of a tar on this machine. Raises UserError, which names `path`, for a file that is too short for one."""
    if os.fstat(file.fileno()).st_size < len(END_OF_TAR):
        raise UserError(f"{path}: {TRUNCATED}")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _is_note(name: str) -> bool:
    """Names like __index__ are not samples to webdataset."""
    return "/" not in name and name.startswith("__") and name.endswith("__")
