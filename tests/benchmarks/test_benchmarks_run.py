"""Every benchmark starts, at its smallest size, and answers --help: none rots unseen.

As a script this file starts benchmarks in forks of one process that has imported torch, which costs seconds each time.
"""

import json
import os
import runpy
import shutil
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.digits import digits_index

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
BENCHMARKS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("test_"))

SMALLEST: Mapping[str, Sequence[str]] = {
    "decoding": ["PICTURES 1"],
    "diffusion_sampling": ["RUN 20 1"],
    "digits_quality": ["RUN --splits 1"],
    "digits_table": [
        "OUT/table train.steps=1 train.sample_every=1 train.save_every=1 train.evaluate_every=1 --recipes vqvae_digits"
    ],
    "draws": ["2"],
    "evaluation_memory": ["PICTURES PICTURES [fd] 40"],
    "evaluation_speed": ["PICTURES 1 --pictures 20", "distances 1 --dimensions 16"],
    "feeding": ["PICTURES recipes/biggan_cifar10.yaml recipes/pixelcnn_cifar10.yaml --seconds 0.1 --rounds 1"],
    "few_digits": ["OUT/few train.steps=1 train.save_every=1 --parts labels --seeds 1"],
    "finetune_digits": ["OUT/finetune evaluation.samples=20 --seeds 1 --steps 1,1 --recipes biggan_digits"],
    "gallery": ["OUT/gallery.png RUN"],
    "gpu": ["--tiny --workers 0 --out OUT/gpu.jsonl"],
    "infogan_codes": ["OUT/codes train.steps=1 train.save_every=1 train.sample_every=1 --seeds 1 --samples 20"],
    "large_set": ["10000"],
    "loader": ["cifar PICTURES --seconds 0.1 --rounds 1 --batch 4 --workers 1"],
    "pixelcnn_sampling": ["--batch 1 --side 4 --pairs 1 --positions 1"],
    "points_table": [
        "OUT/points train.steps=1 train.evaluate_every=1 evaluation.samples=20 --only gaussians8-minimax-R1-0"
    ],
    "same_training": [". . --keep OUT/kept --steps 1 --recipes vqvae_digits"],
    "saving": ["recipes/biggan_digits.yaml 1"],
    "sharding": ["200 100"],
    "step": ["1 --steps 1", "--recipe dcgan_digits 1 --steps 1"],
    "verification": ["DIGITS --rounds 1 --workers 0"],
}
"""The arguments of each benchmark's quickest starts. PICTURES is a folder CLASS/*.jpg, RUN a run that draws digits, DIGITS an
index, OUT a folder for what it writes."""
PARTS = 2
"""Tests that share the benchmarks, which take minutes: so many processes may run them at once."""


def test_every_benchmark_has_a_smallest_size() -> None:
    assert sorted(SMALLEST) == BENCHMARKS


@pytest.mark.slow
def test_every_benchmark_answers_help(tmp_path: Path) -> None:
    failures = started([[name, "--help"] for name in BENCHMARKS], tmp_path)
    assert failures == {}
    assert [name for name in BENCHMARKS if "usage:" not in (tmp_path / f"{name} --help").read_text()] == []


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_every_benchmark_runs_at_its_smallest_size(tmp_path: Path, part: int) -> None:
    given = {"PICTURES": make_pictures(tmp_path / "pictures"), "RUN": copy_run(tmp_path / "run"), "OUT": tmp_path}
    given["DIGITS"] = digits_index("train", (16, 16))
    lines = [f"{name} {line}" for name, lines in SMALLEST.items() for line in lines][part::PARTS]
    for word, path in given.items():
        lines = [line.replace(word, str(path)) for line in lines]
    assert started([line.split() for line in lines], tmp_path) == {}


def make_pictures(folder: Path) -> Path:
    """40 JPEGs of 32 pixels, of two classes."""
    draws = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            smooth = Image.fromarray(draws.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32))
            smooth.save(folder / name / f"{number:03d}.jpg", quality=95)
    return folder


def copy_run(folder: Path) -> Path:
    """A diffusion model of digits, guided, of 20 timesteps, and a picture."""
    shutil.copytree(FOLDER.parent / "fixtures" / "a3de763" / "runs" / "diffusion", folder)
    (folder / "samples").mkdir(exist_ok=True)
    Image.new("L", (40, 40)).save(folder / "samples" / "step_00000004.png")
    return folder


def started(commands: Sequence[Sequence[str]], folder: Path) -> dict[str, str]:
    """What those of the benchmarks printed that failed; each writes to the file FOLDER/NAME FIRST-ARGUMENT."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    forks = [sys.executable, __file__, json.dumps(commands), str(folder)]
    result = subprocess.run(forks, cwd=ROOT, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr
    failed = json.loads(result.stdout)
    return {name: (folder / name).read_text()[-3000:] for name in failed}


def fork_each(commands: Sequence[Sequence[str]], folder: Path) -> list[str]:
    """Runs each benchmark in a fork of its own, one after the other; returns the names of the files of those that failed."""
    import torchvision  # noqa: F401  (these are what most of them would import)

    import bigtrain.inference.model
    import bigtrain.training.trainer  # noqa: F401

    failed = []
    for command in commands:
        log = f"{command[0]} {command[1].replace('/', '_')[-40:]}"
        child = os.fork()
        if child == 0:
            become(command, folder / log)
        _, status = os.waitpid(child, 0)
        if status:
            failed.append(log)
    return failed


def become(command: Sequence[str], log: Path) -> None:
    """Makes this process a benchmark's, with everything that it prints in a file."""
    code = 1
    try:
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        sys.argv = [f"{command[0]}.py", *command[1:]]
        runpy.run_path(str(FOLDER / f"{command[0]}.py"), run_name="__main__")
        code = 0
    except SystemExit as ended:
        code = 0 if ended.code in (None, 0) else 1
        if isinstance(ended.code, str):
            print(ended.code)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    print(json.dumps(fork_each(json.loads(sys.argv[1]), Path(sys.argv[2]))))
