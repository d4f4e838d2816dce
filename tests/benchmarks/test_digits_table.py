"""The table of the digits: how many seeds, and whose notes are taken up again."""

import json
from pathlib import Path

import pytest

from tests.benchmarks.digits_table import LIKELIHOODS, ROOT, Trained, recipe_hash, seeds_of

RECIPE = ROOT / "recipes" / "vae_digits.yaml"


def test_likelihoods_have_three_seeds_and_others_one() -> None:
    recipes = {path.stem: seeds_of(path) for path in (ROOT / "recipes").glob("*digits*.yaml")}
    assert {name for name, seeds in recipes.items() if seeds == 3} == LIKELIHOODS
    assert set(recipes.values()) == {1, 3}


def test_notes_of_another_recipe_are_refused_and_older_ones_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notes = tmp_path / "vae_digits-0.json"
    notes.write_text(
        json.dumps({"evaluation": {}, "recipe": recipe_hash(RECIPE, ["train.steps=7", "run.dir=elsewhere"])})
    )
    Trained(RECIPE, 0, tmp_path, ["train.steps=7"]).read_notes()
    with pytest.raises(SystemExit) as ended:
        Trained(RECIPE, 0, tmp_path, ["train.steps=8"]).read_notes()
    assert ended.value.code == 2
    assert f"{notes}: is of another vae_digits, or of other keys; take another OUT" in capsys.readouterr().err
    notes.write_text(json.dumps({"evaluation": {}}))
    Trained(RECIPE, 0, tmp_path, ["train.steps=8"]).read_notes()
