"""Parameters that train.freeze names stay as they began, bit for bit, and the others are trained."""

import re
from pathlib import Path

import pytest
import torch

from tests.runs_of import FAMILIES, final_tensors, train, write_recipe

PATTERNS = ["discriminator.*conv*", "generator.linear.*"]
FREEZE = f"train.freeze=[{','.join(PATTERNS)}]"


def weights_after(folder: Path, *words: str, processes: int = 1, steps: int = 2) -> dict[str, torch.Tensor]:
    recipe = write_recipe(folder, FAMILIES["gan"], steps=steps)
    train(recipe, *words, processes=processes)
    return {name: value for name, value in final_tensors(folder / "run").items() if "/weights/" in name}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2"])
def test_frozen_parameters_stay_as_they_were(tmp_path: Path, strategy: str) -> None:
    engine = f"engine.strategy={strategy}"
    short = weights_after(tmp_path / "short", FREEZE, engine, steps=1, processes=2)
    long = weights_after(tmp_path / "long", FREEZE, engine, steps=3, processes=2)
    # Batch norm's and spectral norm's buffers are no parameters, and go on.
    same = {name for name in short if torch.equal(short[name], long[name])}
    frozen = {name for name in short if name.endswith((".weight", ".bias")) and is_frozen(name)}
    assert frozen
    assert frozen <= same
    trained = {name for name in short if name.endswith(".weight") and not is_frozen(name)}
    assert not trained & same


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
        ([FREEZE, "engine.strategy=zero3", "family.penalties={}"], "zero3 cannot freeze a part of a component"),
    ],
)
def test_what_cannot_be_frozen_is_one_sentence(tmp_path: Path, words: list[str], sentence: str) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=1)
    said = train(recipe, *words, expect=2).stderr
    assert re.search(sentence, said), said
    assert "Traceback" not in said
    assert not (tmp_path / "run").exists(), "nothing is written"
