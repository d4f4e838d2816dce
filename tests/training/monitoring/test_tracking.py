"""A disk that is full under metrics.jsonl is one sentence that names it."""

import errno
import os
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
