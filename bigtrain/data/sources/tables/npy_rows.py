"""One npy whose first dimension counts the samples."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bigtrain.data.npy import npy_header, read_npy_header
from bigtrain.data.sources.image_source import FileSource, Member
from bigtrain.errors import UserError
from bigtrain.untrusted import open_plain

_LONGEST_HEADER = 2**16


class NpyRows(FileSource):
    """Rows are named 00000000 and so on. A location is (number,); a row is read as an npy of its own. Nothing is unpickled."""

    kind = "npy"
    columns = 1

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open_plain(path) as file:
            head = file.read(_LONGEST_HEADER)
        try:
            self._dtype, shape, self._begin = read_npy_header(head)
        except ValueError as error:
            raise UserError(f"{path}: {error}; save the array again by numpy.save") from None
        if self._dtype.kind not in "fiu" or not shape or not math.prod(shape):
            raise UserError(f"{path}: holds {self._dtype} {shape}, not numbers [samples, ...]")
        self._count, self._shape = shape[0], shape[1:] or (1,)
        self._row = math.prod(self._shape) * self._dtype.itemsize
        size, wanted = path.stat().st_size, self._begin + self._count * self._row
        if size != wanted:
            raise UserError(f"{path}: has {size} bytes, not the {wanted} that its header says; copy it here again")

    def members(self) -> Iterator[Member]:
        for number in range(self._count):
            yield f"{number:08d}", (number,)

    def read(self, name: str, location: Sequence[int]) -> bytes:
        (number,) = location
        return npy_header(np.dtype(self._dtype), self._shape) + self._file.read(
            self._begin + number * self._row, self._row
        )
