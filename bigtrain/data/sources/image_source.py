"""What holds image files: a folder, an archive, a file of raw pixels, a database; listed once, then read at random.

Nothing is unpacked to disk and nothing is unpickled or executed, whoever made the files.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, ClassVar

from bigtrain.data.decode import Undecodable
from bigtrain.untrusted import open_plain

MOST_BYTES = 2**28
"""A larger image file is refused before any memory is taken for it (a zip bomb, or a damaged header)."""
Member = tuple[str, tuple[int, ...]]
"""(name, location) of one file; only its source knows what the numbers of a location mean."""
Tick = Callable[[int], object]
"""Called with the number of members newly found, for a progress bar."""


class ImageSource(ABC):
    """One container. Can be pickled; files are opened when they are first read, and anew after `close`."""

    kind: ClassVar[str]
    columns: ClassVar[int]
    """Integers of a location."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def members(self) -> Iterator[Member]:
        """Every file in it that is not hidden, names relative to it. Raises UserError, which names the path, for a container
        that is damaged or has members that are no plain files below it; OSError if it cannot be read."""

    @abstractmethod
    def read(self, name: str, location: Sequence[int]) -> bytes:
        """A member's content, at most MOST_BYTES. Raises Undecodable if it is damaged, OSError if it cannot be read."""

    def shown(self, name: str) -> str:
        """Where a member is, for messages."""
        return f"{self.path}: {name}"

    @abstractmethod
    def close(self) -> None:
        """Closes what was opened for reading."""


class PositionedFile:
    """Reads of a file at any position. Processes may share it: it has no position of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __reduce__(self) -> tuple[type["PositionedFile"], tuple[Path]]:
        return PositionedFile, (self._path,)

    def read(self, offset: int, size: int) -> bytes:
        """Raises Undecodable if the file ends before `offset` + `size`; OSError."""
        if self._file is None:
            self._file = open_plain(self._path)
        data = os.pread(self._file.fileno(), size, offset)
        if len(data) != size:
            raise Undecodable("the file ends within it")
        return data

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


class FileSource(ImageSource):
    """A container that is one file."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._file = PositionedFile(path)

    def close(self) -> None:
        self._file.close()


def check_size(size: int) -> None:
    """Raises Undecodable for more than MOST_BYTES."""
    if size > MOST_BYTES:
        raise Undecodable(f"it has {size} bytes, more than {MOST_BYTES}")


def is_hidden(name: str) -> bool:
    """Whether a file or a folder above it is hidden, as `.DS_Store` is, or is what macOS packs beside each file."""
    path = f"/{name}/"
    return "/." in path or "/__MACOSX/" in path
