"""Rows of a csv file, read where they lie: a field of each sample, or numbers that are the sample.

The first line names the columns. Cells are separated by commas, in a .tsv by tabs; quotes are as in RFC 4180.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.npy import npy_header
from bigtrain.data.sources.image_source import FileSource, Member, check_size
from bigtrain.errors import UserError
from bigtrain.untrusted import open_plain

CSV_ENDINGS = (".csv", ".tsv")
_MOST_CELL = 2**24
"""The longest cell, in characters."""
csv.field_size_limit(_MOST_CELL)


class CsvFile(FileSource):
    """A member's name is the first cell of its row; its location (offset, size) in bytes. `column`: the name of the one that is
    read; None: all after the first, as an npy of numbers."""

    kind = "csv"
    columns = 2

    def __init__(self, path: Path, column: str | None) -> None:
        super().__init__(path)
        self._column = column
        self.header = _header(path)
        if len(set(self.header)) < len(self.header):
            raise UserError(f"{path}: two of its columns have one name; its first line must name each")
        if column is not None and column not in self.header:
            raise UserError(f"{path}: has no column {column!r}; it has {', '.join(self.header)}")

    def members(self) -> Iterator[Member]:
        for cells, location in _rows(self.path):
            yield cells[0], location

    def read(self, name: str, location: Sequence[int]) -> bytes:
        cells = self._cells(location)
        if self._column is not None:
            return cells[self.header.index(self._column)].encode(errors="surrogateescape")
        return numbers_as_npy(cells[1:])

    def _cells(self, location: Sequence[int]) -> list[str]:
        offset, size = location
        check_size(size)
        text = self._file.read(offset, size).decode(errors="surrogateescape")
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(self.path)))
        if len(cells) != len(self.header):
            raise Undecodable(f"its row has {len(cells)} cells where the first line has {len(self.header)}")
        return cells


class CsvNumbers(FileSource):
    """Rows of numbers and nothing else, named 00000000 and so on. A location is (offset, size) in bytes."""

    kind = "csv"
    columns = 2

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        first = _header(path)
        self.has_header = not all(map(_is_number, first))
        self._count = len(first)
        self.axes = tuple(first) if self.has_header else ()

    def members(self) -> Iterator[Member]:
        for number, (_, location) in enumerate(_rows(self.path, self.has_header)):
            yield f"{number:08d}", location

    def read(self, name: str, location: Sequence[int]) -> bytes:
        offset, size = location
        check_size(size)
        text = self._file.read(offset, size).decode(errors="surrogateescape").lstrip("\ufeff")
        cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(self.path)))
        if len(cells) != self._count:
            raise Undecodable(f"its row has {len(cells)} cells where the first line has {self._count}")
        return numbers_as_npy(cells)


def numbers_as_npy(cells: Sequence[str]) -> bytes:
    """An npy of float32 [n]. Raises Undecodable for a cell that is no number."""
    try:
        values = np.array([float(cell) for cell in cells], dtype=np.float64)
    except ValueError as error:
        raise Undecodable(f"a row of it has no number: {error}") from None
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    return npy_header(values.dtype, values.shape) + values.tobytes()


def table_of_numbers(data: bytes) -> tuple[np.ndarray, tuple[str, ...]]:
    """(float32 [rows, columns], the names of the columns or ()) of a whole csv file. Raises Undecodable."""
    try:
        rows = [row for row in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline="")) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise Undecodable(f"it is no csv: {error}") from None
    axes = tuple(rows[0]) if rows and not all(map(_is_number, rows[0])) else ()
    numbers = rows[1:] if axes else rows
    if not numbers or len({len(row) for row in numbers}) > 1:
        raise Undecodable("it has no rows, or rows of different lengths")
    try:
        with np.errstate(over="ignore"):
            return np.array([[float(cell) for cell in row] for row in numbers]).astype(np.float32), axes
    except ValueError as error:
        raise Undecodable(f"a row of it has no number: {error}") from None


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _delimiter(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def _header(path: Path) -> list[str]:
    first = next(_records(path), None)
    if first is None:
        raise UserError(f"{path}: is empty; its first line names its columns")
    return first[0]


def _rows(path: Path, has_header: bool = True) -> Iterator[tuple[list[str], tuple[int, int]]]:
    """(cells, (offset, size)) of each row that is not blank, without the header."""
    for number, record in enumerate(_records(path)):
        if record[0] and (number or not has_header):
            yield record


def _records(path: Path) -> Iterator[tuple[list[str], tuple[int, int]]]:
    """(cells, (offset, size)) of each record. Raises UserError for what is no csv."""
    end = 0

    def lines() -> Iterator[str]:
        nonlocal end
        with open_plain(path) as file:
            for line in file:
                end += len(line)
                yield line.decode("utf-8-sig" if end == len(line) else "utf-8", errors="surrogateescape")

    begin = 0
    try:
        for cells in csv.reader(lines(), delimiter=_delimiter(path)):
            yield cells, (begin, end - begin)
            begin = end
    except csv.Error as error:
        raise UserError(f"{path}: no csv at its byte {begin}: {error}; mend it") from None
