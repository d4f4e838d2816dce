"""The job script on a real Slurm of two nodes: signals, requeues, failures, sweeps."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.submit import main as submit
from tests.cluster.slurm_on_one_machine import TwoNodes, missing
from tests.runs_of import FAMILIES, ROOT, final_tensors, run, write_recipe

pytestmark = [pytest.mark.slow, pytest.mark.skipif(missing() is not None, reason=missing() or "")]

LAUNCH = ROOT / "launch"
TWO_NODES = ("--nodes", "2", "--gpus-per-node", "0")
ONE_NODE = ("--nodes", "1", "--gpus-per-node", "0")
STEPS = 80


@pytest.fixture(scope="module")
def slurm() -> Iterator[TwoNodes]:
    nodes = TwoNodes()
    yield nodes
    nodes.stop()


@pytest.fixture(autouse=True)
def on_the_cluster(slurm: TwoNodes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (slurm.environment | {"OMP_NUM_THREADS": "1", "BIGTRAIN_SITE": ""}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "10.255.255.1")  # of another job: it does not count


def recipe_in(folder: Path, **train: object) -> Path:
    return write_recipe(folder, FAMILIES["gan"], **({"steps": STEPS, "log_every": 1, "save_every": 1000} | train))


def submitted(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """The job's number."""
    submit([str(argument) for argument in arguments])
    return capsys.readouterr().out.strip()


def rows(folder: Path) -> int:
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


def printed(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "slurm").glob("*.out")))


def end_of(slurm: TwoNodes, job: str, seconds: float = 120) -> dict[str, str]:
    """The job's facts once it has ended and needs its nodes no more."""
    slurm.wait(lambda: slurm.facts(job).get("JobState") in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"), seconds)
    return slurm.facts(job)


def test_a_job_that_is_stopped_before_its_limit_goes_back_to_the_queue_and_ends_with_the_same_weights(
    slurm: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its recipe has spaces, quotes and a semicolon in its path. Two nodes whose names do not resolve."""
    whole = recipe_in(tmp_path / "whole")
    run(LAUNCH / "train.py", whole, processes=2)
    parts = recipe_in(tmp_path / """a "run"; touch 'it' 100% $(x) # so""")
    folder = parts.parent / "run"
    job = submitted(capsys, parts, *TWO_NODES)
    slurm.wait(lambda: rows(folder) >= 5, 120)
    slurm.ask("scancel", "--batch", "--signal=USR1", job)  # what Slurm does by --signal=B:USR1@...
    facts = end_of(slurm, job)
    text = printed(folder)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), text
    stopped = re.search(r"stopped by SIGUSR1 at step (\d+) of", text)
    assert stopped, text
    assert 5 <= int(stopped[1]) < STEPS
    assert f"trained {STEPS} steps" in text
    assert not list((folder / "slurm").glob("requeue-*"))
    one, other = final_tensors(tmp_path / "whole" / "run"), final_tensors(folder)
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []


def test_a_job_that_fails_leaves_with_its_own_code_and_is_not_queued_again(
    slurm: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_in(tmp_path)
    job = submitted(capsys, recipe, *ONE_NODE, f"data.train={tmp_path / 'gone.json'}")
    facts = end_of(slurm, job)
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")
    assert "gone.json" in printed(tmp_path / "run")


def test_a_job_at_its_most_restarts_saves_and_is_not_queued_again(
    slurm: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The signal is SIGTERM to all processes of the step, workers too: a preemption with a time of grace. At it the launchers
    leave with a code of failure."""
    recipe = recipe_in(tmp_path, steps=100000)
    job = submitted(capsys, recipe, *TWO_NODES, "--max-restarts", "0", "data.workers=1")
    slurm.wait(lambda: rows(tmp_path / "run") >= 3, 120)
    slurm.ask("scancel", "--signal=TERM", job)
    facts = end_of(slurm, job)
    text = printed(tmp_path / "run")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "1:0", "0"), text
    assert "stopped by SIGTERM" in text
    assert "--max-restarts" in text
    assert final_tensors(tmp_path / "run")


def test_tasks_of_a_sweep_go_back_to_the_queue_alone_and_once(
    slurm: TwoNodes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One is told to stop, the other is queued again by Slurm itself; each has one restart, and a folder of its own."""
    recipe = recipe_in(tmp_path)
    array = submitted(capsys, recipe, *ONE_NODE, "--sweep", "run.seed=0,1")
    folders = [tmp_path / "run" / f"run.seed={seed}" for seed in (0, 1)]
    slurm.wait(lambda: rows(folders[0]) >= 3, 120)
    slurm.ask("scancel", "--batch", "--signal=USR1", f"{array}_0")
    slurm.wait(lambda: rows(folders[1]) >= 3, 120)
    slurm.ask("scontrol", "requeue", f"{array}_1")
    for task, folder in enumerate(folders):
        facts = end_of(slurm, f"{array}_{task}")
        assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), printed(tmp_path / "run")
        assert rows(folder) == STEPS
    one, other = map(final_tensors, folders)
    assert any(not one[name].equal(other[name]) for name in one)
    assert sys.executable in next((tmp_path / "run" / "slurm").glob("job-*.sh")).read_text()


def test_srun_alone_makes_ranks_of_its_tasks_and_a_batch_script_is_one_process(slurm: TwoNodes, tmp_path: Path) -> None:
    """On two nodes whose names do not resolve; a script of a job of two tasks trains once, in the first node's process."""
    one, two = recipe_in(tmp_path / "one", steps=5), recipe_in(tmp_path / "two", steps=5)
    script, output = tmp_path / "job.sh", tmp_path / "job.out"
    command = shlex.join([sys.executable, str(LAUNCH / "train.py")])
    script.write_text(
        f"#!/bin/bash\nunset MASTER_ADDR\n{command} {one} || exit 3\nsrun -N2 -n2 {command} {two} || exit 4\n"
    )
    job = slurm.ask(
        "sbatch", "--parsable", "-N2", "-n2", "--export=ALL,ACCELERATE_USE_CPU=true", "-o", str(output), str(script)
    )
    facts = end_of(slurm, job)
    assert (facts["JobState"], facts["ExitCode"]) == ("COMPLETED", "0:0"), output.read_text()
    assert output.read_text().count("trained 5 steps") == 2
    sizes = [json.loads((path.parent / "run" / "environment.json").read_text())["world_size"] for path in (one, two)]
    assert sizes == [1, 2]
