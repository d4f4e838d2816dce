"""~/ is the user's home in every path of a recipe and of a command line."""

import os
import sys
from pathlib import Path

import pytest

from bigtrain.cli import run_cli
from bigtrain.recipe import evaluation_options, load_recipe

PRIOR = """
family: {kind: prior, tokenizer: ~/tokens, condition: ~/top, optimizer: {lr: 1e-3}}
data: {train: digits}
train: {steps: 1, batch_size: 2, init: {network: ~/first}}
evaluation: {reference: ~/real}
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_recipe_s_paths_lie_below_the_home(home: Path) -> None:
    (home / "prior.yaml").write_text(PRIOR)
    recipe = load_recipe(home / "prior.yaml")
    assert (recipe.family.tokenizer, recipe.family.condition) == (f"{home}/tokens", f"{home}/top")
    assert (recipe.train.init, recipe.evaluation.reference) == ({"network": f"{home}/first"}, f"{home}/real")


def test_paths_given_on_the_command_line_lie_below_the_home(home: Path) -> None:
    (home / "w.pth").write_bytes(b"")
    options = evaluation_options(
        ["evaluation.reference=~/real", "evaluation.features=clean", "evaluation.weights=~/w.pth"]
    )
    assert (options.reference, options.weights) == (f"{home}/real", f"{home}/w.pth")


@pytest.mark.parametrize(
    ("word", "seen"),
    [
        ("~/x", "HOME/x"),
        ("--out=~/x", "--out=HOME/x"),
        ("tokenizer=~/x", "tokenizer=HOME/x"),
        ("--dependency=tokenizer=~/x", "--dependency=tokenizer=HOME/x"),
        ("run.dir=~root/x", f"run.dir={os.path.expanduser('~root/x')}"),
        ("run.note=~", "run.note=~"),
        ("a~/x", "a~/x"),
    ],
)
def test_a_command_sees_the_home_in_its_words(
    home: Path, monkeypatch: pytest.MonkeyPatch, word: str, seen: str
) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "argv", ["command.py", word])
    run_cli(told.extend)
    assert told == [seen.replace("HOME", str(home))]
