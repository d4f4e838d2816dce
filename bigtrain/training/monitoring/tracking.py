"""What a run reports while it runs: metrics.jsonl, other trackers, and a progress line."""

import contextlib
import errno
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.progress import Pace, fitted
from bigtrain.runs import atomic
from bigtrain.signals import let_go_of_terminal
from bigtrain.training.monitoring.trackers.run_tracker import RunTracker
from bigtrain.untrusted import one_line, open_plain, parse_json

TRAINED_S, STOPPED_S = 120.0, 30.0
"""How long a run waits for its trackers when it is trained, and when it ends before that: a job that is preempted has little
time."""


class Tracker:
    """Writes one row per logged step, on the main rank. `rows`: how many rows the file has."""

    def __init__(
        self, metrics: Path, step: int, steps: int, rows_saved: int, trackers: Sequence[RunTracker] = ()
    ) -> None:
        """Removes the rows after `step`, which will be written again. `steps`: of the whole run; `rows_saved`: rows that the
        file had when the checkpoint was written: it warns if there are fewer now. Raises UserError if it cannot write."""
        self._metrics, self._steps, self._trackers = metrics, steps, trackers
        self._live = sys.stderr.isatty()
        self._pace = Pace(self._live)
        with _writing(metrics):
            self.rows = cut_back(metrics, step)
            descriptor = os.open(metrics, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            self._file = os.fdopen(descriptor, "a", encoding="utf-8")
        for tracker in trackers:
            tracker.open(step)
        if self.rows < rows_saved:
            missing = f"metrics.jsonl has lost {rows_saved - self.rows} of {rows_saved} rows up to step {step}"
            self.warn(
                step, f"{missing}: curves that are drawn from it have a hole; the training itself is not affected"
            )

    def row(self, values: Mapping[str, Any]) -> None:
        """One logged step: a JSON object on one line, and the same values for the trackers."""
        self._write(values)
        for tracker in self._trackers:
            tracker.row(values)
        self._pass_on_warnings(int(values["step"]))

    def observed(self, step: int, picture: Path | None, values: Mapping[str, float]) -> None:
        """A picture that was drawn, or the result of an evaluation, for the trackers."""
        for tracker in self._trackers:
            tracker.observed(step, picture, values)

    def _write(self, values: Mapping[str, Any]) -> None:
        with _writing(self._metrics):
            self._file.write(json.dumps(dict(values)) + "\n")
            self._file.flush()
            self.rows += 1

    def _pass_on_warnings(self, step: int) -> None:
        for tracker in self._trackers:
            for warning in tracker.warnings():
                self.warn(step, warning)

    def flush(self) -> None:
        """Makes all rows so far survive a power cut."""
        with _writing(self._metrics):
            os.fsync(self._file.fileno())

    def line(self, values: Mapping[str, float], eta_s: float) -> None:
        """The progress line: rewritten in place on a terminal; in a log file one more line, at most one a minute."""
        if not self._pace.due(last=values["step"] >= self._steps):
            return
        losses = [f"{name.split('/')[1]} {v:.3f}" for name, v in values.items() if _is_phase_loss(name)]
        shares = {"MFU": "mfu", "data wait": "data_wait_share", "communication wait": "communication_wait_share"}
        percentages = [
            f"{word} {100 * values[f'throughput/{key}']:.0f} %"
            for word, key in shares.items()
            if f"throughput/{key}" in values
        ]
        rate = f"{values['throughput/images_per_s']:.0f} images/s"
        begin, end = f"step {values['step']}/{self._steps}", f"{rate}  ETA {_clock(eta_s)}"
        if self._live:  # a line that wraps cannot be rewritten
            _print(f"\r\x1b[K{fitted(begin, [*losses, *percentages], end)}", end="")
        else:
            _print("  ".join([begin, *losses, *percentages, end]))

    def say(self, text: str) -> None:
        """A message on a line of its own, which stays."""
        text = one_line(text)
        _print(f"\r\x1b[K{text}" if self._live else text)

    def warn(self, step: int, text: str) -> None:
        """A warning: a message on stderr, and a row of metrics.jsonl."""
        self.say(f"warning: step {step}: {text}")
        self._write({"step": step, "warning": text})

    def close(self, step: int) -> None:
        """`step`: the last one. Waits for the trackers, which is bounded."""
        if self._live:
            _print("")
        for tracker in self._trackers:
            tracker.end(TRAINED_S if step >= self._steps else STOPPED_S)
        for tracker in self._trackers:
            tracker.close()
        with contextlib.suppress(OSError, UserError):  # `row` has raised this error already
            self._pass_on_warnings(step)
            self._file.close()


def _print(text: str, end: str = "\n") -> None:
    """On stderr. If its terminal was closed, of which a signal tells a moment later, the training goes on to its checkpoint."""
    try:
        print(text, end=end, file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        let_go_of_terminal()


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises UserError instead of OSError."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot write the metrics ({error.strerror}); make room on the disk, or make it writable, and run the "
            "same command again: it goes on from the newest checkpoint"
        ) from error


def cut_back(metrics: Path, step: int) -> int:
    """Removes the rows after `step`, and what cannot be read as a row (a crash may leave an incomplete last one); returns how
    many rows there are."""
    if not metrics.exists():
        return 0
    with open_plain(metrics) as file:
        lines = file.readlines()
    kept = [line for line in lines if (at := _step_of(line)) is not None and at <= step]
    if len(kept) != len(lines):
        atomic.write_bytes(metrics, b"".join(kept))
    return len(kept)


def _step_of(line: bytes) -> int | None:
    """The step of a row, None for what is none."""
    try:
        row = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    step = row.get("step") if isinstance(row, dict) else None
    return step if type(step) is int else None


def _is_phase_loss(name: str) -> bool:
    return name.startswith("loss/") and name.count("/") == 1


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
