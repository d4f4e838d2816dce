"""Few points of many rows, such that no minimum and no maximum is lost."""

from dataclasses import dataclass

import numpy as np

POINTS = 700
"""Points of a curve: as many as a chart has pixels across."""


@dataclass(frozen=True)
class Bins:
    """n rows in order, divided into at most POINTS groups of neighbours. `edges`: int64 [groups + 1]."""

    edges: np.ndarray

    @classmethod
    def of(cls, rows: int, points: int = POINTS) -> "Bins":
        return cls(np.linspace(0, rows, min(rows, points) + 1).round().astype(np.int64))

    @property
    def are_rows(self) -> bool:
        """Whether each group is a single row."""
        return len(self.edges) - 1 == self.edges[-1]

    def first(self, values: np.ndarray) -> np.ndarray:
        return values[self.edges[:-1]]

    def last(self, values: np.ndarray) -> np.ndarray:
        return values[self.edges[1:] - 1]

    def minimum(self, values: np.ndarray) -> np.ndarray:
        """[groups]; NaN for a group without a number."""
        return self._reduced(np.fmin, values)

    def maximum(self, values: np.ndarray) -> np.ndarray:
        return self._reduced(np.fmax, values)

    def mean(self, values: np.ndarray) -> np.ndarray:
        is_number = ~np.isnan(values)
        counts = self._reduced(np.add, is_number.astype(np.float64))
        sums = self._reduced(np.add, np.where(is_number, values, 0.0))
        return np.divide(sums, counts, out=np.full(len(counts), np.nan), where=counts > 0)

    def _reduced(self, ufunc: np.ufunc, values: np.ndarray) -> np.ndarray:
        return ufunc.reduceat(values, self.edges[:-1]) if len(values) else np.empty(0)
