"""How ranks find each other: with a sentence of whom they wait for, and obeying signals."""

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fork_server
from tests.runs_of import environment

MEETS = """
from bigtrain import cli
from bigtrain.cluster import meeting, world
meeting.SAY_AFTER_S = cli.SPEAKER_FIRST_S = 0.3

def main(argv):
    meeting.meet("gloo")
    meeting.check_words()
    print(world.gather_objects(world.rank()), *argv)

cli.run_cli(main)
"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class Rank:
    """A process that meets the others and prints their ranks and its words."""

    def __init__(self, folder: Path, rank: int, port: int, *words: str, size: int = 2, **more: str) -> None:
        script = folder / "meets.py"
        if not script.exists():  # or an earlier rank might read it while it is empty
            script.write_text(MEETS)
        self._out, self._err = folder / f"out.{rank}", folder / f"err.{rank}"
        variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = environment(**{**{name: str(value) for name, value in variables.items()}, **more})
        self.process = fork_server.start([script, *words], told, self._out, self._err)

    @property
    def out(self) -> str:
        return self._out.read_text() if self._out.exists() else ""

    @property
    def err(self) -> str:
        return self._err.read_text() if self._err.exists() else ""


def until(true: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
def test_ranks_meet_in_any_order_and_quietly(tmp_path: Path) -> None:
    port = free_port()
    ranks = [Rank(tmp_path, rank, port, size=3) for rank in (2, 1, 0)]
    assert [each.process.wait(60) for each in ranks] == [0, 0, 0]
    assert {each.out for each in ranks} == {"[0, 1, 2]\n"}


def test_rank_0_is_waited_for_with_a_sentence_and_comes_late(tmp_path: Path) -> None:
    port = free_port()
    late = Rank(tmp_path, 1, port, LOCAL_RANK="0")
    until(lambda: "rank 1 is waiting for rank 0" in late.err and f"at 127.0.0.1:{port}" in late.err)
    first = Rank(tmp_path, 0, port)
    assert (first.process.wait(60), late.process.wait(60)) == (0, 0)


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "ended by SIGTERM"), (signal.SIGINT, 130, "interrupted")]
)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_waits_obeys_signals(number: int, code: int, word: str, rank: int, tmp_path: Path) -> None:
    port = free_port()
    alone = Rank(tmp_path, rank, port, size=3, LOCAL_RANK="0")
    sentence = (
        f"rank 1 is waiting for rank 0, or for the ranks that it waits for, at 127.0.0.1:{port}"
        if rank
        else f"rank 0 is waiting for the other ranks of 3 at 127.0.0.1:{port}"
    )
    until(lambda: sentence in alone.err)
    begin = time.monotonic()
    alone.process.send_signal(number)
    assert alone.process.wait(60) == code
    assert time.monotonic() - begin < 5
    assert "Traceback" not in alone.err
    if rank == 0 or number == signal.SIGINT:
        assert alone.err.endswith(f"{word}\n")


def test_a_name_that_leads_nowhere_is_refused_at_once(tmp_path: Path) -> None:
    begin = time.monotonic()
    alone = Rank(tmp_path, 1, free_port(), LOCAL_RANK="0", MASTER_ADDR="no-such-host.invalid")
    assert alone.process.wait(60) == 2
    assert time.monotonic() - begin < 20
    assert alone.err.startswith("error: MASTER_ADDR: 'no-such-host.invalid' leads to no address")
    assert alone.err.count("\n") == 1


def test_a_port_that_is_taken_or_none_is_refused(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        alone = Rank(tmp_path, 0, port)
        assert alone.process.wait(60) == 2
    assert alone.err.splitlines()[-1].startswith(f"error: MASTER_PORT: another process listens at port {port}")
    none = Rank(tmp_path, 0, 70000)
    assert none.process.wait(60) == 2
    assert none.err.startswith("error: MASTER_PORT: '70000' is no port")


def test_ranks_with_other_words_do_not_train_together(tmp_path: Path) -> None:
    """srun -n2 of a script that makes one run a task: two experiments, and not two ranks of one."""
    port = free_port()
    ranks = [Rank(tmp_path, rank, port, f"run.seed={rank}") for rank in (0, 1)]
    assert ranks[0].process.wait(60) == 2
    assert "rank 0 with run.seed=0, rank 1 with run.seed=1" in ranks[0].err
    assert "srun --ntasks 1" in ranks[0].err
    assert ranks[1].process.wait(60) == 2
    assert ranks[1].err == ""
