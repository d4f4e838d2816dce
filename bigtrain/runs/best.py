"""Which of a run's checkpoints is best by one metric, and warnings when that metric gets much worse.

`checkpoints/best.json` records every evaluation that was better than all before it. The best checkpoint is the last of them
that exists: `checkpoint.keep_newest` does not delete it, and commands take it as --checkpoint best. After a kill at any moment
the previous best is still there.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.formats import FORMAT
from bigtrain.runs import atomic
from bigtrain.runs.checkpoint import BEST, read_best


@dataclass(frozen=True)
class Verdict:
    """The verdict on one evaluation. `best`: keep its checkpoint; `warning`: a message for the user, or None."""

    best: bool = False
    warning: str | None = None


class Best:
    """The record of one metric. Only for the main rank."""

    def __init__(
        self,
        folder: Path,
        metric: str,
        *,
        higher: bool,
        kept: bool,
        alarm_ratio: float | None,
        protocol: Mapping[str, Any] | None = None,
        upgrade: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    ) -> None:
        """`folder`: of the checkpoints; `metric`: its name among an evaluation's values; `higher`: whether higher is better;
        `kept`: whether the best checkpoint is kept beyond train.keep; `alarm_ratio`: warn when the metric is this
        many times worse than its best; None: never; `protocol`: what else determines the numbers (samples, features),
        as JSON: records under another protocol are not compared, and their best checkpoint is kept until the first
        record under this one; `upgrade`: turns a file that may be older into today's."""
        self._path = folder / BEST
        self._metric, self._higher, self._kept, self._alarm_ratio = metric, higher, kept, alarm_ratio
        self._protocol = protocol or {}
        self._upgrade = upgrade

    def update(self, step: int, values: Mapping[str, float]) -> Verdict:
        """The verdict on the evaluation of `step`, which is recorded before the checkpoint is written. A record without a
        checkpoint is ignored."""
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
        """Whether the evaluation of `step` was recorded here. That it exists is not enough: the run may have been killed before
        it was recorded, or launch/evaluate.py may have made it."""
        return not self._kept or self._last_step() >= step

    def cut_back(self, step: int) -> None:
        """Removes the records after `step`: a run that is resumed there will evaluate those steps again."""
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
        """The last step whose evaluation was recorded, or -1."""
        return self._content().get("judged", -1)

    def _content(self) -> dict[str, Any]:
        """The file's content; empty if it is of another metric or protocol."""
        content = read_best(self._path.parent)
        if content is None:
            return {}
        try:
            content = self._upgrade(content)
        except (ValueError, TypeError) as error:  # ValueError is pydantic's, too
            raise UserError(f"{self._path}: cannot be read ({error}); remove it") from None
        same = content["metric"] == self._metric and content.get("protocol", self._protocol) == self._protocol
        return content if same else {}

    def _write(self, records: list[dict[str, Any]], last_step: int) -> None:
        if not records and not self._content():
            return  # keep the file of another metric or protocol until then
        content = {
            "format": FORMAT,
            "metric": self._metric,
            "protocol": self._protocol,
            "kept": self._kept,
            "records": records,
            "judged": last_step,
        }
        try:
            atomic.write_json(self._path, content)
        except OSError as error:
            raise UserError(
                f"{self._path}: cannot be written ({error.strerror}); make room on the disk and run the same command "
                "again"
            ) from error
