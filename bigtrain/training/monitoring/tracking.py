"""What a run reports while it runs: metrics.jsonl, TensorBoard and a progress line."""

import contextlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.runs import atomic


class Tracker:
    """Writes one row per logged step, on the main rank. First removes the rows after `step`, which will be written again."""

    def __init__(self, metrics: Path, tensorboard: Path, *, step: int, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # heavy, and only training needs it

        cut_back(metrics, step)
        self._file = open(metrics, "a", encoding="utf-8")  # noqa: SIM115  (stays open during the run)
        self._board = SummaryWriter(str(tensorboard), purge_step=step + 1)
        self._steps = steps
        self._live = sys.stderr.isatty()

    def row(self, values: Mapping[str, Any]) -> None:
        """One logged step: a JSON object on one line, and the same values for TensorBoard."""
        try:
            self._file.write(json.dumps(dict(values)) + "\n")
            self._file.flush()
            for name, value in values.items():
                if "/" in name:
                    self._board.add_scalar(name, value, int(values["step"]))
        except OSError as error:
            raise UserError(
                f"{self._file.name}: cannot write the metrics ({error.strerror}); make room on the disk and run the same "
                "command again: it goes on from the newest checkpoint"
            ) from error

    def line(self, values: Mapping[str, float], eta_s: float) -> None:
        """The progress line: rewritten in place on a terminal, one more line in a log file."""
        losses = "  ".join(f"{name.split('/')[1]} {v:.3f}" for name, v in values.items() if _is_phase_loss(name))
        shares = {"MFU": "mfu", "data wait": "data_wait_share", "communication wait": "communication_wait_share"}
        percentages = "  ".join(
            f"{word} {100 * values[f'throughput/{key}']:.0f} %"
            for word, key in shares.items()
            if f"throughput/{key}" in values
        )
        text = (
            f"step {values['step']}/{self._steps}  {losses}  {values['throughput/images_per_s']:.0f} images/s  {percentages}  "
            f"ETA {_clock(eta_s)}"
        )
        print(f"\r\x1b[K{text}" if self._live else text, end="" if self._live else "\n", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A message on a line of its own, which stays."""
        print(f"\r\x1b[K{text}" if self._live else text, file=sys.stderr, flush=True)

    def warn(self, step: int, text: str) -> None:
        """A warning: a message on stderr, and a row of metrics.jsonl."""
        self.say(f"warning: step {step}: {text}")
        self.row({"step": step, "warning": text})

    def close(self) -> None:
        if self._live:
            print(file=sys.stderr)
        with contextlib.suppress(OSError):  # `row` has raised this error already
            self._file.close()
            self._board.close()


def cut_back(metrics: Path, step: int) -> None:
    """Removes the rows after `step`, and rows that cannot be read (a crash may leave an incomplete last one)."""
    if not metrics.exists():
        return
    lines = metrics.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if (at := _step_of(line)) is not None and at <= step]
    if len(kept) != len(lines):
        atomic.write_bytes(metrics, "".join(kept).encode())


def _step_of(line: str) -> int | None:
    try:
        return int(json.loads(line)["step"]) if line.endswith("\n") else None
    except (ValueError, KeyError, TypeError):
        return None


def _is_phase_loss(name: str) -> bool:
    return name.startswith("loss/") and name.count("/") == 1


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
