"""The published settings, as far as a CPU can take them."""

import subprocess
from pathlib import Path

import pytest

from tests.runs_of import ROOT, logged, run

CIFAR = ROOT.parent / "shared" / "data" / "cifar10.tar.xz"


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.exists(), reason="needs CIFAR-10 as JPEG files in ../shared/data")
def test_cifar10_trains_five_steps_on_a_cpu(tmp_path: Path) -> None:
    subprocess.run(["tar", "xJf", str(CIFAR), "-C", str(tmp_path)], check=True)
    run(ROOT / "launch" / "shard.py", tmp_path, tmp_path / "shards", "--size", "32")
    run(
        ROOT / "launch" / "train.py",
        ROOT / "recipes" / "biggan_cifar10.yaml",
        f"run.dir={tmp_path / 'run'}",
        f"data.train={tmp_path / 'shards' / 'train.json'}",
        f"data.validation={tmp_path / 'shards' / 'test.json'}",
        "train.steps=5",
        "train.log_every=1",
        "train.sample_every=null",
        "train.evaluate_every=null",
        OMP_NUM_THREADS="2",
    )
    assert [row["step"] for row in logged(tmp_path / "run")] == [1, 2, 3, 4, 5]
