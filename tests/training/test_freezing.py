"""Parameters that train.freeze names stay as they began, bit for bit, and the others are trained."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.runs_of import (
    FAMILIES,
    Run,
    check,
    final_tensors,
    largest_difference,
    launch,
    optimizers_of,
    train,
    unsharded,
    write_recipe,
)

PATTERNS = ["discriminator.*conv*", "generator.linear.*"]
FREEZE = f"train.freeze=[{','.join(PATTERNS)}]"


def weights_after(folder: Path, *words: str, steps: int) -> dict[str, torch.Tensor]:
    recipe = write_recipe(folder, FAMILIES["gan"], steps=steps)
    train(recipe, *words)
    return {name: value for name, value in final_tensors(folder / "run").items() if "/weights/" in name}


SGD = {"kind": "sgd", "lr": 0.002, "momentum": 0.5}
"""Adam's first steps would show the order of sums."""


@pytest.mark.slow
def test_every_strategy_freezes_alike(tmp_path: Path) -> None:
    """And a run that is frozen goes on under another strategy, with its averages."""
    first = {"ddp": ("ddp", 2), "zero1": ("zero1", 2), "zero2": ("zero2", 2), "zero3": ("zero3", 2)}
    then = {**first, "zero3-ddp": ("ddp", 1), "ddp-zero3": ("zero3", 2), "zero3-alone": ("zero3", 1)}
    begun: dict[str, dict[str, torch.Tensor]] = {}
    ended: dict[str, dict[str, torch.Tensor]] = {}
    for stages, steps, found in ((first, 1, begun), (then, 4, ended)):
        for processes in (1, 2):
            runs = []
            for name in [name for name, (_, ranks) in stages.items() if ranks == processes]:
                folder = tmp_path / name
                if stages is then and "-" in name:
                    shutil.copytree(tmp_path / name.split("-")[0] / "begun", folder / "run")
                recipe = write_recipe(folder, optimizers_of(unsharded("gan"), SGD), steps=steps)
                runs.append(Run(folder, (recipe, FREEZE, f"engine.strategy={stages[name][0]}", "run.seed=1")))
            launch(runs, processes)
            for run in runs:
                check(run.folder)
                found[run.folder.name] = final_tensors(run.folder / "run")
                if stages is first:
                    shutil.copytree(run.folder / "run", run.folder / "begun")
    for name, after in ended.items():
        before = begun[name.split("-")[0]]
        # Batch norm's and spectral norm's buffers are no parameters, and go on.
        parameters = {each for each in after if "/weights/" in each and each.endswith((".weight", ".bias"))}
        same = {each for each in parameters if torch.equal(before[each], after[each])}
        frozen = {each for each in parameters if is_frozen(each)}
        assert frozen, name
        assert frozen <= same, name
        assert not {each for each in parameters - frozen if each.endswith(".weight")} & same, name
        assert not [each for each in after if "/optimizer/" in each and is_frozen(each)], name
        assert largest_difference(after, ended["ddp"]) < 1e-5, name


def is_frozen(name: str) -> bool:
    component, _, parameter = name.split("/", 2)
    return "conv" in parameter if component == "discriminator" else parameter.startswith("linear.")


def test_a_resumed_run_is_the_same(tmp_path: Path) -> None:
    whole = weights_after(tmp_path / "whole", FREEZE, steps=4)
    weights_after(tmp_path / "parts", FREEZE, steps=2)
    resumed = weights_after(tmp_path / "parts", FREEZE, steps=4)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


UNKNOWN = r"'discriminator.blok.\*' matches no parameter; they are called COMPONENT.NAME, such as 'discriminator.block"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train.freeze=[discriminator.blok.*]"], UNKNOWN),
        (["train.freeze=[generator.*]"], "freezes all parameters of the generator"),
    ],
)
def test_what_cannot_be_frozen_is_one_sentence(tmp_path: Path, words: list[str], sentence: str) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=1)
    said = train(recipe, *words, expect=2).stderr
    assert re.search(sentence, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists(), "nothing is written"
