"""Training begins with the weights that train.init names, where they fit, and says what does not."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs_of import FAMILIES, ROOT, final_tensors, run, train, write_recipe


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN of the digits 0, 1, 2 and 3, trained for three steps."""
    folder = tmp_path_factory.mktemp("source")
    train(write_recipe(folder, FAMILIES["gan"], steps=3), 'data.classes=["0","1","2","3"]')
    return folder / "run"


def begun(
    folder: Path, *words: str, family: Mapping[str, Any] = FAMILIES["gan"], **how: Any
) -> tuple[dict[str, torch.Tensor], str]:
    """The weights after a step so small that it changes nothing, and what was said."""
    recipe = write_recipe(folder, family, steps=1)
    still = [f"family.{player}_optimizer.lr=1e-12" for player in ("generator", "discriminator")]
    said = train(recipe, *still, *words, **how).stderr
    return final_tensors(folder / "run"), said


def parameters(tensors: Mapping[str, torch.Tensor], component: str, kind: str) -> dict[str, torch.Tensor]:
    prefix = f"{component}/{kind}/"
    return {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and name.endswith("weight")
    }


def test_the_averages_are_taken_by_default_and_raw_weights_on_request(source: Path, tmp_path: Path) -> None:
    of_source = final_tensors(source)
    for weights, group in (("ema", "average"), ("raw", "weights"), ("wide", "average_wide")):
        words = [f"train.init={source}", f"train.init_weights={weights}", 'data.classes=["0","1","2","3"]']
        found, _ = begun(tmp_path / weights, *words)
        for component, taken in (("generator", group), ("discriminator", "weights")):
            wanted, own = parameters(of_source, component, taken), parameters(found, component, "weights")
            assert wanted.keys() == own.keys()
            for name in wanted:
                torch.testing.assert_close(own[name], wanted[name], rtol=0, atol=1e-6)


def test_classes_go_by_their_names(source: Path, tmp_path: Path) -> None:
    _, said = begun(tmp_path, f"train.init={source}", 'data.classes=["5","3","1"]')
    own, wanted = (parameters(final_tensors(path), "generator", "average") for path in (tmp_path / "run", source))
    name = next(name for name in own if len(own[name]) == 3 and len(wanted[name]) == 4)
    assert torch.allclose(own[name][[1, 2]], wanted[name][[3, 1]], atol=1e-6)
    assert not torch.allclose(own[name][0], wanted[name][0], atol=1e-3)
    assert "generator takes" in said
    assert "of the classes 3, 1" in said


def test_what_fits_nowhere_begins_at_random_and_is_named(source: Path, tmp_path: Path) -> None:
    wider = {**FAMILIES["gan"], "generator": {**FAMILIES["gan"]["generator"], "class_embedding": 6}}
    _, said = begun(tmp_path, f"train.init={source}", 'data.classes=["0","1","2","3"]', family=wider)
    sentence = next(line for line in said.splitlines() if "train.init: generator" in line)
    assert "begin at random" in sentence
    assert "of the source fit nowhere" in sentence


def test_an_export_gives_its_components_and_a_component_may_be_chosen(source: Path, tmp_path: Path) -> None:
    run(ROOT / "launch" / "export.py", source, tmp_path / "export")
    classes = 'data.classes=["0","1","2","3"]'
    found, said = begun(tmp_path / "whole", f"train.init={tmp_path / 'export'}", classes)
    assert "discriminator begins with random weights" in said
    other, _ = begun(tmp_path / "one", f"train.init={{discriminator: {source}}}", classes)
    of_source = final_tensors(source)
    for tensors, component, group in ((found, "generator", "average"), (other, "discriminator", "weights")):
        for name, value in parameters(of_source, component, group).items():
            torch.testing.assert_close(parameters(tensors, component, "weights")[name], value, rtol=0, atol=1e-6)


def test_where_weights_came_from_is_kept_and_the_source_not_needed_again(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=1)
    words = [f"train.init={copy}", 'data.classes=["0","1","2","3"]']
    train(recipe, *words)
    recorded = json.loads((tmp_path / "run" / "environment.json").read_bytes())["initial_weights"]
    assert recorded["generator"]["source"] == str(copy)
    assert recorded["generator"]["step"] == 3
    assert len(recorded["generator"]["sha256"]) == 64
    shutil.rmtree(copy)
    train(recipe, *words, "train.steps=2")
    assert json.loads((tmp_path / "run" / "environment.json").read_bytes())["initial_weights"] == recorded


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("train.init={generater: SOURCE}", "'generater' is no component of a gan; did you mean 'generator'?"),
        ("train.init=nowhere", "nowhere: there is no such folder"),
        ("train.init={}", "must be the path of a run or an export, or several by component"),
        ("train.init=OTHER", "has no tensor that fits any component of this gan"),
    ],
)
def test_a_source_that_gives_nothing_is_one_sentence(source: Path, tmp_path: Path, word: str, sentence: str) -> None:
    other = ROOT / "tests" / "fixtures" / "a3de763" / "runs" / "diffusion"
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=1)
    word = word.replace("SOURCE", str(source)).replace("OTHER", str(other))
    said = train(recipe, word, expect=2).stderr
    assert sentence in said
    assert "Traceback" not in said


def test_an_average_that_the_source_does_not_keep_is_one_sentence(source: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=1)
    said = train(recipe, f"train.init={source}", "train.init_weights=narrow", expect=2).stderr
    assert "has no average 'narrow' (train.init_weights); there are ema, raw, wide" in said


@pytest.mark.slow
def test_two_ranks_begin_as_one_does_with_other_classes(source: Path, tmp_path: Path) -> None:
    """(Under every strategy: test_between_strategies.py.)"""
    words = [f"train.init={source}", 'data.classes=["2","1","7"]', "family.penalties={}"]
    one, _ = begun(tmp_path / "one", *words)
    two, _ = begun(tmp_path / "two", *words, "engine.strategy=zero3", processes=2)
    for component in ("generator", "discriminator"):
        for name, value in parameters(one, component, "weights").items():
            torch.testing.assert_close(parameters(two, component, "weights")[name], value, rtol=0, atol=1e-6)
