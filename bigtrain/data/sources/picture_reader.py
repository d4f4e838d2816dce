"""Reading one picture of a set, wherever it lies: a file, a part of an archive, raw pixels, a value of a database."""

import contextlib
import functools
import gzip
import io
import os
import stat
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.pictures import STORED, Pictures
from bigtrain.errors import UserError

MOST_BYTES = 2**28
"""A larger picture file is refused before any memory is taken for it (a zip bomb, or a damaged header)."""
_LOCAL_HEADER = 30
"""Bytes before the name and the extra field of a zip's member."""


class PictureReader:
    """Reads pictures by number. Opens archives and databases when they are first read; `close()` it."""

    def __init__(self, pictures: Pictures) -> None:
        self.pictures = pictures
        self._opened = contextlib.ExitStack()
        self._descriptors: dict[Path, int] = {}
        self._databases: dict[Path, Any] = {}

    def close(self) -> None:
        self._opened.close()

    def read(self, number: int) -> bytes:
        """The picture file's bytes. Raises Undecodable, OSError, or UserError where a package is missing."""
        pictures = self.pictures
        path = pictures.file(number)
        if pictures.kind == "files":
            facts = path.stat()
            if not stat.S_ISREG(facts.st_mode):  # a pipe or a device has no end, or no beginning
                raise Undecodable("it is not a plain file")
            if facts.st_size > MOST_BYTES:
                raise Undecodable(f"the file has more than {MOST_BYTES} bytes")
            return path.read_bytes()
        if pictures.kind == "lmdb":
            return self._value(path, pictures.names[number].rpartition("/")[2])
        assert pictures.places is not None
        _, offset, size, packed, checksum = map(int, pictures.places[number])
        if max(size, packed) > MOST_BYTES:
            raise Undecodable(f"it unpacks to {size} bytes from {packed}, and {MOST_BYTES} are the most")
        if pictures.kind == "pixels":
            return self._pixels(path, offset, size)
        data = self._bytes(path, offset, size) if packed == STORED else self._zipped(path, offset, size, packed)
        if checksum != STORED and zlib.crc32(data) != checksum:
            raise Undecodable("its checksum in the archive is another")
        return data

    def _bytes(self, path: Path, offset: int, size: int) -> bytes:
        if path not in self._descriptors:
            self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self._opened.callback(os.close, self._descriptors[path])
        data = os.pread(self._descriptors[path], size, offset)
        if len(data) != size:
            raise Undecodable("the file ends within it")
        return data

    def _zipped(self, path: Path, offset: int, size: int, packed: int) -> bytes:
        """A zip's member by its local header. `packed` 0 or more: deflated, whose output is bounded by `size`."""
        header = self._bytes(path, offset, _LOCAL_HEADER)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        stored = int.from_bytes(header[8:10], "little") == 0
        if header[:4] != b"PK\x03\x04" or (stored and packed != size):
            raise Undecodable("the zip is damaged where it should begin")
        data = self._bytes(path, offset + _LOCAL_HEADER + name + extra, packed)
        if stored:
            return data
        try:
            unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
        except zlib.error as error:
            raise Undecodable(f"the zip is damaged: {error}") from None
        if len(unpacked) != size:
            raise Undecodable(f"it does not unpack to the {size} bytes that the zip says")
        return unpacked

    def _pixels(self, path: Path, offset: int, size: int) -> bytes:
        """Raw pixels as a PNG file."""
        assert self.pictures.pixels is not None
        (height, width, channels), planar = self.pictures.pixels.shape, self.pictures.pixels.planar
        data = unpacked_file(path)[offset : offset + size] if path.suffix == ".gz" else self._bytes(path, offset, size)
        values = np.frombuffer(data, dtype=np.uint8)
        if planar:
            image = values.reshape(channels, height, width).transpose(1, 2, 0)
        else:
            image = values.reshape(height, width, channels)
        file = io.BytesIO()
        Image.fromarray(image.squeeze(2) if channels == 1 else np.ascontiguousarray(image)).save(file, format="PNG")
        return file.getvalue()

    def _value(self, path: Path, key: str) -> bytes:
        if path not in self._databases:
            self._databases[path] = self._opened.enter_context(open_database(path))
        with self._databases[path].begin() as transaction:
            data = transaction.get(bytes.fromhex(key))
        if data is None:
            raise Undecodable("the database has it no more")
        return bytes(data)


@functools.lru_cache(maxsize=2)
def unpacked_file(path: Path, most: int = MOST_BYTES) -> bytes:
    """What a .gz holds. Raises Undecodable if it is damaged or holds more than `most` bytes."""
    try:
        with gzip.open(path) as file:
            data = file.read(most + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Undecodable(f"{path}: {error}") from None
    if len(data) > most:
        raise Undecodable(f"{path}: unpacks to more than {most} bytes")
    return data


def open_database(path: Path) -> Any:
    """An LMDB environment, read only. Raises UserError without the package, or if it is none."""
    try:
        import lmdb
    except ImportError:
        raise UserError(
            f"{path}: LMDB needs the package lmdb: pip install 'bigtrain[lmdb]'; or unpack it to a folder CLASS/*.webp"
        ) from None
    try:
        return lmdb.open(str(path), readonly=True, lock=False, readahead=False, subdir=path.is_dir())
    except lmdb.Error as error:
        raise UserError(f"{path}: not an LMDB database: {error}") from None
