"""A run goes on with the same data wherever they lie, and with no others."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from bigtrain.data.digits import digits_index
from tests.runs_of import FAMILIES, ROOT, train, write_recipe


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The recipe of a run of two steps on data/train.json."""
    made = digits_index("train", (16, 16)).parent
    shutil.copytree(made, tmp_path / "data")
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=2)
    train(recipe, f"data.train={tmp_path}/data/train.json")
    return recipe


def test_contents_decide_and_not_paths(begun: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    relative = os.path.relpath(tmp_path / "data", ROOT)
    for number, where in enumerate((relative, tmp_path / "link", tmp_path / "copy"), start=3):
        resumed = train(begun, f"data.train={where}/train.json", "data.validation=null", f"train.steps={number}")
        assert "another recipe" not in resumed.stderr
    assert (tmp_path / "run/checkpoints/step_00000005").is_dir()
    assert f"train: {tmp_path}/copy/train.json" in (tmp_path / "run/recipe.yaml").read_text()


def test_other_contents_are_refused_before_the_run_names_them(begun: Path, tmp_path: Path) -> None:
    before = (tmp_path / "run/recipe.yaml").read_text()
    index = json.loads((tmp_path / "data/train.json").read_text())
    labels = index["shards"][0]["labels"]
    labels[0], labels[1] = labels[1], labels[0]
    assert labels[0] != labels[1]
    (tmp_path / "data/other.json").write_text(json.dumps(index))
    refused = train(begun, f"data.train={tmp_path}/data/other.json", "train.steps=3", expect=2)
    assert f"data/other.json: data.train is not the data that {tmp_path}/run was trained on" in refused.stderr
    assert (tmp_path / "run/recipe.yaml").read_text() == before


@pytest.mark.parametrize("said", [{}, {"fingerprint": 3}, [], None], ids=str)
def test_a_checkpoint_that_says_nothing_of_its_data_is_no_fault_of_ours(begun: Path, tmp_path: Path, said: Any) -> None:
    state = tmp_path / "run/checkpoints/step_00000002/state.json"
    content = json.loads(state.read_text())
    state.write_text(json.dumps({**content, "data": said}))
    again = train(begun, f"data.train={tmp_path}/data/train.json", "train.steps=3", expect=None)
    assert again.returncode in (0, 2)
    assert "Traceback" not in again.stderr
