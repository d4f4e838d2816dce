"""Which of a run's checkpoints is best by one metric, and when that metric says that the run goes wrong.

`checkpoints/best.json` holds every evaluation that was better than all before it. The last of them whose checkpoint is there
is the best one: `checkpoint.keep_newest` spares it, and doors find it. A kill at any moment leaves the one before.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.runs import atomic
from bigtrain.runs.checkpoint import BEST


@dataclass(frozen=True)
class Verdict:
    """Of one evaluation. `best`: its weights are to be kept; `warning`: what a user should look at, or None."""

    best: bool = False
    warning: str | None = None


class Best:
    """The record of one metric. Called on the main rank alone."""

    def __init__(
        self,
        folder: Path,
        metric: str,
        *,
        higher: bool,
        kept: bool,
        alarm_ratio: float | None,
        protocol: Mapping[str, Any] | None = None,
    ) -> None:
        """`folder`: of the checkpoints; `metric`: its name among an evaluation's values; `higher`: whether more is better;
        `kept`: whether the best checkpoint outlives train.keep; `alarm_ratio`: warn when the metric is so many times worse
        than its best; None: never; `protocol`: what else, as JSON, decides the numbers (samples, features): records of another
        one are not compared with, and their best checkpoint is kept until the first record of this one."""
        self._path = folder / BEST
        self._metric, self._higher, self._kept, self._alarm_ratio = metric, higher, kept, alarm_ratio
        self._protocol = protocol or {}

    def update(self, step: int, values: Mapping[str, float]) -> Verdict:
        """Of the evaluation of `step`; written down before the checkpoint is, and worth nothing until that is there."""
        value = values.get(self._metric)
        if value is None:  # the evaluation was interrupted
            return Verdict()
        earlier = [record for record in self._records() if record["step"] < step]
        if not math.isfinite(value):
            self._write(earlier, step)
            return Verdict(warning=f"{self._metric} is {value}")
        if not earlier or (value > earlier[-1]["value"] if self._higher else value < earlier[-1]["value"]):
            self._write([*earlier, {"step": step, "value": value}], step)
            return Verdict(best=self._kept)
        self._write(earlier, step)
        return Verdict(warning=self._alarm(value, earlier[-1]))

    def is_recorded(self, step: int) -> bool:
        """Whether nothing is to be judged at `step` any more. An evaluation alone does not say so: the run may have been killed
        before it was judged, or the evaluate door may have made it."""
        return not self._kept or self._last_step() >= step

    def cut_back(self, step: int) -> None:
        """Forgets what came after `step`: a run that goes on from there will evaluate it again."""
        if self._content():
            kept = [record for record in self._records() if record["step"] <= step]
            self._write(kept, min(self._last_step(), step))

    def _alarm(self, value: float, best: Mapping[str, Any]) -> str | None:
        ratio = self._alarm_ratio
        if ratio is None or best["value"] <= 0:
            return None
        worse = value < best["value"] / ratio if self._higher else value > best["value"] * ratio
        if not worse:
            return None
        return (
            f"{self._metric} is {value:.4g}, and was {best['value']:.4g} at step {best['step']}: the run may have collapsed; "
            "look at its samples, and go back to an earlier checkpoint if they are bad"
        )

    def _records(self) -> list[dict[str, Any]]:
        return self._content().get("records", [])

    def _last_step(self) -> int:
        """The last step that was judged, or -1."""
        return self._content().get("judged", -1)

    def _content(self) -> dict[str, Any]:
        """What was written of this metric under this protocol; nothing if either was another one."""
        try:
            content = json.loads(self._path.read_bytes())
        except FileNotFoundError:
            return {}
        same = content["metric"] == self._metric and content.get("protocol", self._protocol) == self._protocol
        return content if same else {}

    def _write(self, records: list[dict[str, Any]], last_step: int) -> None:
        if not records and not self._content():
            return  # what was kept by another metric or protocol stays until there is a record of this one
        content = {
            "metric": self._metric,
            "protocol": self._protocol,
            "kept": self._kept,
            "records": records,
            "judged": last_step,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(self._path, content)
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); make room and run the same command again"
            ) from error
