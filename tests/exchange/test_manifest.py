"""An export is whole and unchanged, or it is refused: by the commands, and by the pipelines wherever its files arrive."""

import fcntl
import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
from safetensors.torch import load_file, save_file

import bigtrain.pipelines.pipeline  # noqa: F401  # exports of earlier versions name it
from bigtrain.errors import UserError
from bigtrain.exchange import export as exporting
from bigtrain.exchange.card import CARD, EVALUATION, PICTURE
from bigtrain.exchange.pipeline import ExportedModel, FamilyPipeline, family_pipeline_of
from launch.export import main as export
from launch.sample import main as sample

OLD = Path(__file__).parents[1] / "fixtures" / "a3de763"
COMPONENT = {"gan": "model", "ddpm": "unet"}
"""The kinds of exports: of our own pipeline, and of one of diffusers'."""
FOR_THE_HUB = ("manifest.json", "recipe.yaml", "provenance.json", "pipeline.py")
"""The files that diffusers does not fetch from there."""


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports of old runs, by this version."""
    folder = tmp_path_factory.mktemp("exports")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(OLD)
        for family in COMPONENT:
            export([f"runs/{family}", str(folder / family)])
    return folder


@pytest.fixture(params=COMPONENT)
def exported(request: pytest.FixtureRequest, exports: Path, tmp_path: Path) -> Path:
    shutil.copytree(exports / request.param, tmp_path / request.param)
    return tmp_path / request.param


def weights_of(folder: Path) -> Path:
    return folder / COMPONENT[folder.name] / "diffusion_pytorch_model.safetensors"


def draw(folder: Path) -> None:
    sample([str(folder), "--npz", str(folder.parent / "samples.npz"), "--per-class", "1"])


def load(folder: Path) -> Any:
    kind = FamilyPipeline if folder.name == "gan" else family_pipeline_of(diffusers.DDPMPipeline)
    return kind.from_pretrained(str(folder))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def change_tensors(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def lose(tensors: dict[str, Any]) -> None:
    del tensors[max(tensors)]


def gain(tensors: dict[str, Any]) -> None:
    tensors["another"] = tensors[max(tensors)].clone()


HARMS: dict[str, Callable[[Path], object]] = {
    "a bit of the weights": lambda folder: flip(weights_of(folder)),
    "a tensor less": lambda folder: change_tensors(weights_of(folder), lose),
    "a tensor more": lambda folder: change_tensors(weights_of(folder), gain),
    "truncated weights": lambda folder: os.truncate(weights_of(folder), 1000),
    "no configuration": lambda folder: (weights_of(folder).parent / "config.json").unlink(),
    "another configuration": lambda folder: (weights_of(folder).parent / "config.json").open("a").write(" "),
    "a file more": lambda folder: (weights_of(folder).parent / "another.py").write_text("raise SystemExit"),
}


def test_a_whole_export_is_drawn_and_its_manifest_lists_its_files(exported: Path) -> None:
    draw(exported)
    assert len(load(exported)(**({"count": 1} if exported.name == "ddpm" else {"class_labels": [0]})).images) == 1
    files = json.loads((exported / "manifest.json").read_text())["files"]
    names = {str(path.relative_to(exported)) for path in exported.rglob("*") if path.is_file()}
    assert files.keys() == names - {"manifest.json", CARD, PICTURE, EVALUATION}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_export_is_refused_by_the_commands_and_by_the_pipelines(harm: str, exported: Path) -> None:
    HARMS[harm](exported)
    with pytest.raises(UserError, match=r": the export is incomplete or damaged \(.*export the run again"):
        draw(exported)
    with pytest.raises((OSError, ValueError)):
        load(exported)


@pytest.mark.parametrize("harm", [harm for harm in HARMS if harm != "a file more"])
def test_what_arrives_from_the_hub_is_checked(harm: str, exported: Path) -> None:
    for name in FOR_THE_HUB:
        (exported / name).unlink()
    load(exported)
    HARMS[harm](exported)
    with pytest.raises((OSError, ValueError)):
        load(exported)


@pytest.mark.parametrize("name", ["recipe.yaml", "provenance.json", "model_index.json", "pipeline.py"])
def test_every_file_is_in_the_manifest(name: str, exported: Path) -> None:
    with (exported / name).open("a") as file:
        file.write("\n")
    with pytest.raises(UserError, match=rf"{name} has another size than was written"):
        draw(exported)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"files": 3}', '{"files": {}}', "[" * 5000, '{"files": {"model_index.json": 1}}']
)
def test_a_manifest_that_says_nothing_is_a_sentence(content: str, exported: Path) -> None:
    (exported / "manifest.json").write_text(content)
    with pytest.raises(UserError, match="the export is incomplete or damaged"):
        draw(exported)


@pytest.mark.parametrize("family", COMPONENT)
@pytest.mark.parametrize("change", [lose, gain])
def test_an_export_of_an_earlier_version_holds_each_tensor_and_no_other(
    change: Callable[[dict[str, Any]], None], family: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(OLD / "exports" / family, tmp_path / family)
    draw(folder)
    change_tensors(weights_of(folder), change)
    with pytest.raises(UserError, match=r"damaged \(the weights of .*1 tensors"):
        draw(folder)
    with pytest.raises(ValueError, match=r"the weights of .* 1 tensors"):
        load(folder)


def test_a_model_that_is_loaded_by_itself_holds_each_tensor(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "exports" / "gan", tmp_path / "gan")
    change_tensors(weights_of(folder), lose)
    with pytest.raises(ValueError, match="the weights of this export lack 1 tensors"):
        ExportedModel.from_pretrained(str(folder / "model"))


@pytest.mark.parametrize("family", COMPONENT)
def test_a_component_of_another_library_is_refused(family: str, tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "exports" / family, tmp_path / family)
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {COMPONENT[family]: ["subprocess", "Popen"]}))
    with pytest.raises(UserError, match="is of neither diffusers nor bigtrain"):
        draw(folder)


def test_a_recipe_that_describes_another_model_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "exports" / "gan", tmp_path / "gan")
    recipe = (folder / "recipe.yaml").read_text()
    changed = re.sub(r"(?m)^( +channels: )2$", r"\g<1>8", recipe)
    assert changed != recipe
    (folder / "recipe.yaml").write_text(changed)
    with pytest.raises(UserError, match=r"recipe\.yaml and model/config\.json describe different models"):
        draw(folder)


@pytest.mark.parametrize("family", COMPONENT)
@pytest.mark.parametrize("name", ["provenance.json", "model_index.json", "COMPONENT/config.json"])
def test_an_export_whose_file_is_a_fifo_is_refused_at_once(name: str, family: str, tmp_path: Path) -> None:
    folder = shutil.copytree(OLD / "exports" / family, tmp_path / family)
    path = folder / name.replace("COMPONENT", COMPONENT[family])
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"a FIFO|has no checkpoint"):
        draw(folder)


def test_all_is_flushed_before_the_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: set[int] = set()
    forgotten: list[str] = []
    fsync, rename = os.fsync, os.rename

    def noted(descriptor: int) -> None:
        flushed.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def checked(source: Path, target: Path) -> None:
        all_paths = [Path(source), *Path(source).rglob("*")]
        forgotten.extend(str(path) for path in all_paths if path.stat().st_ino not in flushed)
        rename(source, target)

    monkeypatch.chdir(OLD)
    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(exporting.os, "rename", checked)
    export(["runs/ddpm", str(tmp_path / "out")])
    assert forgotten == []
    assert tmp_path.stat().st_ino in flushed


def test_a_signal_before_the_folder_is_locked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        assert len(os.listdir(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt), exporting._staging(tmp_path / "export"):
        pass
    assert os.listdir(tmp_path) == []


def test_an_export_that_is_there_already_is_done_and_any_other_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill after the rename leaves a whole export, and the same command again has nothing to do."""
    monkeypatch.chdir(OLD)
    out = tmp_path / "out"
    export(["runs/gan", str(out)])
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert {path.name for path in before} > {"README.md"}
    export(["runs/gan", str(out)])
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    with pytest.raises(UserError, match="out: exists already"):
        export(["runs/gan", str(out), "--weights", "raw"])
    flip(weights_of(out.rename(tmp_path / "gan")))
    with pytest.raises(UserError, match="gan: exists already"):
        export(["runs/gan", str(tmp_path / "gan")])


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(OLD)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for most in (100, 3000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, limits[1]))
        try:
            with pytest.raises(UserError, match="out: cannot write the export"):
                export(["runs/gan", str(tmp_path / "out")])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed_and_what_is_written_now_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"killed": ".out.0123456789ab.tmp", "at work": ".out.ba9876543210.tmp", "other": ".out2.0123456789ab.tmp"}
    for name in names.values():
        (tmp_path / name / "model").mkdir(parents=True)
    descriptor = os.open(tmp_path / names["at work"], os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    monkeypatch.chdir(OLD)
    export(["runs/ddpm", str(tmp_path / "out")])
    os.close(descriptor)
    assert {path.name for path in tmp_path.iterdir()} == {"out", names["at work"], names["other"]}
