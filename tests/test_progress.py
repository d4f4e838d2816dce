"""Progress on a terminal of 80 columns is one line with rate and ETA; in a log it is a line a minute."""

import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import tqdm as tqdm_package

from bigtrain import progress
from bigtrain.evaluation.compare import compare
from bigtrain.exchange import manifest
from bigtrain.progress import Pace, ProgressBar, fitted
from bigtrain.report.page import report
from tests.report.report_runs import make_run


class Clock:
    now = 1.8e9  # as it is today: at this size a float has steps of 2.4e-7

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

    def fileno(self) -> int:
        return 2


def show_on(screen: Terminal, monkeypatch: pytest.MonkeyPatch, columns: int = 80, lines: int = 24) -> None:
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, lines)))
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda _: (columns, lines))


def work(clock: Clock, seconds: int, *, leave: bool = True) -> None:
    with ProgressBar(1000, "a/long/path/to/an/index/of/train.json", "images", leave=leave) as bar:
        for _ in range(seconds):
            clock.now += 1
            bar.update(1000 // seconds)


def test_a_log_gets_a_line_a_minute_with_rate_and_eta(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    work(clock, 200)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4, lines
    assert lines[0] == "a/long/path/to/an/index/of/train.json: 300/1000 images  30 %   5.00 images/s  ETA 02:20"
    assert "1000/1000 images  100 %" in lines[-1]


@pytest.mark.parametrize("leave", [True, False])
def test_a_log_gets_no_line_of_work_that_takes_less(
    leave: bool, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    work(clock, 50, leave=leave)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("size", [(80, 24), (0, 0)], ids=["sized", "without a size"])
def test_a_terminal_of_80_columns_shows_rate_and_eta_in_one_line(
    size: tuple[int, int], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    show_on(screen, monkeypatch, *size)
    work(clock, 20)
    shown = [line for line in screen.getvalue().replace("\n", "\r").split("\r") if line.strip()]
    assert all(len(line) <= 80 for line in shown)
    assert any("50.00 images/s ETA 00:1" in line for line in shown)


def compares(folder: Path) -> None:
    result = {"step": 20, "fd_own": 4.0, "protocol": {"weights": "ema", "step": 20}}
    for number in range(2):
        (folder / f"{number}.json").write_text(json.dumps(result))
    compare([folder / "0.json", folder / "1.json"], None, None)


def exports(folder: Path) -> None:
    (folder / "model").mkdir()
    (folder / "model_index.json").write_text('{"model": ["diffusers", "UNet2DModel"]}')
    (folder / "model" / "weights").write_bytes(bytes(5_000_000))
    manifest.write(folder)


def reports(folder: Path) -> None:
    report([make_run(folder / "run")])


@pytest.mark.parametrize(
    ("command", "bar"),
    [(compares, "reading evaluations: 100% |"), (exports, "checksums: 100% |"), (reports, "pictures: 100% |")],
)
def test_compare_export_and_report_show_a_bar_on_a_terminal_and_leave_nothing_of_it(
    command: Callable[[Path], None], bar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Terminal()
    show_on(screen, monkeypatch)
    monkeypatch.setattr(ProgressBar, "monitor_interval", 0)
    monkeypatch.setattr("tqdm.std.time", count(1.8e9).__next__)  # each update is late enough to be drawn
    command(tmp_path)
    shown = screen.getvalue().split("\r")
    assert any(line.startswith(bar) and " ETA " in line for line in shown), shown
    assert shown[-1].strip() == ""


@pytest.mark.parametrize("command", [compares, exports, reports])
def test_they_write_nothing_into_a_log_where_they_take_less_than_a_minute(
    command: Callable[[Path], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(tmp_path)
    assert capsys.readouterr().err == ""


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
