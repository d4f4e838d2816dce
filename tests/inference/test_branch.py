"""A run goes on from a checkpoint of another one, in a folder of its own, with changed keys."""

import json
import shutil
from pathlib import Path

import pytest

from tests.runs_of import (
    FAMILIES,
    ROOT,
    Run,
    check,
    final_tensors,
    largest_difference,
    launch,
    optimizers_of,
    run,
    train,
    write_recipe,
)

SENTENCES = [
    ("train.resume={from: SOURCE, step: 3}", "there are checkpoints of step 2, 4"),
    ("train.resume={from: SOURCE, step: two}", "step: must be the step of a checkpoint"),
    ("train.resume={step: 2}", "must be {from: RUN, step: N}"),
    ("train.resume={from: EXPORT}", "is an export, which has no state of training; begin from it by train.init="),
    ("train.resume={from: OTHER}", "is a diffusion, and not a gan"),
    ("train.resume={from: nowhere}", "nowhere: there is no such folder"),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GAN that was trained for four steps, with checkpoints of the second and the fourth."""
    folder = tmp_path_factory.mktemp("source")
    train(write_recipe(folder, FAMILIES["gan"], steps=4, save_every=2))
    return folder / "run"


def test_with_no_key_changed_it_is_the_same_training(source: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=4, save_every=2)
    said = train(recipe, f"train.resume={{from: {source}, step: 2}}").stderr
    assert f"goes on from step 2 of {source}, with no key changed" in said
    assert largest_difference(final_tensors(source), final_tensors(tmp_path / "run")) == 0


def test_changed_keys_are_recorded_and_the_other_run_is_needed_no_more(source: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(source, copy)
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=5, save_every=100)
    words = [f"train.resume={{from: {copy}}}", "train.batch_size=16", "family.generator_optimizer.lr=1e-4"]
    said = train(recipe, *words).stderr
    for change in ("train.batch_size: 8 -> 16", "family.generator_optimizer.lr: 0.005 -> 0.0001"):
        assert change in said
    told = json.loads((tmp_path / "run" / "environment.json").read_bytes())["went_on_from"]
    assert (told["source"], told["step"]) == (str(copy), 4)
    assert "train.batch_size: 8 -> 16" in told["changed"]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").glob("step_*")) == [
        "step_00000004",
        "step_00000005",
    ]
    shutil.rmtree(copy)
    train(recipe, *words, "train.steps=6")
    assert json.loads((tmp_path / "run" / "environment.json").read_bytes())["went_on_from"] == told


def test_what_does_not_fit_begins_anew_and_is_named(source: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=5)
    words = [f"train.resume={{from: {source}}}", "family.generator.class_embedding=6", "ema.extra={new: {decay: 0.5}}"]
    words += ["family.discriminator_optimizer={kind: sgd, lr: 0.001, momentum: 0.9}"]
    said = train(recipe, *words).stderr
    generator = next(line for line in said.splitlines() if line.startswith("generator: "))
    assert "begin at random" in generator
    assert "average_new begins as a copy of the weights" in generator
    assert "the optimizer's state of shared.weight" in generator
    discriminator = next(line for line in said.splitlines() if line.startswith("discriminator: "))
    assert discriminator == "discriminator: the optimizer's state of all parameters begins anew"


def test_other_data_are_read_from_their_beginning(source: Path, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["gan"], steps=5)
    said = train(recipe, f"train.resume={{from: {source}}}", 'data.classes=["1","2"]').stderr
    assert "the data are others" in said
    state = json.loads((tmp_path / "run" / "checkpoints" / "step_00000005" / "state.json").read_bytes())
    assert state["position"] == 16, "two updates of the discriminator of one step"


@pytest.mark.parametrize(("word", "sentence"), SENTENCES)
def test_a_checkpoint_that_is_not_there_is_one_sentence(source: Path, tmp_path: Path, word: str, sentence: str) -> None:
    if "EXPORT" in word:
        run(ROOT / "launch" / "export.py", source, tmp_path / "export")
    other = ROOT / "tests" / "fixtures" / "a3de763" / "runs" / "diffusion"
    word = word.replace("SOURCE", str(source)).replace("EXPORT", str(tmp_path / "export")).replace("OTHER", str(other))
    said = train(write_recipe(tmp_path, FAMILIES["gan"], steps=9), word, expect=2).stderr
    assert sentence in said
    assert "Traceback" not in said


def test_no_step_left_and_two_sources_are_one_sentence(source: Path, tmp_path: Path) -> None:
    recipe, resume = write_recipe(tmp_path, FAMILIES["gan"], steps=4), f"train.resume={{from: {source}}}"
    assert "train.steps: 4 are not beyond step 4" in train(recipe, resume, expect=2).stderr
    assert "leave one of them out" in train(recipe, resume, f"train.init={source}", expect=2).stderr


@pytest.mark.slow
def test_every_strategy_on_two_ranks_goes_on_alike(tmp_path: Path) -> None:
    """With momentum, which does not make sums in another order into other weights, as Adam's division does."""
    family = optimizers_of(FAMILIES["gan"], {"kind": "sgd", "lr": 0.02, "momentum": 0.9})
    train(write_recipe(tmp_path / "begun", family, steps=2))
    words = [f"train.resume={{from: {tmp_path / 'begun' / 'run'}}}", "train.batch_size=16", "family.penalties={}"]
    runs = [
        Run(recipe.parent, (recipe, *words, f"engine.strategy={strategy}"))
        for strategy in ("ddp", "zero1", "zero2", "zero3")
        for recipe in [write_recipe(tmp_path / strategy, family, steps=4)]
    ]
    launch(runs[:1], 1)
    launch(runs[1:], 2)
    for each in runs:
        check(each.folder)
        ended = final_tensors(each.folder / "run")
        assert largest_difference(ended, final_tensors(tmp_path / "ddp" / "run")) < 1e-4, each.folder
