"""Every launcher makes the same two ranks of the same command."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
import pytest

from tests import fork_server
from tests.runs_of import FAMILIES, ROOT, environment, final_tensors, largest_difference, run, train, write_recipe

pytestmark = pytest.mark.slow
DRIVE = ROOT / "tests" / "drive.py"
WORLD = base64.urlsafe_b64encode(json.dumps({"localhost": [0, 1]}).encode()).decode()
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
DEEPSPEED = ("-m", "deepspeed.launcher.launch", f"--world_info={WORLD}", "--master_addr=127.0.0.1")
"""What `deepspeed --num_gpus 2` runs on a node; it puts --local_rank=N in front of the script's words."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def assert_two_ranks_trained_alike(folder: Path, alone: Path) -> None:
    assert json.loads((folder / "run" / "environment.json").read_text())["world_size"] == 2
    assert largest_difference(final_tensors(folder / "run"), final_tensors(alone / "run")) < 1e-3


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What plain python trains."""
    folder = tmp_path_factory.mktemp("alone")
    train(write_recipe(folder, FAMILIES["toy"]))
    return folder


@pytest.mark.parametrize("words", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_torchrun_and_deepspeed_make_two_ranks(words: Sequence[str], alone: Path, tmp_path: Path) -> None:
    port = [f"--master_port={free_port()}"] if words is DEEPSPEED else []
    result = run(*words, *port, DRIVE, write_recipe(tmp_path, FAMILIES["toy"]))
    assert_two_ranks_trained_alike(tmp_path, alone)
    assert "FutureWarning" not in result.stderr


@pytest.mark.parametrize("launcher", ["mpirun", "variables"])
def test_mpirun_makes_two_ranks(launcher: str, alone: Path, tmp_path: Path) -> None:
    """Open MPI's, where it is installed, and its variables."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"])
    if launcher == "mpirun":
        if shutil.which("mpirun") is None:
            pytest.skip("no mpirun is installed")
        words = ["mpirun", "--oversubscribe", *(["--allow-run-as-root"] if os.geteuid() == 0 else []), "-n", "2"]
        done = subprocess.run(
            [*words, sys.executable, DRIVE, recipe], env=environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    else:
        ranks = [
            fork_server.start([DRIVE, recipe], environment(**open_mpi(rank)), *outputs(tmp_path, rank))
            for rank in (0, 1)
        ]
        assert [rank.wait() for rank in ranks] == [0, 0], outputs(tmp_path, 0)[1].read_text()
    assert_two_ranks_trained_alike(tmp_path, alone)


def open_mpi(rank: int) -> Mapping[str, str]:
    names = {"RANK": rank, "SIZE": 2, "LOCAL_RANK": rank, "LOCAL_SIZE": 2}
    variables = {f"OMPI_COMM_WORLD_{name}": str(value) for name, value in names.items()}
    return variables | {"PMIX_NAMESPACE": f"prterun-here-{os.getpid()}@1"}


def outputs(folder: Path, rank: int) -> tuple[Path, Path]:
    return folder / f"stdout.{rank}", folder / f"stderr.{rank}"


def test_a_killed_data_worker_of_a_rank_is_one_sentence_and_the_launchers_cause(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100000)
    output = tmp_path / "output"
    words = [sys.executable, *TORCHRUN, DRIVE, recipe, "data.workers=1"]
    with output.open("wb") as stream:
        launcher = psutil.Popen(words, cwd=ROOT, env=environment(), stdout=stream, stderr=stream)
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        end = time.monotonic() + 120
        while not (metrics.exists() and metrics.read_text()):
            assert launcher.poll() is None, output.read_text()
            assert time.monotonic() < end, output.read_text()
            time.sleep(0.05)
        rank = next(child for child in launcher.children() if child.environ()["RANK"] == "1")
        rank.children()[0].kill()
        assert launcher.wait(60) == 1
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            launcher.kill()
    lines = output.read_text().splitlines()
    said = [line for line in lines if line.startswith("error: ")]
    assert len(said) == 1, lines
    assert "data worker" in said[0]
    assert "fewer data.workers; rank 1 was at step " in said[0]
    assert said[0] in lines[-2]
    assert not any("DataLoader worker" in line for line in lines)
