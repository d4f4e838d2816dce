"""The progress of long work on stderr: rate and ETA in a bar on a terminal, one line a minute in a log."""

import os
import shutil
import sys
import time
from typing import Any

from tqdm import tqdm

from bigtrain.untrusted import one_line

LINE_S = 60.0
"""Seconds between lines of a log: Slurm's are read by people."""
_LONGEST_NAME = 28
_ON_TERMINAL = "{desc}: {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt} {rate_fmt} ETA {remaining}"
_IN_LOG = "{desc}: {n_fmt}/{total_fmt}{unit}  {percentage:.0f} %  {rate_fmt}  ETA {remaining}"
_NO_TOTAL = "{desc}: {n_fmt}{unit}  {rate_fmt}"


class ProgressBar(tqdm):
    """tqdm's bar; where stderr is no terminal, a line a minute and a last one, and none of work that is done before."""

    def __init__(self, total: int | None, what: str, unit: str, *, quiet: bool = False, **more: Any) -> None:
        """`what`: of which a long one, such as a path, is shortened at its beginning; `unit`: such as `images`."""
        self._live = sys.stderr.isatty()
        name = one_line(what)
        if self._live and len(name) > _LONGEST_NAME:
            name = f"...{name[3 - _LONGEST_NAME :]}"
        pace: dict[str, Any] = {"mininterval": 0.5, "dynamic_ncols": True}
        if self._live and not _has_size():  # in a container, or on a serial line: tqdm would draw nothing
            pace = {"mininterval": 0.5, "ncols": 79, "nrows": 24}
        if not self._live:  # delay: nothing is shown before
            pace = {"mininterval": LINE_S, "miniters": 1, "delay": LINE_S, "ncols": 10_000}
        form = _NO_TOTAL if total is None else _ON_TERMINAL if self._live else _IN_LOG
        options = {**pace, **more, "bar_format": form, "disable": quiet, "smoothing": 0.1}
        super().__init__(total=total, desc=name, unit=f" {unit}", file=sys.stderr, **options)

    def display(self, *arguments: Any, **more: Any) -> Any:
        if self._live:
            return super().display(*arguments, **more)
        print(str(self), file=sys.stderr, flush=True)
        return True

    def close(self) -> None:
        if not self._live and not self.disable and self.last_print_t > self.start_t:
            self.display()
            self.last_print_t = self.start_t  # tqdm has nothing to clear
        super().close()


def _has_size() -> bool:
    """Whether the terminal at stderr tells how large it is."""
    try:
        return all(os.get_terminal_size(sys.stderr.fileno()))
    except OSError:
        return False


class Pace:
    """Whether a line is due: each on a terminal, one a minute in a log."""

    def __init__(self, live: bool) -> None:
        self._live, self._last = live, float("-inf")

    def due(self, last: bool) -> bool:
        """`last`: it is the last line, which is due in any case."""
        now = time.monotonic()
        if not (self._live or last or now - self._last >= LINE_S):
            return False
        self._last = now
        return True


def fitted(needed: str, optional: list[str], end: str) -> str:
    """One line for the terminal's width: of the optional parts, in between, as many of the first as have room."""
    width = shutil.get_terminal_size().columns - 1
    while optional and len("  ".join([needed, *optional, end])) > width:
        optional = optional[:-1]
    return "  ".join([needed, *optional, end])[:width]
