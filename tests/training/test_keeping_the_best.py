"""A run keeps the checkpoint of its best evaluation, warns of a bad one, and the commands find the best."""

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.splits import describe, find_index
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import find_family
from bigtrain.inference.checkpoint_selection import best_of, in_training
from bigtrain.inference.model import open_model
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs import atomic, checkpoint
from bigtrain.runs.folder import RunFolder
from bigtrain.training.interruption import SIGNALS
from bigtrain.training.trainer import Trainer
from tests.runs_of import FAMILIES, ended, write_recipe

CPU = torch.device("cpu")
FIDS = {2: 50.0, 4: 20.0, 6: 30.0, 8: 41.0, 10: 25.0}


class Scripted:
    """An evaluation whose results are known beforehand."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self.signal_at = -1

    def has(self, step):
        return step in self.seen

    def observe(self, step, networks, should_stop):
        self.seen.append(step)
        if step == self.signal_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return {"fd_classifier": FIDS[step]}


def recipe_of(folder: Path, **train) -> Recipe:
    train = {"steps": 10, "log_every": 5, "save_every": 5, "evaluate_every": 2, "keep_best": "fd"} | train
    return load_recipe(write_recipe(folder, FAMILIES["toy"], **train))


def trainer_of(recipe: Recipe) -> Trainer:
    index = find_index("digits", "train", 16)
    family = find_family("toy")(recipe.family, DataSpec.from_json(describe(index)))
    folder = RunFolder(recipe.folder)
    ended(folder.path)
    folder.claim(recipe.to_yaml().encode())
    atomic.write_bytes(folder.recipe, recipe.to_yaml().encode())
    return Trainer(
        family, index, folder, seed=0, data=recipe.data, train=recipe.train, ema=recipe.ema, engine=recipe.engine,
        device=CPU, watchdog=Watchdog(None), observers={"evaluate": Scripted()}, best=best_of(family, recipe, folder),
    )  # fmt: skip


def test_the_best_checkpoint_outlives_the_newest_and_a_bad_evaluation_is_warned_of(tmp_path, capsys):
    trainer = trainer_of(recipe_of(tmp_path))
    assert trainer.run() is None
    steps = [int(path.name.removeprefix("step_")) for path in checkpoint.listed(trainer.folder.checkpoints)]
    assert steps == [4, 5, 10]
    assert open_model(trainer.folder.path, CPU, which="best").provenance["step"] == 4
    assert open_model(trainer.folder.path, CPU).provenance["step"] == 10
    assert open_model(trainer.folder.path, CPU, which="5").provenance["step"] == 5
    rows = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    warnings = [row for row in rows if "warning" in row]
    assert [row["step"] for row in warnings] == [8]
    assert "fd_classifier is 41, and was 20 at step 4" in warnings[0]["warning"]
    assert "warning: step 8: fd_classifier is 41" in capsys.readouterr().err


def test_a_step_that_is_best_and_the_last_before_a_signal_is_saved_once(tmp_path, monkeypatch):
    """Writing its checkpoint again would take it away for a moment in which the job may be killed."""
    trainer = trainer_of(recipe_of(tmp_path))
    monkeypatch.setattr(trainer.observers["evaluate"], "signal_at", 4)
    saved = []
    monkeypatch.setattr(trainer._writer, "start", lambda step, *_: saved.append(step))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    assert trainer.run() == "SIGTERM"
    for number, handler in handlers.items():
        signal.signal(number, handler)
    assert saved == [2, 4]


@pytest.mark.slow
def test_a_run_that_goes_on_from_before_its_best_finds_it_again(tmp_path):
    whole = trainer_of(recipe_of(tmp_path / "whole"))
    whole.run()
    cut = trainer_of(recipe_of(tmp_path / "cut"))
    cut.run()
    for path in checkpoint.listed(cut.folder.checkpoints):
        if path.name != "step_00000004":
            checkpoint.discard(path)
    checkpoint.discard(cut.folder.checkpoints / "step_00000004")
    resumed = trainer_of(recipe_of(tmp_path / "cut"))
    resumed.run()
    for name in ("step_00000004", "step_00000010"):
        (one, other) = (checkpoint.Checkpoint(t.folder.checkpoints / name).tensors("maker") for t in (whole, resumed))
        assert all(torch.equal(one["average"][key], other["average"][key]) for key in one["average"])
    assert checkpoint.best_path(resumed.folder.checkpoints).name == "step_00000004"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"keep_best": "fdd"}, r"train\.keep_best: fdd is not measured.*choose one of fd, recall, class_accuracy"),
        ({"keep_best": "bits_per_dim"}, r"train\.keep_best: bits_per_dim is not measured"),
        ({"evaluate_every": None}, r"train\.keep_best: nothing is evaluated in training; set train\.evaluate_every"),
    ],
)
def test_a_metric_that_cannot_decide_is_a_user_error(tmp_path, train, message):
    with pytest.raises(UserError, match=message):
        trainer_of(recipe_of(tmp_path, **train))


def test_a_fid_of_other_features_than_inceptions_cannot_decide(tmp_path):
    path = write_recipe(tmp_path, FAMILIES["toy"], evaluate_every=2)
    with pytest.raises(UserError, match=r"train\.keep_best: fid is a distance in .* Inception.*ask for fd"):
        trainer_of(load_recipe(path, ["train.keep_best=fid"]))
    inception = load_recipe(path, ["train.keep_best=fid", "evaluation.features=clean"])
    index = find_index("digits", "train", 16)
    family = find_family("toy")(inception.family, DataSpec.from_json(describe(index)))
    (tmp_path / "of_inception" / "checkpoints").mkdir(parents=True)
    best = best_of(family, inception, RunFolder(tmp_path / "of_inception"))
    assert best.update(2, {"fid": 4.0}).best


def test_evaluations_in_training_may_be_smaller(tmp_path):
    recipe = recipe_of(tmp_path, evaluate_samples=16)
    assert recipe.evaluation.samples == 64
    assert in_training(recipe).evaluation.samples == 16
