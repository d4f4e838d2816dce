"""Tars that others made, on this machine or at URLs, as they are indexed.

A tar at a URL is read in parts: its headers, its labels, of JPEGs their beginnings and of large PNGs both ends. Where the far
side gives no parts, all of it is fetched, and not kept.
"""

import contextlib
import os
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bigtrain.data.decode import Undecodable, header_shape, may_be_turned
from bigtrain.data.remote import Origin, receive, shown
from bigtrain.data.remote_file import NoParts, RemoteFile
from bigtrain.data.tars import Readable, TarBytes, mapped
from bigtrain.errors import UserError
from bigtrain.runs.atomic import cache_folder
from bigtrain.untrusted import open_plain

_BEGINNING = 2**13
"""Bytes of a JPEG that nearly always say its size."""
_END = 2**16
"""Bytes behind a PNG's pixels that are searched for how it is turned, which a JPEG says at its beginning."""
_JPEG, _PNG = b"\xff\xd8", b"\x89PNG"


@dataclass(frozen=True)
class OpenTar:
    """sha256: None if nobody has told it; is_whole: whether all bytes are here, so that it can be measured."""

    file: Readable
    data: TarBytes
    sha256: str | None = None
    is_whole: bool = True

    def picture(self, offset: int, size: int) -> bytes:
        """A member, or as much of it as tells the shape of its picture."""
        if not self.is_whole:
            beginning = self.data[offset : offset + min(size, _BEGINNING)]
            with contextlib.suppress(Undecodable):
                if beginning.startswith(_JPEG) and header_shape(beginning):
                    return beginning
                if beginning.startswith(_PNG) and size > _BEGINNING + _END and header_shape(beginning):
                    ends = beginning + self.data[offset + size - _END : offset + size]
                    if not may_be_turned(ends):
                        return ends
        return self.data[offset : offset + size]


class TarInput(ABC):
    """A tar to index."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Its file's name, or a longer one if that is not unique."""

    @property
    @abstractmethod
    def size(self) -> int:
        """In bytes, 0 if nobody has said."""

    @abstractmethod
    def open(self) -> contextlib.AbstractContextManager[OpenTar]:
        """Raises UserError for a tar that cannot be read, and OSError of this machine."""

    @abstractmethod
    def name_from(self, out: Path) -> str:
        """What an index in the folder `out` calls it."""


@dataclass(frozen=True)
class LocalTar(TarInput):
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def size(self) -> int:
        return self.path.stat().st_size

    @contextlib.contextmanager
    def open(self) -> Iterator[OpenTar]:
        with open_plain(self.path) as file, mapped(self, file) as data:
            yield OpenTar(file, data)

    def name_from(self, out: Path) -> str:
        return os.path.relpath(self.path, out)


@dataclass(frozen=True)
class RemoteTar(TarInput):
    """origin: where the user, or a list, named it; told_size, sha256: what the far side tells of it; gives_parts: whether it
    can be read in parts."""

    url: str
    origin: Origin
    name: str = ""
    told_size: int = 0
    sha256: str | None = None
    gives_parts: bool = True

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def size(self) -> int:
        return self.told_size

    @contextlib.contextmanager
    def open(self) -> Iterator[OpenTar]:
        with _scratch_file() as file:
            if not self.gives_parts:
                receive(self.url, file, self.origin, "the shard")
                with mapped(self, file) as data:
                    yield OpenTar(file, data)
                return
            try:
                remote = RemoteFile(self.url, self.origin, file, self.told_size or None)
            except NoParts:
                raise UserError(f"{self}: the server gives no parts of this file, though it does of others") from None
            with remote:
                yield OpenTar(remote, remote, self.sha256, is_whole=False)

    def name_from(self, out: Path) -> str:
        return self.url


def _scratch_file() -> IO[bytes]:
    """A file without a name, which is gone with this process. Raises UserError."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as error:
        raise UserError(
            f"{folder}: cannot be written: {error.strerror}; set BIGTRAIN_CACHE to a folder that can be written"
        ) from None
