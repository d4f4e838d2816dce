"""Folders that commit a3de763 wrote, before recipes had a format number, still sample, evaluate and export.

tests/fixtures/make.py made them with that commit's own commands, and recorded what these gave. Random draws are made in another
way since, so that a seed gives other samples. With the draws of that time, everything is as recorded.
"""

import json
import math
import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bigtrain.data.index import Index
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from bigtrain.inference.model import open_model
from bigtrain.randomness import Draws
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.sample import main as sample
from launch.train import main as train
from tests.benchmarks.draws import BlockwiseDraws
from tests.fixtures.make import FAMILIES, SAMPLE_FLAGS

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "a3de763"
MADE_ON = json.loads((FIXTURES / "expected" / "made_on.json").read_text())
SAME_ARITHMETIC = MADE_ON["torch"] == torch.__version__ and MADE_ON["cpu"] == torch.backends.cpu.get_cpu_capability()
"""Whether sums are made in the order of the recordings. Then 8 bits of a picture are equal, and numbers nearly."""
RENAMED = {
    "prior": {"accuracy": "class_accuracy", "fid": "fd_classifier", "real_fid": "fd_classifier_real"},
    "gan": {"fid": "fd_features", "kid": "kd_features", "kid_std": "kd_features_std", "real_fid": "fd_features_real"},
    "vqvae": {"rfid": "rfd_features"},
    "diffusion": {"fid_dpmpp_3_guided_1": "fd_features_dpmpp_3_guided_1"},
    "ddpm": {},
}
"""Numbers that have another name since, by family: a distance says its features, which are those of features.pt here."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the folders, and the current folder: they name each other by relative paths."""
    copy = tmp_path_factory.mktemp("old") / "a3de763"
    shutil.copytree(FIXTURES, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        patch.setenv("OMP_NUM_THREADS", "1")  # as make.py: sums over two threads have other last bits
        yield copy


@pytest.fixture
def draws_of_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of a sampler was a step of the draws."""

    def blockwise(draws: Draws, sampler_step: int) -> BlockwiseDraws:
        return BlockwiseDraws(draws.seed, draws.step or sampler_step, draws.repeat)

    def normal(self: Draws, stream: str, indices: Any, shape: tuple[int, ...], sampler_step: int = 0) -> torch.Tensor:
        return blockwise(self, sampler_step).normal(stream, indices, shape)

    def uniform(self: Draws, stream: str, indices: Any, shape: Any = (), sampler_step: int = 0) -> torch.Tensor:
        return blockwise(self, sampler_step).uniform(stream, indices, shape)

    def integers(self: Draws, stream: str, indices: Any, high: int) -> torch.Tensor:
        return blockwise(self, 0).integers(stream, indices, high)

    for method in (normal, uniform, integers):
        monkeypatch.setattr(Draws, method.__name__, method)


def sample_flags(family: str, kind: str) -> list[str]:
    """What make.py asked the sample command for."""
    flags = list(SAMPLE_FLAGS[family])
    if kind == "export" and "--weights" in flags:  # an export holds one average
        del flags[flags.index("--weights") :]
    return flags if family == "vqvae" else [*flags, "--per-class", "2", "--seed", "3"]


def assert_same_picture(path: Path, expected: Path) -> None:
    ours, theirs = (np.asarray(Image.open(picture)).astype(int) for picture in (path, expected))
    assert ours.shape == theirs.shape
    if SAME_ARITHMETIC:
        np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours - theirs).mean() < 1


def assert_same_numbers(family: str, result: dict[str, Any], expected: dict[str, Any]) -> None:
    values = {RENAMED[family].get(name, name): value for name, value in expected.items() if name != "protocol"}
    assert values.keys() <= result.keys()
    if not SAME_ARITHMETIC and "class_accuracy" in values:  # of 40 samples, by a classifier that is trained here
        assert abs(result["class_accuracy"] - values.pop("class_accuracy")) < 0.15
    different = {name: (result[name], value) for name, value in values.items() if not close(result[name], value)}
    assert different == {}


def close(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, list):
        return len(ours) == len(theirs) and all(map(close, ours, theirs))
    if isinstance(theirs, dict):
        return ours.keys() == theirs.keys() and all(close(ours[name], theirs[name]) for name in theirs)
    return math.isclose(ours, theirs, rel_tol=1e-6 if SAME_ARITHMETIC else 1e-2)


@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_folder_draws_what_it_drew(
    family: str, kind: str, old: Path, tmp_path: Path, draws_of_that_time: None
) -> None:
    sample([f"{kind}s/{family}", "--out", str(tmp_path / "picture.png"), *sample_flags(family, kind)])
    assert_same_picture(tmp_path / "picture.png", old / "expected" / f"{family}_{kind}.png")


@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_seed_gives_other_samples_now(family: str, kind: str, old: Path, tmp_path: Path) -> None:
    """But a reconstruction draws nothing."""
    sample([f"{kind}s/{family}", "--out", str(tmp_path / "picture.png"), *sample_flags(family, kind)])
    ours, theirs = (
        np.asarray(Image.open(path)) for path in (tmp_path / "picture.png", old / "expected" / f"{family}_{kind}.png")
    )
    assert ours.shape == theirs.shape
    assert ((ours.astype(int) - theirs) != 0).any() == (family != "vqvae") or not SAME_ARITHMETIC


@pytest.mark.slow
def test_a_process_that_has_imported_nothing_else_opens_an_old_export(old: Path, tmp_path: Path) -> None:
    """The export names the module of its pipeline, which diffusers does not import by itself."""
    command = [
        sys.executable,
        str(ROOT / "launch" / "sample.py"),
        "exports/prior",
        "--out",
        str(tmp_path / "picture.png"),
    ]
    command += sample_flags("prior", "export")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, cwd=old, env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr[-2000:]
    sample(["exports/prior", "--out", str(tmp_path / "here.png"), *sample_flags("prior", "export")])
    assert_same_picture(tmp_path / "picture.png", tmp_path / "here.png")


@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_folder_is_evaluated_to_the_same_numbers(
    family: str, kind: str, old: Path, capsys: pytest.CaptureFixture[str], draws_of_that_time: None
) -> None:
    # Their recipes name the features by a path, which is a program, and a program is named on the command line.
    evaluate([f"{kind}s/{family}", *([] if family == "prior" else ["evaluation.features=features.pt"])])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert_same_numbers(family, result, json.loads((old / "expected" / f"{family}_{kind}.json").read_text()))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_run_is_exported_as_it_was(family: str, old: Path, tmp_path: Path, draws_of_that_time: None) -> None:
    export([f"runs/{family}", str(tmp_path / "export")])
    before, now = (
        open_model(folder, torch.device("cpu")) for folder in (old / "exports" / family, tmp_path / "export")
    )
    assert now.fingerprint == before.fingerprint
    if family != "diffusion":  # of a class-conditional one the network is diffusers' own component since
        assert weights_files(tmp_path / "export") == weights_files(old / "exports" / family)
    sample([str(tmp_path / "export"), "--out", str(tmp_path / "picture.png"), *sample_flags(family, "export")])
    assert_same_picture(tmp_path / "picture.png", old / "expected" / f"{family}_export.png")


@pytest.mark.parametrize("family", ["gan", "prior", "diffusion", "ddpm"])
def test_the_pipeline_file_of_an_old_export_still_loads_and_draws(family: str, old: Path, tmp_path: Path) -> None:
    folder = old / "exports" / family
    pipeline = runpy.run_path(str(folder / "pipeline.py"))["FamilyPipeline"].from_pretrained(str(folder))
    sample([str(folder), "--npz", str(tmp_path / "drawn.npz"), "--per-class", "1", "--seed", "3"])
    drawn = np.load(tmp_path / "drawn.npz")
    asked = {"class_labels": drawn["arr_1"].tolist()} if "arr_1" in drawn else {"count": len(drawn["arr_0"])}
    images = pipeline(**asked, seed=3).images
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), drawn["arr_0"])


@pytest.mark.parametrize("family", ["gan", "diffusion", "ddpm"])
def test_an_old_run_whose_training_draws_cannot_be_resumed(family: str, old: Path) -> None:
    before = {path: path.read_bytes() for path in (old / "runs" / family).rglob("*") if path.is_file()}
    with pytest.raises(UserError) as error:
        train([f"runs/{family}/recipe.yaml", f"run.dir=runs/{family}", "train.steps=6"])
    assert str(error.value).startswith(f"runs/{family}/recipe.yaml: this run was begun by an older bigtrain (format 1)")
    assert "run.dir=PATH" in str(error.value)
    after = {path: path.read_bytes() for path in before}
    assert after == before


@pytest.mark.parametrize("family", ["vqvae", "prior"])
def test_an_old_run_whose_training_draws_nothing_is_resumed(family: str, old: Path, tmp_path: Path) -> None:
    shutil.copytree(old / "runs" / family, tmp_path / "run")
    more = ["train.steps=3", "train.evaluate_every=null", "train.keep_best=null"]
    train([f"runs/{family}/recipe.yaml", f"run.dir={tmp_path}/run", *more])
    assert (tmp_path / "run" / "checkpoints" / "step_00000003").is_dir()


def weights_files(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert files
    return files


def test_old_indexes_keep_their_fingerprints_and_every_sample_can_be_read(old: Path) -> None:
    recorded = json.loads((old / "expected" / "fingerprints.json").read_text())
    indexes: Sequence[Index] = [Index.read(Path(path)) for path in recorded]
    assert [index.fingerprint for index in indexes] == list(recorded.values())
    assert [verify(index, workers=0) for index in indexes] == [[]] * len(indexes)
