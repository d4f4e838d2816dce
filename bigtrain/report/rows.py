"""The rows of metrics.jsonl as columns, read in bounded memory."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from bigtrain.errors import UserError
from bigtrain.untrusted import one_line, open_plain

MOST_BYTES = 2**30
MOST_ROWS = 5_000_000
MOST_NAMES = 400
"""Curves of a run; a run has some twenty."""
MOST_WARNINGS = 10_000
LONGEST_NAME = 120
_BLOCK = 2**23
"""Bytes that are read at a time."""
_LONGEST_LINE = 2**20
_LARGEST_STEP = 2**53
"""Up to which float64 holds every integer."""
AXES = ("step", "images", "wall")
"""Keys of a row over which the others are drawn."""


@dataclass(frozen=True)
class Warned:
    step: int
    text: str


@dataclass(frozen=True)
class Rows:
    """n rows in the order of their steps. `axes`: float64 [n] of each of AXES, NaN where a row lacks it; `warnings`: rows of
    their own; `broken`: lines that are no rows; `left_out`: names beyond MOST_NAMES; `not_finite`: by name, how many values
    are NaN or infinite, and the step of the first."""

    axes: Mapping[str, np.ndarray]
    warnings: Sequence[Warned]
    warnings_left_out: int
    broken: int
    left_out: int
    not_finite: Mapping[str, tuple[int, int]]
    _parts: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]]
    _order: np.ndarray

    def __len__(self) -> int:
        return len(self._order)

    @property
    def names(self) -> list[str]:
        return list(self._parts)

    def column(self, name: str) -> np.ndarray:
        """float64 [n]; NaN where a row has no finite value of this name."""
        values = np.full(len(self), np.nan)
        for numbers, part in self._parts[name]:
            values[numbers] = part
        values[~np.isfinite(values)] = np.nan
        return values[self._order]


def read_rows(path: Path) -> Rows:
    """Raises OSError, and UserError for a file that is larger than any run's."""
    reading = _Reading()
    with open_plain(path) as file:
        for lines in _blocks(file, path):
            reading.add(lines)
            if reading.count > MOST_ROWS:
                raise UserError(f"{path}: holds more than {MOST_ROWS} rows, which is more than a page can show")
    return reading.rows()


def _blocks(file: Any, path: Path) -> Iterator[list[bytes]]:
    """The lines, some at a time; what has no line break in _LONGEST_LINE bytes is cut off there."""
    rest, size = b"", 0
    while block := file.read(_BLOCK):
        size += len(block)
        if size > MOST_BYTES:
            raise UserError(f"{path}: holds more than {MOST_BYTES // 2**20} MiB, which is more than a page can show")
        *lines, rest = (rest + block).split(b"\n")
        rest = rest[:_LONGEST_LINE]
        yield lines
    if rest:
        yield [rest]


@dataclass
class _Reading:
    count: int = 0
    broken: int = 0
    warned: list[Warned] = field(default_factory=list)
    warnings: int = 0
    parts: dict[str, list[tuple[np.ndarray, np.ndarray]]] = field(default_factory=dict)
    unnamed: set[str] = field(default_factory=set)

    def add(self, lines: Sequence[bytes]) -> None:
        """Rows with the same keys, which nearly all of a run's are, become columns at once."""
        alike: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
        for line in lines:
            row = _row(line)
            if row is None:
                self.broken += bool(line.strip())
            elif "warning" in row:
                self._warn(row)
            else:
                alike.setdefault(tuple(row), []).append(row)
        for keys, rows in alike.items():
            table = _table(rows)
            numbers = np.arange(self.count, self.count + len(rows))
            self.count += len(rows)
            for key, values in zip(keys, table.T, strict=True):
                self._keep(key, numbers, values)

    def _keep(self, key: str, numbers: np.ndarray, values: np.ndarray) -> None:
        if key not in self.parts and len(self.parts) >= MOST_NAMES + len(AXES):
            if len(self.unnamed) < MOST_NAMES:
                self.unnamed.add(key)
            return
        self.parts.setdefault(key, []).append((numbers, values.copy()))

    def _warn(self, row: Mapping[str, Any]) -> None:
        self.warnings += 1
        if len(self.warned) < MOST_WARNINGS:
            self.warned.append(Warned(row["step"], one_line(str(row["warning"]))))

    def rows(self) -> Rows:
        axes = {}
        for name in AXES:
            axes[name] = np.full(self.count, np.nan)
            for numbers, values in self.parts.pop(name, []):
                axes[name][numbers] = values
        order = np.argsort(axes["step"], kind="stable")
        return Rows(
            {name: values[order] for name, values in axes.items()},
            sorted(self.warned, key=lambda warned: warned.step),
            self.warnings - len(self.warned),
            self.broken,
            len(self.unnamed),
            _not_finite(self.parts, axes["step"]),
            self.parts,
            order,
        )


def _row(line: bytes) -> dict[str, Any] | None:
    """What a line says; None if it is no row of ours, such as the half of one that a running training has written."""
    try:
        row = from_json(line)  # three times as fast as json, and bounded in depth
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return row if type(step) is int and 0 <= step < _LARGEST_STEP else None


def _table(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """float64 [rows, keys]; NaN for what is no number."""
    values = chain.from_iterable(row.values() for row in rows)
    try:
        flat = np.fromiter(values, np.float64, len(rows) * len(rows[0]))
    except (TypeError, ValueError, OverflowError):
        flat = np.array([_number(value) for row in rows for value in row.values()])
    return flat.reshape(len(rows), -1)


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, int | float) else np.nan
    except OverflowError:
        return np.nan


def _not_finite(
    parts: Mapping[str, Sequence[tuple[np.ndarray, np.ndarray]]], steps: np.ndarray
) -> dict[str, tuple[int, int]]:
    found = {}
    for name, pieces in parts.items():
        wrong = np.concatenate([numbers[~np.isfinite(values)] for numbers, values in pieces])
        if len(wrong):
            found[name] = (len(wrong), int(steps[wrong].min()))
    return found


def shown(name: str) -> str:
    """A name as it may be shown: on one line, and not longer than LONGEST_NAME."""
    name = one_line(name)
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "…"
