"""An early alarm: values that a family watches, and that jump when its training goes wrong.

A family names them with its phases (`Phase.watched`). This warns and does not stop: a jump is a symptom.
"""

import json
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bigtrain.families.family import Phase

ROWS = 10
"""A jump is seen against the median of so many rows before it, and not before there are so many."""


class JumpAlarm:
    """Looks at every logged row; on the main rank."""

    def __init__(self, ratio: float | None, metrics: Path, watched: Mapping[str, str]) -> None:
        """`ratio`: warn when a value is so many times the median of the last rows; None: never. `metrics`: what the run has
        logged so far, so that a resumed run says what it would have said. `watched`: by their names in a row, what a jump of
        each means."""
        self._ratio, self._watched = ratio, watched
        self._history: dict[str, deque[float]] = {}
        self._raised: set[str] = set()
        if ratio is not None and watched and metrics.exists():
            for line in metrics.read_text(encoding="utf-8").splitlines():
                self.look(json.loads(line))

    def look(self, row: Mapping[str, float]) -> list[str]:
        """What this row gives reason to say: once when a value jumps, and again only after it has come down."""
        if self._ratio is None:
            return []
        said = []
        for name in self._watched.keys() & row.keys():
            value = row[name]
            history = self._history.setdefault(name, deque(maxlen=ROWS))
            usual = median(history) if len(history) == ROWS else None
            jumped = usual is not None and value > self._ratio * usual
            if jumped and name not in self._raised:
                times = value / (usual or 1)
                said.append(f"{name} is {value:.4g}, {times:.1f} times what it was: {self._watched[name]}")
            (self._raised.add if jumped else self._raised.discard)(name)
            history.append(value)
        return sorted(said)


def watched_values(phases: Sequence[Phase]) -> dict[str, str]:
    """What the phases watch, by the name of each value in a row."""
    return {f"{phase.name}/{name}": meaning for phase in phases for name, meaning in phase.watched.items()}
