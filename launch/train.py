"""Trains a recipe: accelerate launch launch/train.py RECIPE.yaml [section.key=value ...]

The run folder is runs/NAME (run.dir=PATH to move it). The same command again resumes from the newest complete checkpoint.
train.init=EXPORT begins from other weights; launch/convert.py makes an export of published ones.

    python launch/train.py RECIPE.yaml --plan nodes=4,gpus=8

trains nothing: it prints the work of a step on such a cluster and the memory that each strategy takes, without data or GPUs.
--keys SECTION prints the keys of a section of RECIPE: what each means and may be, its default, and what the recipe says.
--schema prints the JSON schema of recipes, with which editors complete and check them.
"""

import argparse
import json
import os
import shlex
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bigtrain.cli import BRANCH, INITIAL, PARENT, Signalled, is_first, open_run, run_cli, say
from bigtrain.cluster import world
from bigtrain.cluster.launch import join_world
from bigtrain.cluster.slurm import ask_for_requeue, may_be_requeued
from bigtrain.cluster.watchdog import START_S, Watchdog, watching
from bigtrain.data.splits import describe
from bigtrain.doubts import doubts
from bigtrain.families.abilities import Encodes, HasSuccessor, Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.inference.branch import open_branch
from bigtrain.inference.checkpoint_selection import best_of
from bigtrain.inference.dependencies import located
from bigtrain.inference.initial_weights import InitialWeights
from bigtrain.inference.metric_choice import can_be_measured
from bigtrain.inference.model import make_family
from bigtrain.inference.observers import observers_of
from bigtrain.inference.splits import check_fields, find_splits
from bigtrain.keys import keys_of
from bigtrain.plan import Cluster, plan
from bigtrain.recipe import Recipe, extended, load_recipe, saying_where, schema, values_from_before, with_values
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RunFolder
from bigtrain.training.engine.kernels import faster_precision
from bigtrain.training.freezing import check_freeze
from bigtrain.training.monitoring.trackers.opening import trackers_of
from bigtrain.training.monitoring.trackers.run_tracker import check_installed
from bigtrain.training.options import check_batch
from bigtrain.training.trainer import Trainer


class PrintSchema(argparse.Action):
    """As --help does, it needs no recipe."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        print(json.dumps(schema(), indent=2))
        parser.exit()


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="what to train and how; recipes/ holds examples")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="section.key=value",
        help="keys of the recipe with other values, such as train.steps=100",
    )
    parser.add_argument(
        "--plan", metavar="nodes=N,gpus=G[,classes=C]", help="print what it would cost, and train nothing"
    )
    parser.add_argument(
        "--keys",
        metavar="SECTION",
        help="print what the keys of a section, such as family.generator, mean and may be, and train nothing",
    )
    parser.add_argument(
        "--schema", nargs=0, action=PrintSchema, help="print the JSON schema of recipes, and train nothing"
    )
    arguments = parser.parse_intermixed_args(argv)  # so that overrides may follow --plan

    recipe = located(load_recipe(arguments.recipe, arguments.overrides), Path(arguments.recipe))
    if arguments.keys is not None:
        print(keys_of(recipe, arguments.keys))
        return
    where = partial(saying_where, recipe, arguments.recipe, arguments.overrides)
    if arguments.plan is not None:
        with where():
            print(plan(recipe, Cluster.parse(arguments.plan), Path(arguments.recipe).parent))
        return
    try:
        ended_by = train(recipe, extended(arguments.recipe, recipe), where)
    except Signalled as signalled:  # during startup: there is nothing to save yet
        if is_first() and not _may_come_of_a_failure(signalled):
            ask_for_requeue(signalled.name)
        raise
    if ended_by is not None:
        # No rank exits before the request is written: a launcher that got the signal exits with 1, and Slurm then ends the
        # others.
        world.on_main(partial(ask_for_requeue, ended_by))
        if not may_be_requeued():
            raise Signalled(signal.Signals[ended_by], said=True)


def _may_come_of_a_failure(signalled: Signalled) -> bool:
    """Whether the launcher may have sent the signal because another rank failed, which it does with SIGTERM. (A job that is
    preempted during startup is requeued by Slurm's own PreemptMode=REQUEUE.)"""
    return signalled.number == signal.SIGTERM and int(os.environ.get("WORLD_SIZE", "1")) > 1


def train(
    recipe: Recipe, parent: Mapping[str, Any] | None, where: Callable[[], AbstractContextManager[None]]
) -> str | None:
    """Trains to the end, or until a signal comes: then saves a checkpoint and returns the signal's name. parent: what the run's
    record says of the recipe that its own one extends; where: `saying_where` of the recipe."""
    device = join_world(recipe.train.precision, recipe.train.accumulate)
    with watching(recipe.engine.hang_timeout_s, START_S) as watchdog:
        return _train(recipe, parent, where, device, watchdog)


def _train(
    recipe: Recipe,
    parent: Mapping[str, Any] | None,
    where: Callable[[], AbstractContextManager[None]],
    device: torch.device,
    watchdog: Watchdog,
) -> str | None:
    recipe = with_values(recipe, world.on_main(partial(_values_from_before, recipe)))
    with where():
        check_batch(recipe.train, world.size())
        check_installed(recipe.run.trackers)
        images, validation = find_splits(recipe.data)
        family = make_family(recipe, DataSpec.from_json(describe(images)))
        if validation is not None:
            check_fields(validation, family.spec, family.reads, "data.validation")
        check_freeze(family, recipe.train.freeze)
    new = _is_new(recipe)
    initial = InitialWeights.open(family, recipe.train) if new else None
    branch = open_branch(recipe) if new else None
    begun: dict[str, Any] = {INITIAL: initial.describe()} if initial is not None else {}
    begun |= {BRANCH: branch.described} if branch is not None else {}
    begun |= {PARENT: parent} if new and parent is not None else {}
    folder = open_run(recipe, images, begun)
    for sentence in doubts(recipe, images, validation):
        say(f"warning: {sentence}")
    best = best_of(family, recipe, folder)
    observers = observers_of(family, folder, recipe, images, validation, device)
    trainer = Trainer(
        family,
        images,
        folder,
        seed=recipe.run.seed,
        data=recipe.data,
        train=recipe.train,
        ema=recipe.ema,
        engine=recipe.engine,
        device=device,
        watchdog=watchdog,
        observers=observers,
        best=best,
        initial=initial.load if initial is not None else None,
        branch=branch,
        trackers=trackers_of(recipe.run.trackers, folder, recipe.run.name, recipe.to_yaml()) if world.is_main() else (),
    )
    say(f"run folder: {folder.path}")
    if branch is not None:
        say(branch.sentence)
    if hint := faster_precision(recipe.train.precision, device):
        say(hint)
    ended_by = trainer.run()
    watchdog.wait_for_all()
    if ended_by is not None:
        say(
            f"stopped by {ended_by} at step {trainer.step} of {recipe.train.steps}, with a checkpoint: the same command resumes"
        )
        return ended_by
    say(f"trained {trainer.step} steps: {folder.path}")
    if folder.samples(trainer.step).exists():
        say(f"the picture: {folder.samples(trainer.step)}")
    if commands := next_commands(family, recipe):
        say(f"next: {commands}")
    return None


def _is_new(recipe: Recipe) -> bool:
    """Whether the run has no checkpoint to go on from. Every rank calls it."""
    return world.on_main(lambda: not checkpoint.listed(RunFolder(recipe.folder).checkpoints))


def _values_from_before(recipe: Recipe) -> dict[str, Any]:
    """What a run that goes on keeps: keys that are newer than it mean what they did before they existed."""
    folder = RunFolder(recipe.folder)
    newest = checkpoint.listed(folder.checkpoints)[-1:]
    begun = (newest and checkpoint.recipe_of(newest[0])) or folder.recipe
    goes_on = (newest or folder.has_results()) and begun.is_file()
    return values_from_before(recipe, begun) if goes_on else {}


def next_commands(family: Family, recipe: Recipe) -> str | None:
    """The commands that a user may run next, by the abilities of the family; None: there are none."""
    run, data = shlex.quote(str(recipe.folder)), recipe.data
    samples = family.ability(Samples)
    if samples is not None:
        inputs = " --inputs validation" if samples.conditions_beside_label else ""
        return f"python launch/sample.py {run}{inputs} --out samples.png    python launch/export.py {run} export"
    if family.ability(Encodes) is not None:
        mirrored = " --flip" if data.flip else ""
        # Of several indexes that are read side by side, those of the images.
        given = [split.get("image") if isinstance(split, dict) else split for split in (data.train, data.validation)]
        splits = dict.fromkeys(split for split in given if split is not None)
        codes = shlex.quote(str(recipe.folder / "codes"))
        commands = [
            f"accelerate launch launch/encode.py {run} {shlex.quote(split)} {codes}{mirrored}" for split in splits
        ]
        return "encode the images, and train a model of the codes: " + "    ".join(commands)
    followed = family.ability(HasSuccessor)
    if followed is None:
        return f"accelerate launch launch/evaluate.py {run}" if can_be_measured(family, recipe.evaluation) else None
    successor = shlex.join([*followed.successor_keys(str(recipe.folder)), f"data.train={data.train}"])
    return f"{family.why_not(Samples)}: accelerate launch launch/train.py RECIPE.yaml {successor}"


if __name__ == "__main__":
    run_cli(main)
