"""A disk that is full is one sentence that names the file, whichever of the two logs meets it."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from tensorboard.summary.writer.record_writer import RecordWriter

from bigtrain.errors import UserError
from bigtrain.training.monitoring.tracking import Tracker


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(tmp_path / "metrics.jsonl", tmp_path / "tensorboard", step=0, steps=10, rows_saved=0)


def test_a_full_disk_under_tensorboards_thread_is_one_sentence(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RecordWriter, "write", full)

    def log_for_a_while() -> None:
        for step in range(1000):
            tracker.row({"step": step, "loss/critic": 1.0})
            time.sleep(0.01)

    with pytest.raises(
        UserError, match=rf"{tmp_path}/tensorboard: cannot write the metrics \(No space left on device\)"
    ):
        log_for_a_while()
    hook = threading.excepthook
    tracker.close()
    assert threading.excepthook != hook, "it is given back"
    assert "Traceback" not in capfd.readouterr().err
    assert [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()][:1] == [0]


def test_a_full_disk_under_metrics_jsonl_names_it(
    tracker: Tracker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        UserError, match=rf"{tmp_path}/metrics\.jsonl: cannot write the metrics \(No space left on device\)"
    ):
        tracker.flush()
    tracker.close()


def test_the_failure_of_any_other_thread_is_still_told(tracker: Tracker, capfd: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    tracker._hook = lambda failed: told.append(failed.exc_type.__name__)
    thread = threading.Thread(target=full)
    thread.start()
    thread.join()
    assert told == ["OSError"]
