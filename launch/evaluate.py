"""Evaluates a run or an export: accelerate launch launch/evaluate.py WHAT [section.key=value ...]

Samples, or reads held-out data, on all ranks with the averaged weights. The last line of stdout is one JSON object, the
protocol in it; it is also written to WHAT/evaluations/. Only evaluation.*, data.* and family.sampling.* may be overridden.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bigtrain.cluster.launch import join_world
from bigtrain.doors import door, print_result, say
from bigtrain.errors import UserMistake
from bigtrain.model import find_splits, open_model
from bigtrain.observers import evaluate_model, write_evaluation


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", metavar="WHAT", type=Path, help="a run folder or an export")
    parser.add_argument(
        "--weights", help="averaged weights (ema), a run's own (raw), or the name of a further average; default: ema"
    )
    parser.add_argument(
        "--checkpoint", default="newest", help="a run's newest (default), best (train.keep_best), or a step"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value")
    arguments = parser.parse_args(argv)
    for override in arguments.overrides:
        if not override.startswith(("evaluation.", "data.", "family.sampling.")):
            raise UserMistake(
                f"command line: {override!r} would change what was trained; an evaluation may override evaluation.*, data.* "
                "and family.sampling.*"
            )

    device = join_world()
    model = open_model(
        arguments.what,
        device,
        weights=arguments.weights,
        which=arguments.checkpoint,
        overrides=arguments.overrides,
    )
    recipe = model.recipe
    train, validation = find_splits(recipe.data)
    model.check_data(train, "data.train")
    result = evaluate_model(model, train, validation)
    assert result is not None, "an evaluation that nothing stops has a result"
    print_result(result)
    say(f"written to {write_evaluation(arguments.what, model.provenance['step'], result)}")


if __name__ == "__main__":
    door(main)
