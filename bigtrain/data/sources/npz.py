"""An npz of samples, as guided-diffusion writes it and public evaluators read it."""

import io
import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.collection import ImageCollection, file_key
from bigtrain.data.sources.image_source import PositionedFile
from bigtrain.data.sources.zip import Zip
from bigtrain.errors import UserError

_SAMPLES, _LABELS = "arr_0.npy", "arr_1.npy"
_MOST_ROW = 3 * 2**27
"""Bytes of one image."""
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DAMAGE = (Undecodable, zipfile.BadZipFile, zlib.error, EOFError, OSError)


class NpzSamples(ImageCollection):
    """`arr_0`, uint8 [N, H, W, 3], or grey [N, H, W, 1], which is read as three equal channels, as from other files; and where
    samples have classes `arr_1`, integers [N]. Compressed or not.

    An image of an uncompressed file is one positioned read; a compressed one is unpacked up to it, forwards.
    """

    kind = "npz"

    def __init__(self, path: Path) -> None:
        self.path, self.key = path, file_key(path)
        archive = Zip(path)
        members = dict(archive.members())
        if _SAMPLES not in members:
            raise UserError(f"{path}: holds {', '.join(members)}, and no samples: arr_0, uint8 [N, H, W, 3 or 1]")
        shape, self._header = self._read_header()
        self.count, self._shape, self._row = shape[0], shape[1:], math.prod(shape[1:])
        _, size, *_ = members[_SAMPLES]
        if size != self._header + self.count * self._row:
            raise UserError(f"{path}: arr_0 announces {self.count} images and holds another number; copy it here again")
        self._file = PositionedFile(path)
        self._stream: tuple[int, IO[bytes]] | None = None
        try:
            self._begin, self._stored = archive.data(members[_SAMPLES])
            if _LABELS in members:
                self.labels = self._checked_labels(archive.read(_LABELS, members[_LABELS]))
        except _DAMAGE as error:
            raise UserError(f"{path}: the zip is damaged: {error}; copy it here again") from None
        finally:
            archive.close()

    def _read_header(self) -> tuple[tuple[int, ...], int]:
        """(shape of the samples, bytes before them). numpy parses a literal here and unpickles nothing."""
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(_SAMPLES) as member:
                version = np.lib.format.read_magic(member)
                shape, fortran, dtype = _HEADERS[version](member)
                begin = member.tell()
        except (ValueError, KeyError, SyntaxError, *_DAMAGE) as error:
            raise UserError(f"{self.path}: arr_0 is damaged: {error}; copy it here again") from None
        if dtype.hasobject:
            raise UserError(
                f"{self.path}: arr_0 holds pickled objects, which are never read; save uint8 [N, H, W, 3 or 1]"
            )
        if shape and not shape[0]:
            raise UserError(f"{self.path}: arr_0 holds no samples; write them again")
        if dtype != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or not math.prod(shape):
            raise UserError(f"{self.path}: arr_0 is {dtype} {list(shape)}, where samples are uint8 [N, H, W, 3 or 1]")
        if math.prod(shape[1:]) > _MOST_ROW:
            raise UserError(f"{self.path}: arr_0 has images of {shape[1]} x {shape[2]}, which is too many pixels")
        return shape, begin

    def _checked_labels(self, data: bytes) -> np.ndarray:
        try:
            # Before the array is made: a header may state any size.
            shape = _HEADERS[np.lib.format.read_magic(stream := io.BytesIO(data))](stream)[0]
            if shape != (self.count,):
                raise UserError(f"{self.path}: arr_1 is {list(shape)}, not {self.count} class numbers")
            labels = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
        except UserError:
            raise
        except (ValueError, KeyError, SyntaxError):
            raise UserError(
                f"{self.path}: arr_1 holds pickled objects, which are never read; save labels as integers"
            ) from None
        if labels.shape != (self.count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(
                f"{self.path}: arr_1 is {labels.dtype} {list(labels.shape)}, not {self.count} class numbers"
            )
        return labels.astype(np.int64)

    def image(self, number: int) -> np.ndarray:
        begin = self._header + number * self._row
        try:
            data = self._file.read(self._begin + begin, self._row) if self._stored else self._unpacked(begin)
        except _DAMAGE as error:
            raise UserError(f"{self.path}: arr_0 is damaged at image {number}: {error}; copy it here again") from None
        pixels = np.frombuffer(bytearray(data), np.uint8).reshape(self._shape)
        return pixels if self._shape[2] == 3 else pixels.repeat(3, axis=2)

    def _unpacked(self, begin: int) -> bytes:
        """Each process has a stream of its own: one that they shared would share its position in the file."""
        if self._stream is None or self._stream[0] != os.getpid():
            archive = zipfile.ZipFile(self.path)
            self._stream = os.getpid(), archive.open(_SAMPLES)
        stream = self._stream[1]
        stream.seek(begin)
        data = stream.read(self._row)
        if len(data) != self._row:
            raise Undecodable("the file ends within it")
        return data

    def name(self, number: int) -> str:
        return f"arr_0[{number}]"
