"""The watchdog in one process, with small limits, over a store that is a dictionary."""

import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from bigtrain import beats
from bigtrain.cluster import watchdog
from bigtrain.cluster.diagnosis import diagnose
from bigtrain.cluster.passes import Reading
from bigtrain.cluster.peers import Beat, Peers
from bigtrain.cluster.watchdog import Watchdog
from bigtrain.errors import OtherRankFailed, RankError, UserError
from tests.runs_of import ROOT, environment

LIMIT_S = 0.5


class Dictionary:
    """A store; `answers` is cleared where the network to it is cut: then no call returns."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.answers = threading.Event()
        self.answers.set()

    def set(self, key: str, value: str) -> None:
        self.answers.wait()
        self.values[key] = value

    def get(self, key: str) -> bytes:
        self.answers.wait()
        return self.values[key].encode()

    def multi_get(self, keys: list[str]) -> list[bytes]:
        return [self.get(key) for key in keys]

    def check(self, keys: list[str]) -> bool:
        self.answers.wait()
        return all(key in self.values for key in keys)

    def add(self, key: str, amount: int) -> int:
        self.answers.wait()
        self.values[key] = str(int(self.values.get(key, "0")) + amount)
        return int(self.values[key])


class Rank:
    """One rank's watchdog, and the exit codes with which it would have left."""

    def __init__(self, number: int, store: Dictionary, start_s: float = LIMIT_S) -> None:
        self.codes: list[int] = []
        self.watchdog = Watchdog(LIMIT_S, Peers(store, number, 2), start_s=start_s, leave=self.codes.append)


@pytest.fixture(autouse=True)
def not_ending() -> Iterator[None]:
    """As at the start of a process."""
    watchdog._ENDING.clear()
    yield
    watchdog._ENDING.clear()


@pytest.fixture
def short_last_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "SPEAKER_FIRST_S", 0.5)


@pytest.fixture
def store() -> Iterator[Dictionary]:
    store = Dictionary()
    yield store
    store.answers.set()


def eventually(true: Callable[[], object], within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(true())


def beat(rank: int, *, number: int = 9, marks: int = 5, idle_s: float = 400.0, activity: str = "step 7: logs") -> Beat:
    return Beat(rank, f"node{rank}", 100 + rank, number, marks, activity, idle_s, limit_s=300.0)


def test_the_rank_with_the_least_progress_is_named_with_what_it_was_doing() -> None:
    behind = beat(1, marks=4, activity="step 7, phase critic: waits for data")
    beats = [beat(0), behind, beat(2)]
    diagnosis = diagnose([beat(rank, number=8) for rank in range(3)], beats, 20)
    assert diagnosis is not None
    assert diagnosis.ranks == {1}
    assert "rank 1 (process 101 on node1) is behind" in diagnosis.text
    assert "step 7, phase critic: waits for data for 400 s" in diagnosis.text


def test_a_rank_that_waits_for_one_within_its_own_limit_waits_on() -> None:
    """That one compiles, or evaluates: it has the long limit, the others wait for it at a point with the short one."""
    assert diagnose([beat(0, number=8), beat(1, number=8)], [beat(0), beat(1, marks=4, idle_s=200)], 20) is None


def test_a_rank_whose_beat_stands_still_is_named_whatever_its_progress() -> None:
    diagnosis = diagnose([beat(0, number=8), beat(1, marks=6)], [beat(0), beat(1, marks=6, idle_s=1)], 20)
    assert diagnosis is not None
    assert diagnosis.ranks == {1}
    assert "no sign of life for at least 20 s" in diagnosis.text


def test_a_rank_that_never_came_is_named() -> None:
    diagnosis = diagnose([beat(0, number=8), None], [beat(0), None], 20)
    assert diagnosis is not None
    assert diagnosis.text == "rank 1 has not begun"


def test_no_rank_is_blamed_if_none_is_behind_the_others() -> None:
    diagnosis = diagnose([beat(0, number=8), beat(1, number=8)], [beat(0), beat(1)], 20)
    assert diagnosis is not None
    assert "none is behind the others" in diagnosis.text
    assert diagnosis.ranks == {0, 1}
    assert "stood still first" not in diagnosis.text


def test_where_ranks_make_no_marks_the_first_to_stand_still_is_named() -> None:
    """In an evaluation: one rank hangs in its share, the others finish theirs and wait."""
    diagnosis = diagnose([beat(0, number=8), beat(1, number=8)], [beat(0, idle_s=310), beat(1, idle_s=390)], 20)
    assert diagnosis is not None
    assert "rank 1 (process 101 on node1) stood still first, 80 s before the last" in diagnosis.text


def test_asking_whether_to_stop_is_a_sign_of_life(store: Dictionary) -> None:
    rank = Rank(0, store, start_s=60)
    reading = Reading(8, 0)
    with rank.watchdog, beats.work("measures samples"):
        reading.check_stop()
        for _ in range(10):
            reading.check_stop()
            time.sleep(LIMIT_S / 5)
    assert not rank.codes


def test_a_thousand_ranks_make_a_message_that_can_be_read() -> None:
    before = [beat(0, number=8), *(beat(rank) for rank in range(1, 1000))]
    diagnosis = diagnose(before, [beat(rank) for rank in range(1000)], 20)
    assert diagnosis is not None
    assert diagnosis.text.count("\n") == 8
    assert diagnosis.text.endswith("and 991 more")


@pytest.mark.usefixtures("short_last_words")
def test_both_ranks_leave_and_one_of_them_says_who_hangs(store: Dictionary, capfd: pytest.CaptureFixture[str]) -> None:
    one, other = Rank(0, store), Rank(1, store)
    with one.watchdog, other.watchdog:
        for rank in (one, other):
            rank.watchdog.enter(7, "critic")
            rank.watchdog.mark("waits for data")
        one.watchdog.mark("forward and backward")
        assert eventually(lambda: one.codes and other.codes)
    assert (one.codes[0], other.codes[0]) == (1, 1)
    stderr = capfd.readouterr().err
    lines = stderr.strip().splitlines()
    verdict = "error: the job hangs, and is ended: rank 1 "
    assert lines[0].startswith(verdict)
    assert [line for line in lines if "the job hangs" in line] == [lines[0]] * 2, "first and last"
    assert lines.index(lines[0], 1) == len(lines) - 2
    assert "rank 1" in stderr.split("is behind the others")[0]
    assert "step 7, phase critic: waits for data" in stderr
    assert "test_both_ranks_leave_and_one_of_them_says_who_hangs" in stderr, "the main thread's stack"


@pytest.mark.usefixtures("short_last_words")
def test_a_store_that_does_not_answer_is_reported(store: Dictionary, capfd: pytest.CaptureFixture[str]) -> None:
    rank = Rank(1, store)
    with rank.watchdog:
        rank.watchdog.enter(3, "critic")
        store.answers.clear()
        assert eventually(lambda: rank.codes)
    stderr = capfd.readouterr().err
    assert "main rank's host does not answer" in stderr
    assert "step 3, phase critic" in stderr


@pytest.mark.parametrize("sign", ["mark", "patient", "first step"])
def test_whoever_moves_or_may_take_long_is_left_alone(sign: str, store: Dictionary) -> None:
    rank = Rank(0, store, start_s=60)
    with rank.watchdog:
        if sign != "first step":
            rank.watchdog.enter(0, "critic")
            rank.watchdog.enter(1, "critic")
        rank.watchdog.mark("evaluates", patient=sign == "patient")
        for _ in range(10):
            if sign == "mark":
                rank.watchdog.mark("evaluates")
            time.sleep(LIMIT_S / 5)
    assert not rank.codes


def test_one_process_is_watched_too_and_its_first_steps_alone_may_take_long(
    capfd: pytest.CaptureFixture[str],
) -> None:
    codes: list[int] = []
    with Watchdog(LIMIT_S, start_s=60, leave=codes.append) as alone:
        alone.enter(0, "critic")
        assert not eventually(lambda: codes, within_s=3 * LIMIT_S)
        alone.enter(1, "critic")
        alone.mark("waits for data")
        assert eventually(lambda: codes)
    assert "it has been at step 1, phase critic: waits for data for" in capfd.readouterr().err


@pytest.mark.usefixtures("short_last_words")
def test_a_rank_that_is_silent_is_found_whatever_its_neighbour_does(
    store: Dictionary, capfd: pytest.CaptureFixture[str]
) -> None:
    """It was stopped in an evaluation, for which its neighbour may take half an hour."""
    Peers(store, 1, 2).publish(beat(1, activity="step 7: evaluates")).result()
    rank, begin = Rank(0, store, start_s=1800), time.monotonic()
    with rank.watchdog:
        rank.watchdog.mark("evaluates", patient=True)
        assert eventually(lambda: rank.codes, within_s=10)
    assert time.monotonic() - begin < 5
    lines = capfd.readouterr().err.strip().splitlines()
    assert lines[0] == lines[-1]
    assert "rank 1 (process 101 on node1) has given no sign of life" in lines[0]
    assert lines[0].endswith("last heard of at step 7: evaluates")


@pytest.mark.usefixtures("short_last_words")
def test_work_that_has_given_a_sign_of_life_may_not_stop_doing_so(
    store: Dictionary, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other = Rank(0, store, start_s=1800), Rank(1, store, start_s=1800)
    with one.watchdog, other.watchdog:
        for rank in (one, other):
            rank.watchdog.mark("evaluates", patient=True)
        with beats.work("measures what never ends"):
            assert not eventually(lambda: one.codes or other.codes, within_s=4 * LIMIT_S), (
                "its first piece may take long"
            )
            beats.beat()
            beats.own()._longest_s["measures what never ends"] = 0.01
            assert eventually(lambda: one.codes and other.codes, within_s=10)
    stderr = capfd.readouterr().err
    assert "hangs in work of its own: it has been at evaluates (measures what never ends) for" in stderr
    assert "test_work_that_has_given_a_sign_of_life_may_not_stop_doing_so" in stderr, "the main thread's stack"


def test_of_ranks_at_one_point_the_one_that_waits_for_no_other_is_named() -> None:
    looping = beat(1, activity="step 7, phase critic: forward and backward")
    beats = [replace(beat(0), waits=True), looping]
    diagnosis = diagnose([beat(0, number=8), beat(1, number=8)], beats, 20)
    assert diagnosis is not None
    assert diagnosis.ranks == {1}
    assert diagnosis.text.startswith("rank 1 (process 101 on node1) does not wait for the others, as they do for it")


@pytest.fixture
def two(store: Dictionary) -> tuple[Rank, Rank]:
    return Rank(0, store), Rank(1, store)


@pytest.mark.usefixtures("short_last_words")
def test_a_rank_that_fails_says_so_and_one_that_loses_it_keeps_quiet(
    two: tuple[Rank, Rank], capfd: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        with one.watchdog:
            raise ZeroDivisionError("no data")

    def lose_it() -> None:
        with other.watchdog:
            raise RuntimeError("[gloo] connection closed by peer")

    one, other = two
    with pytest.raises(ZeroDivisionError):
        fail()
    with pytest.raises(OtherRankFailed):
        lose_it()
    assert watchdog.is_ending(), "and a signal of the launcher makes it say nothing either"
    stderr = capfd.readouterr().err
    assert stderr.startswith("\nerror: rank 0 (process ")
    assert stderr.endswith("has failed, at starts: ZeroDivisionError: no data\n")


@pytest.mark.usefixtures("short_last_words")
def test_a_rank_that_has_died_is_named_by_the_first_that_loses_it(
    store: Dictionary, capfd: pytest.CaptureFixture[str]
) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    last = Beat(1, socket.gethostname(), dead.pid, 9, 5, "step 7: writes a checkpoint", 0.0, 300.0)
    Peers(store, 1, 2).publish(last).result()

    def lose_it() -> None:
        with Rank(0, store).watchdog:
            raise RuntimeError("[gloo] connection closed by peer")

    with pytest.raises(OtherRankFailed):
        lose_it()
    stderr = capfd.readouterr().err
    assert stderr.count("\n") == 2
    assert f"error: rank 1 (process {dead.pid} on {socket.gethostname()}) has died" in stderr
    assert stderr.endswith("it was last heard of at step 7: writes a checkpoint\n")


def test_a_users_mistake_is_nobodys_failure(two: tuple[Rank, Rank], capfd: pytest.CaptureFixture[str]) -> None:
    def mistake(rank: Rank) -> None:
        with rank.watchdog:
            raise UserError("no such file")

    for rank in two:
        with pytest.raises(UserError):
            mistake(rank)
    assert not capfd.readouterr().err


@pytest.mark.usefixtures("short_last_words")
def test_a_users_mistake_that_the_main_rank_does_not_meet_is_said_by_the_rank_that_does(two: tuple[Rank, Rank]) -> None:
    with two[0].watchdog, pytest.raises(RankError, match=r"^rank 1: data\.train: /data is a folder$"), two[1].watchdog:
        raise UserError("data.train: /data is a folder")


def test_a_rank_that_loses_the_main_one_to_a_users_mistake_keeps_quiet(
    two: tuple[Rank, Rank], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError), two[0].watchdog:
        raise UserError("no such file")
    with pytest.raises(OtherRankFailed), two[1].watchdog:
        raise RuntimeError("[gloo] connection closed by peer")
    assert not capfd.readouterr().err


def test_without_a_limit_nobody_watches() -> None:
    before = set(threading.enumerate())
    with Watchdog(None) as none:
        none.mark("waits for data")
        assert set(threading.enumerate()) <= before


def test_an_error_says_where_its_rank_was() -> None:
    def lose_a_connection() -> None:
        with Watchdog(60.0) as dog:
            dog.enter(4, "maker")
            raise RuntimeError("connection closed by peer")

    with pytest.raises(RuntimeError) as caught:
        lose_a_connection()
    assert caught.value.__notes__ == [
        "rank 0 was at step 4, phase maker: begins",
        "a connection was lost: the rank at its other end ended first, see its messages",
    ]


@pytest.mark.slow
def test_a_rank_whose_interpreter_is_held_by_other_code_ends_too() -> None:
    """A C function that never gives the interpreter back: no Python thread runs any more, the watchdog's included."""
    script = (
        "import ctypes; from bigtrain.cluster import watchdog; from tests.cluster.test_watchdog import *\n"
        "watchdog.TIMEOUT_S = 3\n"
        "with Watchdog(1.0, Peers(Dictionary(), 0, 2), start_s=1.0):\n"
        "    time.sleep(1)\n"
        "    ctypes.PyDLL(None).sleep(100)\n"
    )
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 1
    assert time.monotonic() - begin < 60
    assert "Timeout" in done.stderr
    assert 'File "<string>", line 5' in done.stderr


@pytest.mark.slow
def test_a_pause_of_all_ranks_that_is_longer_than_their_limit_ends_none_of_them() -> None:
    """SIGSTOP or `docker pause`, and then the same job goes on: what was not done meanwhile is nobody's fault."""
    script = (
        "from bigtrain.cluster import watchdog; from tests.cluster.test_watchdog import *\n"
        "watchdog.SPEAKER_FIRST_S = 0.05\n"
        "store = Dictionary()\n"
        "ranks = [Watchdog(0.5, Peers(store, number, 2), start_s=0.5) for number in range(2)]\n"
        "with ranks[0], ranks[1]:\n"
        "    for step in range(60):\n"
        "        for rank in ranks:\n"
        "            rank.enter(step, 'critic')\n"
        "        print(step, flush=True)\n"
        "        time.sleep(0.03)\n"
    )
    words = [sys.executable, "-c", script]
    with subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        while job.stdout.readline() != "20\n":
            assert job.poll() is None
        job.send_signal(signal.SIGSTOP)
        time.sleep(2)
        job.send_signal(signal.SIGCONT)
        assert job.wait(timeout=30) == 0
