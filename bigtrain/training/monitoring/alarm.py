"""An early warning: values that a family watches, because they jump when training goes wrong.

A family names them with its phases (`Phase.watched`). This warns and does not stop: a jump is a symptom.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

from bigtrain.families.phases import Phase
from bigtrain.untrusted import parse_json

ROWS = 10
"""A value is compared with the median of this many rows before it, once there are that many."""


class JumpAlarm:
    """Checks every logged row; on the main rank."""

    def __init__(self, ratio: float | None, metrics: Path, watched: Mapping[str, str]) -> None:
        """`ratio`: warn when a value is this many times the median of the last rows; None: never. `metrics`: the file of rows
        logged so far, so that a resumed run gives the same warnings. `watched`: names of values in a row, and what a jump of
        each means."""
        self._ratio, self._watched = ratio, watched
        self._history: dict[str, deque[float]] = {}
        self._raised: set[str] = set()
        if ratio is not None and watched and metrics.exists():
            for line in metrics.read_bytes().splitlines():
                self.look(parse_json(line))

    def look(self, row: Mapping[str, float]) -> list[str]:
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


def watched_values(phases: Sequence[Phase]) -> dict[str, str]:
    """The values that the phases watch, by their names in a row, and what a jump of each means."""
    return {f"{phase.name}/{name}": meaning for phase in phases for name, meaning in phase.watched.items()}
