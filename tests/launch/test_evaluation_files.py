"""What an evaluation reads and writes: only the data that its numbers need, and every file that it was asked for."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from bigtrain.errors import UserError
from bigtrain.evaluation.result import EvaluationResult
from bigtrain.inference import evaluation
from launch.evaluate import main as evaluate

OLD = Path(__file__).parents[1] / "fixtures" / "a3de763"
WITHOUT_DATA = ["data.train=nowhere/train.json", "data.validation=null"]
SETTINGS = ["evaluation.samples=40", "evaluation.features=features.pt", "evaluation.max_features=40"]


@pytest.fixture(autouse=True)
def copied(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    copy = tmp_path_factory.mktemp("old") / "a3de763"
    shutil.copytree(OLD, copy)
    monkeypatch.chdir(copy)


def result_of(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    capsys.readouterr()
    evaluate([*map(str, words)])
    result: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return result


def test_an_export_is_evaluated_against_moments_without_the_runs_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moments = tmp_path / "moments.npz"
    asked = ["evaluation.metrics=[fd]", *SETTINGS]
    whole = result_of(capsys, "exports/gan", *asked, "evaluation.seed=1", "--save-moments", moments)
    alone = result_of(capsys, "exports/gan", *asked, f"evaluation.reference={moments}", *WITHOUT_DATA)
    assert alone["fd_features"] != whole["fd_features"]
    assert alone["protocol"]["reference"]["moments"]
    same = result_of(
        capsys, "exports/gan", *asked, "evaluation.seed=1", f"evaluation.reference={moments}", *WITHOUT_DATA
    )
    assert same["fd_features"] == pytest.approx(0, abs=1e-6)


NO_DATA = ["data.train=null", "data.validation=null"]


@pytest.mark.parametrize("named", [[], NO_DATA], ids=["by its recipe", "on the command line"])
def test_an_export_that_names_no_data_is_evaluated_where_none_are_needed(
    named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["evaluation.metrics=[fd]", *SETTINGS, "evaluation.reference=images/train.json"]
    with_data = result_of(capsys, "exports/gan", *asked)
    if not named:
        recipe = Path("exports/gan/recipe.yaml")
        content = yaml.safe_load(recipe.read_text())
        del content["data"]["train"], content["data"]["validation"]
        recipe.write_text(yaml.safe_dump(content))
    assert result_of(capsys, "exports/gan", *asked, *named) == with_data


def test_a_metric_that_needs_data_asks_for_them_where_none_are_named() -> None:
    with pytest.raises(UserError, match=r"data\.train: names no data.*give their index with data\.train=INDEX"):
        evaluate(["exports/gan", "evaluation.metrics=[fd]", *SETTINGS, *NO_DATA])


def test_an_export_is_evaluated_against_other_images_without_the_runs_data(
    capsys: pytest.CaptureFixture[str],
) -> None:
    reference = "evaluation.reference=images/train.json"
    metrics = "evaluation.metrics=[kd,recall]"
    with_data = result_of(capsys, "exports/gan", metrics, *SETTINGS, reference)
    assert result_of(capsys, "exports/gan", metrics, *SETTINGS, reference, *WITHOUT_DATA) == with_data


def test_a_likelihood_of_the_validation_split_needs_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["evaluation.metrics=[bits_per_dim]", "evaluation.split=validation", "evaluation.likelihood_evaluations=2"]
    whole = result_of(capsys, "exports/diffusion", *asked)
    assert result_of(capsys, "exports/diffusion", *asked, "data.train=nowhere/train.json") == whole


@pytest.mark.parametrize(
    "asked",
    [
        ["evaluation.metrics=[fd]", "evaluation.features=features.pt"],
        ["evaluation.metrics=[fd]", "evaluation.reference=images/train.json", "evaluation.features=classifier"],
        ["evaluation.metrics=[class_accuracy]", "evaluation.features=features.pt"],
    ],
    ids=["reference", "classifier", "evaluator"],
)
def test_data_that_are_needed_are_still_asked_for(asked: list[str]) -> None:
    with pytest.raises(UserError, match=r"data\.train: nowhere/train\.json"):
        evaluate(["exports/gan", "evaluation.samples=40", *asked, *WITHOUT_DATA])


@pytest.fixture
def unwritable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only export, as root sees it too."""

    made = evaluation.tempfile.TemporaryFile

    def refused(dir: Path) -> object:
        if dir.name in ("evaluations", "gan"):
            raise OSError(30, "Read-only file system")
        return made(dir=dir)

    monkeypatch.setattr(evaluation.tempfile, "TemporaryFile", refused)
    monkeypatch.setattr(evaluation.RunFolder, "evaluation", lambda self, step: Path("/proc/evaluations/x.json"))


def test_the_result_goes_to_out_where_the_runs_folder_cannot_be_written(
    unwritable: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate(["runs/gan", "evaluation.metrics=[fd]", *SETTINGS, "--out", str(tmp_path / "o.json")])
    said = capsys.readouterr()
    assert json.loads((tmp_path / "o.json").read_text()) == json.loads(said.out.splitlines()[-1])
    assert f"it is in {tmp_path / 'o.json'} alone" in said.err


def test_a_folder_that_cannot_be_written_is_said_before_the_samples_are_drawn(
    unwritable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.evaluate.evaluate_model", lambda *_, **__: pytest.fail("sampled first"))
    with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\).*--out FILE\.json"):
        evaluate(["runs/gan", "evaluation.metrics=[fd]", *SETTINGS])


def test_a_disk_that_does_not_take_the_result_loses_neither_it_nor_the_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: EvaluationResult, path: Path) -> None:
        raise UserError(f"{path}: cannot write the evaluation (No space left on device)")

    monkeypatch.setattr(EvaluationResult, "write", full)
    flags = ["--out", str(tmp_path / "o.json"), "--save-moments", str(tmp_path / "m.npz")]
    with pytest.raises(UserError, match="No space left on device"):
        evaluate(["runs/gan", "evaluation.metrics=[fd]", *SETTINGS, *flags])
    assert (tmp_path / "m.npz").exists()
    assert "fd_features" in json.loads(capsys.readouterr().out.splitlines()[-1])
