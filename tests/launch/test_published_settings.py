"""The published settings, as far as a CPU can take them."""

import math
import subprocess
from pathlib import Path

import pytest

from tests.runs_of import ROOT, logged, run

CIFAR = ROOT.parent / "shared" / "data" / "cifar10.tar.xz"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CIFAR.exists(), reason="needs CIFAR-10 as JPEG files in ../shared/data"),
]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run(["tar", "xJf", str(CIFAR), "-C", str(folder)], check=True)
    run(ROOT / "launch" / "shard.py", folder, folder / "shards", "--size", "32")
    return folder / "shards"


@pytest.mark.parametrize(
    ("recipe", "steps", "smaller"),
    [
        ("biggan_cifar10", 2, ["train.batch_size=8"]),
        ("ddpm_cifar10", 2, ["train.batch_size=4"]),
        ("vqvae_cifar10", 2, ["train.batch_size=16"]),
        ("pixelcnnpp_cifar10", 2, ["train.batch_size=2"]),
        ("vdvae_cifar10", 2, ["train.batch_size=2"]),
    ],
)
def test_a_recipe_for_cifar10_trains_a_few_steps_on_a_cpu(
    recipe: str, steps: int, smaller: list[str], shards: Path, tmp_path: Path
) -> None:
    run(
        ROOT / "launch" / "train.py",
        ROOT / "recipes" / f"{recipe}.yaml",
        f"run.dir={tmp_path / 'run'}",
        f"data.train={shards / 'train.json'}",
        f"data.validation={shards / 'test.json'}",
        f"train.steps={steps}",
        "train.log_every=1",
        "train.sample_every=null",
        "train.evaluate_every=null",
        *smaller,
    )
    rows = logged(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    losses = [value for row in rows for key, value in row.items() if key.startswith("loss/")]
    assert losses
    assert all(math.isfinite(loss) for loss in losses)
