"""What a command writes for others has the mode that the umask gives; a group shares its runs, shards and exports."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.export import main as export
from launch.train import main as train
from tests.launch.test_evaluation_files import OLD
from tests.runs_of import FAMILIES, write_recipe


@pytest.fixture(params=[0o022, 0o002, 0o027], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode) for path in sorted(folder.rglob("*"))}


def expected(folder: Path, umask: int) -> dict[str, int]:
    return {
        str(path.relative_to(folder)): (0o777 if path.is_dir() else 0o666) & ~umask
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("family", ["gan", "ddpm"])
def test_files_of_an_export_follow_the_umask(
    family: str, umask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(OLD)
    export([f"runs/{family}", str(tmp_path / "export")])
    found = modes(tmp_path / "export")
    assert any(name.endswith(".safetensors") for name in found)
    assert found == expected(tmp_path / "export", umask)


def test_files_of_a_run_follow_the_umask(umask: int, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=2, save_every=2, sample_every=2)
    train([str(recipe)])
    found = modes(tmp_path / "run")
    assert {".lock", "checkpoints/step_00000002/manifest.json", "samples/step_00000002.png"} <= found.keys()
    assert found == expected(tmp_path / "run", umask)
