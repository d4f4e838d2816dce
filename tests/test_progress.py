"""Progress on a terminal of 80 columns is one line with rate and ETA; in a log it is a line a minute."""

import io
import sys
from collections.abc import Iterator

import pytest
import tqdm as tqdm_package

from bigtrain import progress
from bigtrain.progress import Pace, ProgressBar, fitted


class Clock:
    now = 1000.0

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    clock = Clock()
    monkeypatch.setattr(ProgressBar, "monitor_interval", 0)  # no thread that refreshes by another clock
    monkeypatch.setattr("tqdm.std.time", clock.time)
    monkeypatch.setattr(progress.time, "monotonic", clock.time)
    yield clock
    tqdm_package.tqdm._instances.clear()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def work(clock: Clock, seconds: int) -> None:
    with ProgressBar(1000, "a/long/path/to/an/index/of/train.json", "images") as bar:
        for _ in range(seconds):
            clock.now += 1
            bar.update(1000 // seconds)


def test_a_log_gets_a_line_a_minute_with_rate_and_eta(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 200)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4, lines
    assert lines[0] == "a/long/path/to/an/index/of/train.json: 300/1000 images  30 %   5.00 images/s  ETA 02:20"
    assert "1000/1000 images  100 %" in lines[-1]


def test_a_log_gets_no_line_of_work_that_takes_less(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 50)
    assert capsys.readouterr().err == ""


def test_a_terminal_of_80_columns_shows_rate_and_eta_in_one_line(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (80, 24))
    work(clock, 20)
    shown = [line for line in screen.getvalue().replace("\n", "\r").split("\r") if line.strip()]
    assert all(len(line) <= 80 for line in shown)
    assert any("50.00 images/s ETA 00:1" in line for line in shown)


def test_a_line_of_the_training_has_room_on_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    losses = ["generator 1.234", "discriminator 0.987", "encoder 0.111", "data wait 3 %"]
    line = fitted("step 100/1800", losses, "1234 images/s  ETA 1:02:03")
    assert line == "step 100/1800  generator 1.234  discriminator 0.987  1234 images/s  ETA 1:02:03"
    assert len(line) < 80


def test_a_line_of_the_training_is_due_each_minute_in_a_log_and_always_on_a_terminal(clock: Clock) -> None:
    in_log, on_terminal = Pace(live=False), Pace(live=True)
    due = []
    for _ in range(13):
        due.append(in_log.due(last=False))
        assert on_terminal.due(last=False)
        clock.now += 10
    assert [number for number, one in enumerate(due) if one] == [0, 6, 12]
    assert in_log.due(last=True)
