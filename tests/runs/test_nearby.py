"""What is said of a folder that is neither a run nor an export."""

from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.evaluation.compare import compare
from bigtrain.runs.nearby import is_run_or_export, runs_meant, why_neither


def a_run(folder: Path) -> Path:
    (folder / "checkpoints" / "step_00000040").mkdir(parents=True)
    for path in (folder, folder / "checkpoints" / "step_00000040"):
        (path / "recipe.yaml").touch()
    (folder / "environment.json").touch()
    return folder


def test_the_runs_in_a_folder_one_level_too_high_are_named(tmp_path: Path) -> None:
    for name in "abcdefg":
        a_run(tmp_path / "runs" / name)
    assert is_run_or_export(tmp_path / "runs" / "a")
    sentence = runs_meant(tmp_path / "runs")
    named = ", ".join(str(tmp_path / "runs" / name) for name in "abcde")
    assert sentence is not None
    assert sentence.endswith(f"give one of them: {named} and 2 more")


@pytest.mark.parametrize(
    ("inner", "remedy"),
    [
        ("checkpoints", "give that"),
        ("checkpoints/step_00000040", "give that, with --checkpoint 40"),
        ("evaluations", "give that"),
        ("checkpoints/step_00000040/recipe.yaml", "give that, with --checkpoint 40"),
    ],
)
def test_what_lies_within_a_run_leads_to_the_run(tmp_path: Path, inner: str, remedy: str) -> None:
    """A checkpoint has a recipe.yaml of its own, and is no run."""
    run = a_run(tmp_path / "run")
    assert not is_run_or_export(run / "checkpoints" / "step_00000040")
    assert runs_meant(run / inner) == f"{run / inner}: lies in the run {run}; {remedy}"


@pytest.mark.parametrize("name", ["recipe.yaml", "environment.json"])
def test_a_file_of_a_run_leads_to_the_run(tmp_path: Path, name: str) -> None:
    run = a_run(tmp_path / "run")
    for said in (runs_meant(run / name), why_neither(run / name)):
        assert said == f"{run / name}: lies in the run {run}; give that"
    with pytest.raises(UserError, match=f"{run / name}: lies in the run {run}; give that"):
        compare([run / name], None, None)


def test_a_recipe_in_the_place_of_its_run_is_said(tmp_path: Path) -> None:
    path = tmp_path / "gan.yaml"
    path.touch()
    said = f"{path}: is a file; give the folder of the run that was trained with it"
    assert why_neither(path) == runs_meant(path) == said


def test_pictures_in_a_run_are_left_to_be_measured(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    (run / "drawn.npz").touch()
    (run / "drawn").mkdir()
    assert runs_meant(run / "drawn.npz") is None
    assert runs_meant(run / "drawn") is None


def test_where_a_folder_was_looked_for_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert why_neither(Path("gone")) == f"gone: there is no such folder (looked for {tmp_path / 'gone'})"
    (tmp_path / "pictures").mkdir()
    said = (
        "pictures: is neither a run folder nor an export (it has no recipe.yaml); launch/convert.py makes an export of "
    )
    assert why_neither(Path("pictures")) == f"{said}published weights"
    assert runs_meant(tmp_path / "pictures") is None
