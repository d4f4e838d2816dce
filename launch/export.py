"""Writes a run as a diffusers folder: python launch/export.py RUN OUT [--weights ema|raw|NAME|sigma_rel=X]"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from bigtrain.cli import run_cli, say
from bigtrain.errors import UserError
from bigtrain.exchange.export import export
from bigtrain.families.abilities import Samples
from bigtrain.inference.dependencies import add_flag, overrides_of
from bigtrain.inference.model import attach_dependencies, open_model


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder that is written")
    parser.add_argument(
        "--weights",
        default="ema",
        help="averaged weights (ema), the run's own (raw), the name of an extra average, or sigma_rel=X for an average of that "
        "width (ema.posthoc)",
    )
    parser.add_argument(
        "--checkpoint", default="newest", help="a run's newest (default), best (train.keep_best), or a step"
    )
    add_flag(parser)
    arguments = parser.parse_args(argv)
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
    expressions = export(
        arguments.out,
        model.family,
        model.weights,
        recipe_yaml=model.recipe.to_yaml(),
        provenance=model.provenance,
    )
    say(f"{model.provenance['weights']} weights of step {model.provenance['step']}: {arguments.out}")
    for expression in expressions:
        say(f"use: {expression}")


if __name__ == "__main__":
    run_cli(main)
