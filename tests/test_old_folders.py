"""Folders that commit a3de763 wrote, before recipes had a format number, still sample, evaluate and export.

tests/fixtures/make.py made them with that commit's own commands, and recorded what these gave.
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
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.sample import main as sample
from tests.fixtures.make import FAMILIES, SAMPLE_FLAGS

ROOT = Path(__file__).parents[1]
FIXTURES = Path(__file__).parent / "fixtures" / "a3de763"
MADE_ON = json.loads((FIXTURES / "expected" / "made_on.json").read_text())
SAME_ARITHMETIC = MADE_ON["torch"] == torch.__version__ and MADE_ON["cpu"] == torch.backends.cpu.get_cpu_capability()
"""Whether sums are made in the order of the recordings. Then 8 bits of a picture are equal, and numbers nearly."""
RENAMED = {"accuracy": "class_accuracy"}
"""Metrics that have another name since."""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the folders, and the current folder: they name each other by relative paths."""
    copy = tmp_path_factory.mktemp("old") / "a3de763"
    shutil.copytree(FIXTURES, copy)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(copy)
        patch.setenv("OMP_NUM_THREADS", "1")  # as make.py: sums over two threads have other last bits
        yield copy


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


def assert_same_numbers(result: dict[str, Any], expected: dict[str, Any]) -> None:
    values = {RENAMED.get(name, name): value for name, value in expected.items() if name != "protocol"}
    assert values.keys() <= result.keys()
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
def test_an_old_folder_draws_what_it_drew(family: str, kind: str, old: Path, tmp_path: Path) -> None:
    sample([f"{kind}s/{family}", "--out", str(tmp_path / "picture.png"), *sample_flags(family, kind)])
    assert_same_picture(tmp_path / "picture.png", old / "expected" / f"{family}_{kind}.png")


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
    assert_same_picture(tmp_path / "picture.png", old / "expected" / "prior_export.png")


@pytest.mark.parametrize("kind", ["run", "export"])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_folder_is_evaluated_to_the_same_numbers(
    family: str, kind: str, old: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate([f"{kind}s/{family}"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert_same_numbers(result, json.loads((old / "expected" / f"{family}_{kind}.json").read_text()))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_old_run_is_exported_as_it_was(family: str, old: Path, tmp_path: Path) -> None:
    export([f"runs/{family}", str(tmp_path / "export")])
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


def weights_files(folder: Path) -> dict[str, bytes]:
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.safetensors")}
    assert files
    return files


def test_old_indexes_keep_their_fingerprints_and_every_sample_can_be_read(old: Path) -> None:
    recorded = json.loads((old / "expected" / "fingerprints.json").read_text())
    indexes: Sequence[Index] = [Index.read(Path(path)) for path in recorded]
    assert [index.fingerprint for index in indexes] == list(recorded.values())
    assert [verify(index, workers=0) for index in indexes] == [[]] * len(indexes)
