"""Ranks that die, stop or hang, and hosts that lose each other: real processes under real launchers.

Every rank reads its data for itself in all of these; tests/data/read/test_stream.py shows that their slices make the global
batch.
"""

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from bigtrain.data.digits import digits_index
from tests.cluster.two_hosts import Host, two_hosts
from tests.runs_of import (
    FAMILIES,
    ROOT,
    command,
    environment,
    final_tensors,
    half_written,
    logged,
    train,
    write_recipe,
)

pytestmark = pytest.mark.slow
DRIVE = ROOT / "tests" / "drive.py"
HANG_S = 5
KILLS = int(os.environ.get("BIGTRAIN_KILLS", "3"))
"""SIGKILLs of the test that counts them; 20 were done once (tests/benchmarks/RESULTS.md)."""


class Job:
    """Two ranks under one launcher, until the block's end; what they say is in `output`."""

    def __init__(self, recipe: Path, *overrides: str) -> None:
        self.run, self.output = recipe.parent / "run", recipe.parent / "output.txt"
        words = command(DRIVE, recipe, f"engine.hang_timeout_s={HANG_S}", *overrides, processes=2)
        self.begin = time.time()
        with self.output.open("wb") as stream:
            self.launcher = psutil.Popen(words, cwd=ROOT, env=environment(), stdout=stream, stderr=stream)
        self.processes: list[psutil.Process] = []

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *error: object) -> None:
        for process in (self.launcher, *self.processes):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait()

    def wait_for_new_row(self) -> None:
        metrics = self.run / "metrics.jsonl"
        self.wait_for(lambda: metrics.exists() and metrics.stat().st_mtime > self.begin and metrics.read_text())

    def wait_for(self, true: Callable[[], object], within_s: float = 120) -> None:
        end = time.monotonic() + within_s
        while self.launcher.poll() is None and not true():
            assert time.monotonic() < end, self.output.read_text()
            time.sleep(0.005)

    def ranks(self) -> dict[int, psutil.Process]:
        """Its ranks by number; they and their workers are remembered."""
        ranks = {int(child.environ()["RANK"]): child for child in self.launcher.children()}
        self.processes += [*ranks.values(), *(worker for rank in ranks.values() for worker in rank.children())]
        return ranks

    def end(self, within_s: float) -> str:
        """Its output, once it has ended as it should: in time, with an error, and with no process left behind."""
        assert self.launcher.wait(timeout=within_s) != 0
        _, alive = psutil.wait_procs(self.processes, timeout=10)
        left = [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]
        assert not left, "processes outlived the job"
        return self.output.read_text()


def test_a_rank_that_is_stopped_is_named_with_its_phase_and_the_job_ends(tmp_path: Path) -> None:
    """Of the time until the end the launcher takes 30 s: it waits for so long for the stopped rank to heed SIGTERM."""
    with Job(write_recipe(tmp_path, FAMILIES["toy"], steps=100000)) as job:
        job.wait_for_new_row()
        time.sleep(3)  # some beats: the last one before this may be that of the start
        stopped = job.ranks()[0]
        stopped.suspend()
        output = job.end(within_s=60)
    assert f"the job hangs, and is ended: rank 0 (process {stopped.pid} on " in output
    assert "has given no sign of life" in output
    activity = output.split("last heard of at step ")[1].split("\n")[0]
    whole_step = (
        "phase ",
        "waits for data",
        "agrees with the other ranks whether to go on",
        "waits for the device, to log",
    )
    assert any(part in activity for part in whole_step), "what a step consists of"


def test_a_rank_whose_loader_hangs_is_named_as_waiting_for_data(tmp_path: Path) -> None:
    with Job(write_recipe(tmp_path, FAMILIES["toy"], steps=100000), "data.workers=1") as job:
        job.wait_for_new_row()
        for worker in job.ranks()[1].children():
            worker.suspend()
        output = job.end(within_s=60)
    verdict = output.split("the job hangs, and is ended: ")[1]
    assert verdict.startswith("rank 1 ")
    assert "phase critic: waits for data for" in verdict.split("\n")[0]
    assert "in _next_batch" in verdict, "the stack of the rank that hangs"


def test_sigkill_of_a_random_rank_at_random_moments_ends_the_job_and_changes_no_bit(tmp_path: Path) -> None:
    """Every other one of the moments is the sight of a checkpoint that is being written, by rank 0, which then dies."""
    intervals = {"steps": 40 * KILLS, "log_every": 5, "save_every": 2}
    train(write_recipe(tmp_path / "whole", FAMILIES["toy"], **intervals), processes=2)
    parts = write_recipe(tmp_path / "parts", FAMILIES["toy"], **intervals)
    chance = random.Random(2)
    killed = inside_a_save = 0
    slowest_s = 0.0
    for attempt in range(KILLS):
        with Job(parts, "data.workers=1") as job:
            job.wait_for_new_row()
            ranks, number = job.ranks(), chance.randrange(2)
            time.sleep(chance.random() / 2)
            if attempt % 2 == 0:
                number = 0
                job.wait_for(lambda: half_written(tmp_path / "parts" / "run"))
            if job.launcher.poll() is not None:
                break
            ranks[number].kill()
            begin = time.monotonic()
            output = job.end(within_s=60)
            slowest_s = max(slowest_s, time.monotonic() - begin)
            killed += 1
            inside_a_save += half_written(tmp_path / "parts" / "run")
            # The launcher names both ranks where the other one's exchange fails before it looks.
            failures = output.split("Failures:")[1]
            assert f"rank      : {number} " in failures
            assert "Signal 9 (SIGKILL)" in failures
    assert killed >= KILLS / 2, "the run ended before it was killed often enough to show anything"
    assert inside_a_save >= 1, "no kill left a half-written or half-deleted checkpoint behind"
    print(f"{killed} kills, {inside_a_save} of them inside a save; the slowest job ended after {slowest_s:.1f} s")
    train(parts, processes=2)
    assert logged(tmp_path / "parts" / "run") == logged(tmp_path / "whole" / "run")
    assert_same_bits(tmp_path / "whole" / "run", tmp_path / "parts" / "run")


def test_a_rank_that_fails_alone_says_why_and_the_job_ends(tmp_path: Path) -> None:
    data = shutil.copytree(Path(digits_index("train", (16, 16))).parent, tmp_path / "data")
    for shard in data.glob("train-*.tar"):
        with tarfile.open(shard) as tar:
            images = [member for member in tar if not member.name.endswith(".cls")]
        with shard.open("r+b") as file:
            for member in images[20::40]:
                file.seek(member.offset_data)
                file.write(bytes(member.size))
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000, log_every=1)
    with Job(recipe, f"data.train={data / 'train.json'}") as job:
        job.wait_for_new_row()
        job.ranks()
        output = job.end(within_s=60)
    assert re.search(r"error: rank [01]: .*train-\d+\.tar/.*: .*cannot be decoded", output)


def assert_same_bits(whole: Path, other: Path) -> None:
    one, two = final_tensors(whole), final_tensors(other)
    assert one.keys() == two.keys()
    assert [name for name in one if not torch.equal(one[name], two[name])] == []


@contextlib.contextmanager
def launched(
    hosts: tuple[Host, ...], folder: Path, *arguments: str | Path
) -> Iterator[list[tuple[subprocess.Popen[bytes], Path]]]:
    outputs = [folder / f"{host.name}.txt" for host in hosts]
    jobs = [host.launch(output, *arguments) for host, output in zip(hosts, outputs, strict=True)]
    try:
        yield list(zip(jobs, outputs, strict=True))
    finally:
        for job in jobs:
            job.send_signal(signal.SIGTERM)  # a launcher ends its ranks
            job.wait(timeout=60)


def test_two_launchers_on_two_hosts_train_as_one_launcher_on_one(tmp_path: Path) -> None:
    train(write_recipe(tmp_path / "one", FAMILIES["toy"]), processes=2)
    recipe = write_recipe(tmp_path / "two", FAMILIES["toy"])
    with two_hosts() as hosts, launched(hosts, tmp_path, DRIVE, recipe) as jobs:
        for job, output in jobs:
            assert job.wait(timeout=120) == 0, output.read_text()
    assert_same_bits(tmp_path / "one" / "run", tmp_path / "two" / "run")


def test_when_the_link_is_cut_both_hosts_end_and_say_why(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000)
    metrics = tmp_path / "run" / "metrics.jsonl"
    with two_hosts() as hosts, launched(hosts, tmp_path, DRIVE, recipe, f"engine.hang_timeout_s={HANG_S}") as jobs:
        while not (metrics.exists() and metrics.read_text()):
            assert all(job.poll() is None for job, _ in jobs), [output.read_text() for _, output in jobs]
            time.sleep(0.1)
        hosts[1].cut()
        assert all(job.wait(timeout=60) != 0 for job, _ in jobs)
        main, other = (output.read_text() for _, output in jobs)
    assert "the job hangs, and is ended: rank 1 (process " in main
    assert "has given no sign of life" in main
    assert "the job's key-value store at 10.77.0.1" in other
    assert "the network to it is cut. rank 1 (process " in other
    assert "has been at step " in other


@pytest.mark.parametrize(
    ("host", "cause"), [(0, "1/2 clients joined"), (1, "timed out after 5000ms while trying to connect to (10.77.0.1")]
)
def test_a_host_whose_other_half_never_comes_ends_and_says_so(host: int, cause: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    with two_hosts() as hosts:
        job = hosts[host].launch(tmp_path / "output.txt", DRIVE, recipe, meeting_s=5)
        assert job.wait(timeout=60) == 1
    assert cause in (tmp_path / "output.txt").read_text()
