"""Promise 2 under SIGKILL: at random moments, and at the sight of a checkpoint that is being written."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from tests.families_table import CASES
from tests.fork_server import Child
from tests.promises.comparing import assert_same_bits
from tests.runs_of import FAMILIES, half_written, logged, start_training, write_recipe

STEPS_A_KILL = 3
"""Steps of the run for each kill: it has a new checkpoint after one of them, and may have another before it is killed."""


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name, case in CASES.items() if case.kills])
def test_sigkill_at_any_moment_changes_no_bit(family: str, tmp_path: Path, forks: None) -> None:
    kills = CASES[family].kills
    intervals = {"steps": STEPS_A_KILL * (kills + 1), "log_every": 2, "save_every": 1}
    whole, parts = (write_recipe(tmp_path / name, FAMILIES[family], **intervals) for name in ("whole", "parts"))
    run = tmp_path / "parts" / "run"
    begin = time.monotonic()
    assert start_training(whole).wait() == 0
    step_s = (time.monotonic() - begin) / intervals["steps"]
    chance = random.Random(1)
    killed = inside_a_save = 0
    for attempt in range(kills):
        child = start_training(parts)
        await_progress(child, run)
        if attempt % 2 == 0:
            stop_within_a_save(child, run)
        else:
            time.sleep(2 * step_s * chance.random())
        child.send_signal(signal.SIGKILL)
        killed += child.wait() == -signal.SIGKILL
        inside_a_save += half_written(run)
    assert killed >= kills / 2, (tmp_path / "parts" / "stderr").read_text()
    assert inside_a_save >= 1, "no kill left a half-written or half-deleted checkpoint behind"
    print(f"{family}: {killed} kills, {inside_a_save} of them inside a save")
    assert start_training(parts).wait() == 0
    assert logged(run) == logged(tmp_path / "whole" / "run")
    assert_same_bits(tmp_path / "whole", tmp_path / "parts")


def await_progress(child: Child, run: Path) -> None:
    """Until the run has a newer whole checkpoint than the one that it goes on from, or has ended."""
    before = newest(run)
    while child.poll() is None and newest(run) <= before:
        time.sleep(0.002)


def newest(run: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in (run / "checkpoints").glob("step_*")), default=0)


def stop_within_a_save(child: Child, run: Path) -> None:
    """Stops the process where a half-written checkpoint is to be seen, so that it is still half-written when it is killed."""
    while child.poll() is None:
        if half_written(run):
            child.send_signal(signal.SIGSTOP)
            while child.poll() is None and psutil.Process(child.pid).status() != psutil.STATUS_STOPPED:
                pass
            if half_written(run):
                return
            child.send_signal(signal.SIGCONT)
