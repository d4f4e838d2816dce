"""A run can be measured from another folder than the one that it was trained in."""

import json
from pathlib import Path

import pytest
import yaml

from bigtrain.inference.dependencies import data_located
from bigtrain.recipe import load_recipe
from bigtrain.runs.folder import DIRECTORY, RunFolder
from tests.runs_of import FAMILIES, write_recipe


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was started in `there` with relative paths of data, opened from `elsewhere`."""
    run = tmp_path / "runs" / "one"
    content = yaml.safe_load(write_recipe(tmp_path / "recipe", FAMILIES["gan"]).read_text())
    content["data"] |= {"train": "data/train.json", "validation": "data/validation.json"}
    run.mkdir(parents=True)
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    RunFolder(run).environment.write_text(json.dumps({DIRECTORY: str(tmp_path / "there")}))
    for folder in ("there/data", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "there" / "data" / "train.json").touch()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return run


def found(run: Path, *overrides: str) -> tuple[object, object]:
    data = data_located(load_recipe(run / "recipe.yaml", overrides), run / "recipe.yaml", overrides).data
    return data.train, data.validation


def with_train(run: Path, where: object) -> Path:
    """The run, whose own recipe says this of data.train, and null of data.validation."""
    content = yaml.safe_load((run / "recipe.yaml").read_text())
    content["data"] |= {"train": where, "validation": None}
    (run / "recipe.yaml").write_text(yaml.safe_dump(content))
    return run


def test_an_index_is_looked_for_where_the_run_was_started(run: Path, tmp_path: Path) -> None:
    there = str(tmp_path / "there" / "data" / "train.json")
    assert found(run) == (there, "data/validation.json"), "what is nowhere stays as it was given"
    assert found(with_train(run, {"a": "data/train.json", "b": "digits"}))[0] == {"a": there, "b": "digits"}


def test_what_is_here_comes_first(run: Path) -> None:
    Path("data").mkdir()
    Path("data/train.json").touch()
    assert found(run)[0] == "data/train.json"


def test_what_the_command_line_says_is_meant_from_here(run: Path) -> None:
    assert found(run, "data.train=data/train.json")[0] == "data/train.json"


def test_an_index_above_the_run_is_not_taken_for_its_own(run: Path, tmp_path: Path) -> None:
    (tmp_path / "there" / "data" / "train.json").rename(tmp_path / "train.json")
    assert found(with_train(run, "train.json"))[0] == "train.json"


def test_names_urls_and_absolute_paths_are_left_alone(run: Path, tmp_path: Path) -> None:
    for where in ("digits", "https://example.org/data/train.json", str(tmp_path / "gone" / "train.json")):
        assert found(with_train(run, where))[0] == where
