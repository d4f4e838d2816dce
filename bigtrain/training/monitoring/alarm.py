"""Early warnings: values that a family watches, because they jump, fall or stay high when training goes wrong.

A family names them with its phases (`Phase.watched`, `Phase.limits`) and itself (`Family.falling`). These warn and do not stop:
what they see is a symptom. All are on the main rank, and see only what is logged anyway.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bigtrain.families.phases import Limit, Phase
from bigtrain.untrusted import parse_json, read_json

ROWS = 10
"""A value is compared with the median of this many rows before it, once there are that many."""


class JumpAlarm:
    """Checks every logged row for values that jump."""

    def __init__(self, ratio: float | None, metrics: Path, watched: Mapping[str, str]) -> None:
        """`ratio`: warn when a value is this many times the median of the last rows; None: never. `metrics`: the file of rows
        logged so far, so that a resumed run gives the same warnings. `watched`: names of values in a row, and what a jump of
        each means."""
        self._ratio, self._watched = ratio, watched
        self._history: dict[str, deque[float]] = {}
        self._raised: set[str] = set()
        if ratio is not None and watched:
            for row in _rows(metrics):
                self.look(row)

    def look(self, row: Mapping[str, Any]) -> list[str]:
        """The warnings for this row: one when a value jumps, and another only after it has come down."""
        if self._ratio is None:
            return []
        warnings = []
        for name in self._watched.keys() & row.keys():
            value = row[name]
            if type(value) is not float:  # in a file that is not as it was written
                continue
            history = self._history.setdefault(name, deque(maxlen=ROWS))
            usual = median(history) if len(history) == ROWS else None
            jumped = usual is not None and value > self._ratio * usual
            if jumped and name not in self._raised:
                times = value / (usual or 1)
                warnings.append(f"{name} is {value:.4g}, {times:.1f} times what it was: {self._watched[name]}")
            (self._raised.add if jumped else self._raised.discard)(name)
            history.append(value)
        return sorted(warnings)


class LimitAlarm:
    """Checks every logged row for values that stay high."""

    def __init__(self, metrics: Path, limits: Mapping[str, Limit]) -> None:
        """`metrics`: the file of rows logged so far. `limits`: by the names of values in a row."""
        self._limits = limits
        self._above = dict.fromkeys(limits, 0)
        for row in _rows(metrics) if limits else ():
            self.look(row)

    def look(self, row: Mapping[str, Any]) -> list[str]:
        """The warnings for this row: one in the whole run for each value."""
        warnings = []
        for name, limit in self._limits.items():
            value, above = row.get(name), self._above[name]
            if type(value) is not float or above >= limit.rows:
                continue
            self._above[name] = above + 1 if value >= limit.value else 0
            if self._above[name] == limit.rows:
                warnings.append(
                    f"{name} is {value:.4g}, and was at least {limit.value:.4g} in the last {limit.rows} rows: {limit.meaning}"
                )
        return warnings


class FallAlarm:
    """Checks every evaluation for numbers that fall."""

    def __init__(
        self, ratio: float | None, metrics: Path, evaluations: Sequence[Path], falling: Mapping[str, str]
    ) -> None:
        """`ratio`: warn when a number is this many times below its best; None: never. `metrics`: the file of rows and warnings
        so far; `evaluations`: the files of the evaluations so far. `falling`: what a fall of each number means; a number of
        some features (recall_dinov2) is one of that name (recall)."""
        self._ratio, self._falling = ratio, falling
        self._best: dict[str, float] = {}
        self._raised: set[str] = set()
        if ratio is None or not falling:
            return
        said = [row["warning"] for row in _rows(metrics) if isinstance(row.get("warning"), str)]
        self._raised = {text.split(" is ")[0] for text in said if " times below its best" in text}
        for path in evaluations:
            self._keep_best(_content(path))

    def look(self, values: Mapping[str, float]) -> list[str]:
        """The warnings for this evaluation: one in the whole run for each number."""
        warnings = []
        for name, value in self._watched(values):
            best = self._best.get(name, 0.0)
            if self._ratio is not None and value < best / self._ratio and name not in self._raised:
                self._raised.add(name)
                meaning = self._falling[name.split("_")[0]]
                warnings.append(
                    f"{name} is {value:.4g}, more than {self._ratio:.4g} times below its best, {best:.4g}: {meaning}"
                )
        self._keep_best(values)
        return warnings

    def _keep_best(self, values: Mapping[str, Any]) -> None:
        for name, value in self._watched(values):
            self._best[name] = max(value, self._best.get(name, 0.0))

    def _watched(self, values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for name, value in values.items():
            if name.split("_")[0] in self._falling and type(value) is float and math.isfinite(value):
                yield name, value


def _rows(metrics: Path) -> Iterator[Mapping[str, Any]]:
    """Those of metrics.jsonl, if there is one."""
    if metrics.exists():
        for line in metrics.read_bytes().splitlines():
            yield parse_json(line)


def _content(path: Path) -> Mapping[str, Any]:
    """Of an evaluation's file; nothing if it is not as it was written."""
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def watched_values(phases: Sequence[Phase]) -> dict[str, str]:
    """The values that the phases watch, by their names in a row, and what a jump of each means."""
    return {f"{phase.name}/{name}": meaning for phase in phases for name, meaning in phase.watched.items()}


def limits_of(phases: Sequence[Phase]) -> dict[str, Limit]:
    """The limits of the phases' losses, by the names of the values in a row."""
    return {f"loss/{phase.name}/{term}": limit for phase in phases for term, limit in phase.limits.items()}
