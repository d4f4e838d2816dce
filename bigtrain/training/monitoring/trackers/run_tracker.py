"""What the trainer tells a tracker, and which trackers there are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError

IN_THEIR_PROCESSES = ("wandb", "trackio", "mlflow")
"""Also the names of their packages, for Python and for pip. trackio is no extra: it asks for Pillow below 13, which as an
extra pip would refuse, as bigtrain asks for a later one."""


class RunTracker(ABC):
    """One tracker of one run, on the main rank. No method raises, and none but `close` waits for what may take long."""

    @abstractmethod
    def open(self, step: int) -> None:
        """Called once, before anything else. `step`: the last one that is kept of what was logged before."""

    @abstractmethod
    def row(self, values: Mapping[str, Any]) -> None:
        """A row that metrics.jsonl has been given."""

    @abstractmethod
    def observed(self, step: int, picture: Path | None, values: Mapping[str, float]) -> None:
        """A picture that was drawn, or the result of an evaluation."""

    @abstractmethod
    def warnings(self) -> Sequence[str]:
        """What has gone wrong since the last call; each is said once."""

    @abstractmethod
    def end(self, seconds: float) -> None:
        """Says that nothing more comes, and for how long `close` waits."""

    @abstractmethod
    def close(self) -> None:
        """Waits, not for ever, until it has what it was given."""


def check_installed(names: Sequence[str]) -> None:
    """Raises UserError for a tracker whose package is missing."""
    for name in names:
        spec = find_spec(name) if name in IN_THEIR_PROCESSES else None
        if name in IN_THEIR_PROCESSES and (spec is None or spec.origin is None):  # a folder of its name is no package
            raise UserError(f"run.trackers: {name} is not installed: pip install {name}, or leave it out")
