"""Writes a run as a diffusers folder: python launch/export.py RUN OUT [--weights ema|raw|NAME|sigma_rel=X]

Weights that others have published become one by launch/convert.py.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bigtrain.cli import run_cli, say
from bigtrain.errors import UserError
from bigtrain.exchange import hub
from bigtrain.exchange.card import Card
from bigtrain.exchange.export import Usage, export
from bigtrain.families.abilities import Samples
from bigtrain.inference.dependencies import overrides_of
from bigtrain.inference.model import Model, attach_dependencies, open_model
from bigtrain.inference.model_flags import add_model_flags
from bigtrain.runs.folder import RunFolder


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that is written")
    add_model_flags(parser, weights="ema")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload OUT to this repository of the Hub")
    parser.add_argument("--public", action="store_true", help="with --push: for all to see; default: private")
    parser.add_argument(
        "--dry-run", action="store_true", help="with --push: write OUT, list its files and sizes, and upload nothing"
    )
    arguments = parser.parse_args(argv)
    _check_push(arguments)
    if (arguments.run / "model_index.json").exists():
        raise UserError(f"{arguments.run}: is an export already; give the run folder")
    model = open_model(
        arguments.run,
        torch.device("cpu"),
        weights=arguments.weights,
        which=arguments.checkpoint,
        overrides=overrides_of(arguments.dependency, arguments.run),
    )
    samples = model.family.ability(Samples)
    if samples is not None:
        alone = samples.exported_sampling(samples.sampling)
        if alone != samples.sampling:
            say(
                "warning: an export holds no model that guides another, and samples without; name it again where it is sampled"
            )
        model = model.with_sampling(alone)
    attach_dependencies(model.family, model.device)
    usages = export(
        arguments.out,
        model.family,
        model.weights,
        recipe_yaml=model.recipe.to_yaml(),
        provenance=model.provenance,
        known_as=arguments.push,
    )
    _card(arguments.run, model, usages).write(arguments.out)
    say(f"{arguments.weights} weights of step {model.provenance['step']}: {arguments.out}")
    if arguments.push is not None:
        _push(arguments, model.provenance["step"])
    for usage in usages:
        say(f"use: {usage.expression}")


def _check_push(arguments: argparse.Namespace) -> None:
    """Raises UserError before anything is exported."""
    if arguments.push is None:
        for flag, given in (("--public", arguments.public), ("--dry-run", arguments.dry_run)):
            if given:
                raise UserError(f"{flag}: is of an upload; give --push OWNER/NAME as well")
        return
    hub.check_repository(arguments.push)
    if not arguments.dry_run:
        hub.check_can_push(arguments.push, public=arguments.public)


def _card(run: Path, model: Model, usages: Sequence[Usage]) -> Card:
    folder, step = RunFolder(run), model.provenance["step"]
    averaged = model.provenance["weights"] == "ema"  # of which evaluations and pictures are made during training
    evaluation, picture = folder.evaluation(step), folder.samples(step)
    return Card(
        model.recipe.run.name,
        model.family,
        model.recipe.to_yaml(),
        model.provenance,
        usages,
        evaluation if averaged and evaluation.is_file() else None,
        picture if averaged and picture.is_file() else None,
    )


def _push(arguments: argparse.Namespace, step: int) -> None:
    files = hub.files_of(arguments.out)
    who = "all to see" if arguments.public else "you alone"
    if arguments.dry_run:
        for file in files:
            say(f"{file.size:>15,} bytes  {file.name}")
        say(
            f"{sum(file.size for file in files):>15,} bytes  would go to {arguments.push}, for {who}; nothing was uploaded"
        )
        return
    address = hub.push(
        arguments.out, arguments.push, public=arguments.public, message=f"{arguments.weights} weights of step {step}"
    )
    say(f"pushed {len(files)} files to {address}, for {who}; fill in the licence, the data and the limits in its card")


if __name__ == "__main__":
    run_cli(main)
