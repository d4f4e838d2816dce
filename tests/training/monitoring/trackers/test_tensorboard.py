"""TensorBoard has losses, pictures, evaluations and the recipe, and a disk that is full under it costs a warning."""

import errno
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from bigtrain.training.monitoring.trackers.tensorboard import TensorBoard
from bigtrain.training.monitoring.tracking import Tracker


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def opened(folder: Path, step: int = 0) -> tuple[TensorBoard, Tracker]:
    board = TensorBoard(folder / "tensorboard", "run: {name: small}\n")
    return board, Tracker(folder / "metrics.jsonl", step, 40, 0, [board])


def test_it_has_losses_pictures_evaluations_and_the_recipe_of_a_run_that_is_resumed(tmp_path: Path) -> None:
    picture = tmp_path / "step_00000020.png"
    Image.fromarray(np.full((4, 6), 200, np.uint8)).save(picture)
    _, tracker = opened(tmp_path)
    for step in (10, 20, 30):
        tracker.row({"step": step, "loss/a": float(step)})
    tracker.observed(20, picture, {})
    tracker.observed(20, None, {"fd": 2.0})
    tracker.close(30)
    _, tracker = opened(tmp_path, step=20)
    tracker.row({"step": 30, "loss/a": 300.0})
    tracker.close(30)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/a")] == [(10, 10.0), (20, 20.0), (30, 300.0)]
    assert [event.value for event in events.Scalars("evaluation/fd")] == [2.0]
    (image,) = events.Images("samples")
    assert (image.step, image.width, image.height) == (20, 6, 4)
    assert "name: small" in events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()


def test_a_full_disk_under_its_thread_costs_one_warning_and_no_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = threading.excepthook
    _, tracker = opened(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", full)
    deadline = time.monotonic() + 60
    step = 0
    while "warning" not in (tmp_path / "metrics.jsonl").read_text():
        step += 1
        tracker.row({"step": step, "loss/a": 1.0})
        time.sleep(0.01)
        assert time.monotonic() < deadline
    for _ in range(20):
        step += 1
        tracker.row({"step": step, "loss/a": 1.0})
    tracker.close(step)
    assert threading.excepthook == hook, "it is given back"
    said = capfd.readouterr().err
    assert "Traceback" not in said
    assert said.count("tensorboard: cannot write") == 1
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "warning" not in line] == list(range(1, step + 1))


def test_a_folder_that_cannot_be_made_costs_one_warning(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tensorboard").write_text("a file")
    _, tracker = opened(tmp_path)
    tracker.row({"step": 1, "loss/a": 1.0})
    tracker.close(1)
    assert capfd.readouterr().err.count("warning: ") == 1


def test_the_failure_of_any_other_thread_is_still_told(tmp_path: Path) -> None:
    told: list[str] = []
    board, tracker = opened(tmp_path)
    board._hook = lambda failed: told.append(failed.exc_type.__name__)
    thread = threading.Thread(target=full)
    thread.start()
    thread.join()
    tracker.close(0)
    assert told == ["OSError"]
