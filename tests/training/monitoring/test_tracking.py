"""What a run reports where it cannot: a disk that is full under metrics.jsonl, a terminal that was closed."""

import contextlib
import errno
import json
import os
import sys
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.training.monitoring.tracking import Tracker


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_under_metrics_jsonl_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tracker = Tracker(tmp_path / "metrics.jsonl", step=0, steps=10, rows_saved=0)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=rf"{tmp_path}/metrics\.jsonl: cannot write the metrics \(No space left on device\)"
    ):
        tracker.flush()
    tracker.close(0)


def test_a_terminal_that_was_closed_ends_no_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = os.openpty()
    terminal = os.fdopen(theirs, "w")
    monkeypatch.setattr(sys, "stderr", terminal)
    tracker = Tracker(tmp_path / "metrics.jsonl", step=0, steps=10, rows_saved=0)
    os.close(ours)
    tracker.line({"step": 1, "throughput/images_per_s": 1.0}, eta_s=1.0)
    tracker.warn(1, "said to nobody")
    tracker.close(1)
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "warning": "said to nobody"}
    with contextlib.suppress(OSError):  # it cannot be flushed
        terminal.close()
