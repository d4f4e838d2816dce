"""What a tracker's process hands over: each row, picture and evaluation once, in the order of steps, whatever goes wrong."""

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bigtrain.errors import UserError
from bigtrain.training.monitoring.trackers import following, run_tracker
from bigtrain.training.monitoring.trackers.following import Calls, Following, Job, follow
from bigtrain.training.monitoring.trackers.services import Service, WandB

RUN = "0123456789abcdef0123456789abcdef"


class Recorder(Service):
    """A tracker that keeps what it is given, and fails as often as `failures` says."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, RUN, "small")
        self.given: list[tuple[int, Any]] = []
        self.failures = 0
        self.recipe: Mapping[str, Any] = {}

    def open(self, recipe: Mapping[str, Any]) -> None:
        self.recipe = recipe

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._take(step, dict(values))

    def picture(self, step: int, path: Path) -> None:
        self._take(step, path.name)

    def _take(self, step: int, what: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("no network")
        self.given.append((step, what))

    def close(self) -> None:
        self.given.append((-1, "closed"))


class NoWatch(Calls):
    """Without its thread, which reads this process's stdin."""

    def __init__(self) -> None:
        self._call = None
        self._under_way = threading.Lock()
        self.ended = threading.Event()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("trackers", "samples", "evaluations"):
        (tmp_path / name).mkdir()
    (tmp_path / "recipe.yaml").write_text("run: {name: small}\ntrain: {steps: 40, freeze: [a, b]}\n")
    return tmp_path


def rows(folder: Path, *steps: int) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "images": 1, "loss/a": step / 10}) + "\n")


def handed_over(folder: Path, run: str = RUN, failures: int = 0) -> list[tuple[int, Any]]:
    """What a new process would hand over."""
    service = Recorder(folder)
    service.failures = failures
    job = Job("wandb", str(folder), run, "small", os.getpid())
    Following(job, service, NoWatch()).hand_over()
    return service.given


def test_everything_is_handed_over_in_the_order_of_steps(folder: Path) -> None:
    rows(folder, 10, 20, 30)
    (folder / "samples" / "step_00000020.png").write_bytes(b"")
    (folder / "evaluations" / "step_00000020.json").write_text('{"step": 20, "fd": 1.5, "protocol": {"a": 2.0}}')
    assert handed_over(folder) == [
        (10, {"loss/a": 1.0}),
        (20, {"loss/a": 2.0}),
        (20, "step_00000020.png"),
        (20, {"evaluation/fd": 1.5}),
        (30, {"loss/a": 3.0}),
    ]


def test_a_resumed_run_hands_over_what_is_new_although_it_writes_its_rows_again(folder: Path) -> None:
    rows(folder, 10, 20, 30)
    handed_over(folder)
    (folder / "metrics.jsonl").unlink()
    rows(folder, 10, 20, 30, 40)
    assert handed_over(folder) == [(40, {"loss/a": 4.0})]


def test_rows_are_read_while_the_file_grows_and_is_written_anew(folder: Path) -> None:
    service = Recorder(folder)
    one = Following(Job("wandb", str(folder), RUN, "small", os.getpid()), service, NoWatch())
    one.hand_over()
    rows(folder, 10)
    one.hand_over()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15, "warning": "no scalar"}\nnot json\n{"step": 20, "lo')
    one.hand_over()
    assert [step for step, _ in service.given] == [10], "the last row is half-written"
    kept = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:1]
    (folder / "new").write_text("".join(kept))
    os.replace(folder / "new", folder / "metrics.jsonl")
    rows(folder, 20)
    one.hand_over()
    assert [step for step, _ in service.given] == [10, 20]


def test_what_a_tracker_does_not_take_is_handed_over_later(folder: Path) -> None:
    rows(folder, 10, 20)
    with pytest.raises(ConnectionError):
        handed_over(folder, failures=1)
    assert handed_over(folder) == [(10, {"loss/a": 1.0}), (20, {"loss/a": 2.0})]


@pytest.mark.parametrize(
    "record", ["", "[3]", '{"run": 3}', f'{{"run": "{RUN}", "row": "x"}}', f'{{"run": "{"f" * 32}", "row": 20}}']
)
def test_a_record_that_is_damaged_or_of_another_run_counts_for_nothing(folder: Path, record: str) -> None:
    rows(folder, 10)
    (folder / "trackers" / "wandb.json").write_text(record)
    assert [step for step, _ in handed_over(folder)] == [10]


def test_a_tracker_that_fails_is_warned_of_once_and_tried_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "POLL_S", 0.01)
    rows(folder, 10, 20)
    service, calls = Recorder(folder), NoWatch()
    service.failures = 3
    threading.Timer(1.0, calls.ended.set).start()
    follow(Job("wandb", str(folder), RUN, "small", os.getpid()), service, calls)
    assert [step for step, _ in service.given] == [10, 20, -1]
    assert calls.said == ["ConnectionError: no network; it is tried again, and metrics.jsonl has everything"]
    assert service.recipe == {"run.name": "small", "train.steps": 40, "train.freeze": '["a", "b"]'}


def test_settings_of_wandb_in_a_run_folder_which_could_name_a_host_are_refused(folder: Path) -> None:
    (folder / "trackers" / "wandb").mkdir()
    (folder / "trackers" / "wandb" / "settings").write_text("[default]\nbase_url = http://example.org\n")
    with pytest.raises(PermissionError, match="could name another host"):
        WandB(folder, RUN, "small").open({})


def test_whatever_kills_it_knows_what_it_was_given_before_the_last(folder: Path) -> None:
    rows(folder, 10, 20, 30)
    known = []

    class Reader(Recorder):
        def scalars(self, step: int, values: Mapping[str, float]) -> None:
            known.append(following.Sent.read(folder / "trackers" / "wandb.json", RUN).row)

    Following(Job("wandb", str(folder), RUN, "small", os.getpid()), Reader(folder), NoWatch()).hand_over()
    assert known == [-1, 10, 20]


def test_a_tracker_that_is_not_installed_is_one_sentence_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_tracker, "find_spec", lambda name: None)
    run_tracker.check_installed(["tensorboard"])
    with pytest.raises(UserError, match=r"^run\.trackers: wandb is not installed: pip install wandb, or"):
        run_tracker.check_installed(["tensorboard", "wandb"])
    with pytest.raises(
        UserError, match=r"^run\.trackers: trackio is not installed: pip install trackio, or leave it out"
    ):
        run_tracker.check_installed(["trackio"])
