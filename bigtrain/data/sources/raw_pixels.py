"""A file of raw pixels in records of one length, as idx and CIFAR's binary files are."""

import functools
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.image_source import MOST_BYTES, FileSource, Member
from bigtrain.errors import UserError
from bigtrain.untrusted import read_plain

_MOST_FILE = 2**34
"""Bytes of the largest file that is read whole."""


@dataclass(frozen=True)
class Records:
    """How pixels lie in a file: `header` bytes, and then every `record` bytes an image, at the end of its record.

    shape: (height, width, channels); planar: whether one channel comes after the other.
    """

    shape: tuple[int, int, int]
    planar: bool
    header: int
    record: int


class RawPixels(FileSource):
    """A location is (offset,) in bytes. Images are read as PNG files."""

    kind = "pixels"
    columns = 1

    def __init__(self, path: Path, records: Records) -> None:
        super().__init__(path)
        self._records = records

    def members(self) -> Iterator[Member]:
        """By number, "FILE/00000000" and so on."""
        records = self._records
        first = records.header + records.record - int(np.prod(records.shape))
        length = len(content(self.path)) if self.path.suffix == ".gz" else self.path.stat().st_size
        for number in range((length - records.header) // records.record):
            yield f"{self.path.name}/{number:08d}", (first + number * records.record,)

    def read(self, name: str, location: Sequence[int]) -> bytes:
        (offset,) = location
        (height, width, channels), size = self._records.shape, int(np.prod(self._records.shape))
        packed = self.path.suffix == ".gz"
        data = _unpacked(self.path)[offset : offset + size] if packed else self._file.read(offset, size)
        values = np.frombuffer(data, dtype=np.uint8)
        if self._records.planar:
            image = values.reshape(channels, height, width).transpose(1, 2, 0)
        else:
            image = values.reshape(height, width, channels)
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if channels == 1 else np.ascontiguousarray(image)).save(file, format="PNG")
        return file.getvalue()


def content(path: Path) -> bytes:
    """A whole file's bytes, unpacked if it is a .gz. Raises UserError if that is damaged."""
    try:
        return _unpacked(path) if path.suffix == ".gz" else read_plain(path, _MOST_FILE)
    except Undecodable as error:
        raise UserError(f"{error}; download it again") from None


@functools.lru_cache(maxsize=2)
def _unpacked(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a .gz holds. Raises Undecodable if it is damaged or holds more than `most` bytes."""
    try:
        with gzip.open(path) as file:
            data = file.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Undecodable(f"{path}: {error}") from None
    if len(data) > most:
        raise Undecodable(f"{path}: unpacks to more than {most} bytes")
    return data
