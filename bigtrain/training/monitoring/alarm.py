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
FALLEN, EVALUATIONS = 0.8, 3
"""A number that is below this share of its best in so many evaluations has fallen. In fewer it varies as much: before a GAN on
points makes good ones, the modes that its samples touch come and go."""


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
        self._below_until = dict.fromkeys(limits, 0)
        """The step of the last row in which the value was below its limit."""
        self._raised: set[str] = set()
        for row in _rows(metrics) if limits else ():
            self.look(row)

    def look(self, row: Mapping[str, Any]) -> list[str]:
        """The warnings for this row: one in the whole run for each value."""
        warnings = []
        for name, limit in self._limits.items():
            value, step = row.get(name), row.get("step")
            if type(value) is not float or type(step) is not int or name in self._raised:
                continue
            if value < limit.value:
                self._below_until[name] = step
            elif (steps := step - self._below_until[name]) >= limit.steps:
                self._raised.add(name)
                warnings.append(
                    f"{name} is {value:.4g}, and was at least {limit.value:.4g} in the last {steps} steps: {limit.meaning}"
                )
        return warnings


class FallAlarm:
    """Checks every evaluation for numbers that have fallen and stay so."""

    def __init__(self, evaluations: Sequence[Path], falling: Mapping[str, str]) -> None:
        """`evaluations`: the files of the evaluations so far. `falling`: what a fall of each number means; a number of some
        features (recall_dinov2) is one of that name (recall)."""
        self._falling = falling
        self._best: dict[str, float] = {}
        self._below: dict[str, int] = {}
        for path in evaluations if falling else ():
            self.look(_content(path))

    def look(self, values: Mapping[str, Any]) -> list[str]:
        """The warnings for this evaluation: one in the whole run for each number."""
        warnings = []
        for name, value in values.items():
            if name.split("_")[0] not in self._falling or type(value) not in (int, float) or not math.isfinite(value):
                continue
            best, below = self._best.get(name, 0.0), self._below.get(name, 0)
            if below < EVALUATIONS:
                self._below[name] = below + 1 if value < FALLEN * best else 0
                if self._below[name] == EVALUATIONS:
                    meaning = self._falling[name.split("_")[0]]
                    warnings.append(
                        f"{name} is {value:.4g}, and was below {FALLEN:.0%} of its best, {best:.4g}, in the last "
                        f"{EVALUATIONS} evaluations: {meaning}"
                    )
            self._best[name] = max(value, best)
        return warnings


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
