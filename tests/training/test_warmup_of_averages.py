"""The warm-up of averages is a default for new runs: a run that began without it goes on without it."""

import hashlib
import json
import logging
from pathlib import Path

import pytest
import torch
import yaml

from bigtrain.errors import UserError
from bigtrain.inference.model import open_model
from bigtrain.recipe import load_recipe
from launch.train import main as train
from tests.runs_of import FAMILIES, ROOT, run, write_recipe

DRIVE = ROOT / "tests" / "drive.py"
CPU = torch.device("cpu")
OURS = ("digits", "digits_2d", "digits_32d", "moons")
"""How the names of recipes end whose settings are ours."""
GAMES = ("gan_", "two_players")
"""Games of points and numbers are ours too, however many papers they name."""
PAPERS = [
    path
    for path in sorted((ROOT / "recipes").glob("*.yaml"))
    if not path.stem.endswith(OURS) and not path.stem.startswith(GAMES) and load_recipe(path).ema.decay > 0
]


def small_recipe(folder: Path, **ema) -> Path:
    path = write_recipe(folder, FAMILIES["toy"], steps=2, save_every=2, sample_every=2)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"ema": ema}))
    return path


def begin_before_the_warm_up(path: Path) -> Path:
    """The folder of a run of a recipe, as it was written before there was `ema.warmup`."""
    run(DRIVE, path, "ema.warmup=false")
    folder = load_recipe(path).folder
    (saved,) = (folder / "checkpoints").glob("step_*")
    for recipe in (folder / "recipe.yaml", saved / "recipe.yaml"):
        written = yaml.safe_load(recipe.read_text())
        del written["ema"]["warmup"]
        recipe.write_text(yaml.safe_dump(written))
    manifest = json.loads((saved / "manifest.json").read_text())
    content = (saved / "recipe.yaml").read_bytes()
    manifest["files"]["recipe.yaml"] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_a_recipe_that_cites_a_paper_keeps_its_average(path: Path) -> None:
    assert load_recipe(path).ema.warmup is False


def test_a_new_run_warms_its_average_up(tmp_path: Path) -> None:
    assert load_recipe(small_recipe(tmp_path)).ema.warmup is True


def test_a_run_from_before_goes_on_by_the_same_command_with_the_average_that_it_had(tmp_path: Path) -> None:
    path = small_recipe(tmp_path, decay=0.9)
    folder = begin_before_the_warm_up(path)
    assert load_recipe(folder / "recipe.yaml").ema.warmup is False
    train([str(path), "train.steps=4"])
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["ema"]["warmup"] is False
    straight = small_recipe(tmp_path / "straight", decay=0.9, warmup=False)
    train([str(straight), "train.steps=4"])
    ours, theirs = (open_model(run, CPU, weights="ema", which="4") for run in (folder, load_recipe(straight).folder))
    assert ours.fingerprint == theirs.fingerprint


def test_a_run_from_before_is_not_given_another_average_by_a_recipe_that_asks_for_one(tmp_path: Path) -> None:
    path = small_recipe(tmp_path, decay=0.9)
    begin_before_the_warm_up(path)
    with pytest.raises(UserError, match=r"ema\.warmup: False -> True"):
        train([str(path), "train.steps=4", "ema.warmup=true"])


def test_an_average_that_is_still_the_initial_weights_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_recipe(tmp_path, decay=0.9999, warmup=False, extra={"short": {"decay": 0.0}, "long": {"decay": 0.999}})
    with caplog.at_level(logging.WARNING):
        train([str(path)])
    assert "the averaged weights (ema) of step 2 are to 100 % those that training began with" in caplog.text
    folder = load_recipe(path).folder
    for weights, key in (("ema", "ema.decay"), ("long", "ema.extra.long.decay")):
        caplog.clear()
        open_model(folder, CPU, weights=weights)
        assert f"the averaged weights ({weights}) of step 2" in caplog.text
        assert f"a lower {key}" in caplog.text
    for weights in ("raw", "short"):
        caplog.clear()
        open_model(folder, CPU, weights=weights)
        assert not caplog.text


def test_an_average_that_was_warmed_up_is_not_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = small_recipe(tmp_path)
    train([str(path)])
    open_model(load_recipe(path).folder, CPU)
    assert not caplog.text
