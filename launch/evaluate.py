"""Evaluates a run, an export, or any images, on all ranks; the last line of stdout is one JSON object.

  accelerate launch launch/evaluate.py RUN [section.key=value ...]
  accelerate launch launch/evaluate.py samples/ evaluation.reference=real/ evaluation.features=clean
  accelerate launch launch/evaluate.py RUN --sweep family.sampling.truncation=0.5,0.7,1
  python launch/evaluate.py --compare RUN_OR_JSON ...

A run or an export is evaluated with its averaged weights, on samples that it draws or on held-out data. The result is also
written to WHAT/evaluations/; evaluation.*, data.* and family.sampling.* may be overridden. launch/convert.py makes an export of
weights that others have published. Images are a folder (with its subfolders), a tar or zip, an npz of samples (arr_0), or an
index of shards, which may be a URL; only evaluation.* may be overridden. A TorchScript file as evaluation.features or
evaluation.classifier is a program, which runs with your rights.
"""

import argparse
from collections import deque
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from bigtrain import beats
from bigtrain.cli import print_result, run_cli, say
from bigtrain.cluster import world
from bigtrain.cluster.launch import join_world
from bigtrain.cluster.watchdog import watching
from bigtrain.errors import UserError
from bigtrain.evaluation.compare import compare, compare_values
from bigtrain.evaluation.evaluate_images import evaluate_images
from bigtrain.evaluation.moment_files import write_moments
from bigtrain.evaluation.result import EvaluationResult
from bigtrain.exchange.hub import is_hub_model, local
from bigtrain.inference.dependencies import overrides_of
from bigtrain.inference.evaluation import check_file_writable, check_writable, evaluate_model, write_evaluation
from bigtrain.inference.metric_choice import needed_splits
from bigtrain.inference.model import Model, attach_dependencies, hang_timeout_s, open_model
from bigtrain.inference.model_flags import add_model_flags
from bigtrain.inference.splits import check_fields, find_needed
from bigtrain.inference.sweep import FLAGS, Claim, Sweep, file_name, folder_of, named, path_of, samples_beside
from bigtrain.recipe import evaluation_options
from bigtrain.runs import atomic
from bigtrain.runs.nearby import is_run_or_export, runs_meant
from bigtrain.training.engine.options import EngineOptions


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_intermixed_args(argv)
    if arguments.sweep is not None:
        arguments.sweep = Sweep.parse(arguments.sweep)
    _check_flags(arguments)
    if arguments.compare is not None:
        return compare(arguments.compare, arguments.csv, arguments.picture)
    if arguments.what is None:
        raise UserError("evaluate.py: say what to evaluate, or --compare RUN_OR_JSON ...")
    _take_from_hub(arguments)
    if is_run_or_export(Path(arguments.what)):
        return _evaluate_model(arguments)
    return _evaluate_images(arguments)


def _take_from_hub(arguments: argparse.Namespace) -> None:
    """Fetches a model of the Hub. Raises UserError if its evaluation has no place: nothing is written into the Hub's cache."""
    if is_hub_model(arguments.what):
        if arguments.sweep is not None:
            raise UserError(f"--sweep: {arguments.what} is on the Hub; export a run, or copy the model, and sweep that")
        if arguments.out is None:
            raise UserError(f"{arguments.what}: is on the Hub, and nothing is written beside it; give --out FILE.json")
        arguments.what = local(arguments.what)
        arguments.only_out = True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(only_out=False)  # whether it is written to --out alone
    parser.add_argument(
        "what", metavar="WHAT", nargs="?", help="a run, an export (also hf://OWNER/NAME[@REVISION]), or images"
    )
    add_model_flags(parser)
    parser.add_argument("--out", metavar="FILE.json", type=Path, help="write the result here too")
    parser.add_argument(
        "--save-moments",
        metavar="FILE.npz",
        type=Path,
        help="write mu and sigma of WHAT's features, as FID tools read them",
    )
    parser.add_argument(
        "--sweep",
        metavar="KEY=VALUE,...",
        help="evaluate with each value of a key of family.sampling, of weights, sigma_rel or checkpoint: one table, and a "
        "picture of the distance against the recall, in WHAT/evaluations/sweeps (or --csv, --picture); none is measured twice",
    )
    parser.add_argument(
        "--compare", metavar="RUN_OR_JSON", type=Path, nargs="+", help="print a table of existing evaluations"
    )
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the table of --compare or --sweep here too")
    parser.add_argument(
        "--picture", metavar="FILE.png", type=Path, help="draw the table of --compare, or the curve of --sweep"
    )
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="such as evaluation.samples=1000")
    return parser


def _check_flags(arguments: argparse.Namespace) -> None:
    """Raises UserError for a flag that would be ignored, or that names a file in a folder that does not exist."""
    evaluation_flags = {
        "--out": arguments.out,
        "--save-moments": arguments.save_moments,
        "--weights": arguments.weights,
        "--checkpoint": None if arguments.checkpoint == "newest" else arguments.checkpoint,
        "--dependency": arguments.dependency or None,
        "--sweep": arguments.sweep,
    }
    table_flags = {"--csv": arguments.csv, "--picture": arguments.picture}
    if arguments.sweep is not None:
        _check_flags_of_sweep(arguments)
    no_table = arguments.compare is None and arguments.sweep is None
    ignored = (
        table_flags if no_table else {} if arguments.compare is None else {**evaluation_flags, "WHAT": arguments.what}
    )
    for flag, given in ignored.items():
        if given is not None:
            where = "without --compare or --sweep" if flag in table_flags else "with --compare"
            raise UserError(f"{flag}: does not go {where}; leave it out")
    for flag, file in {**evaluation_flags, **table_flags}.items():
        if isinstance(file, Path) and not file.parent.is_dir():  # now, and not after hours of evaluation
            raise UserError(f"{flag}: {file}: there is no folder {file.parent}; make it first")
        if isinstance(file, Path) and file.is_dir():
            raise UserError(f"{flag}: {file}: is a folder; name a file in it")


def _check_files_writable(arguments: argparse.Namespace) -> None:
    """Raises UserError for a file that could not be written; for the main rank, which alone writes."""
    files = {
        "--out": arguments.out,
        "--save-moments": arguments.save_moments,
        "--csv": arguments.csv,
        "--picture": arguments.picture,
    }
    for flag, file in files.items():
        if file is not None:
            check_file_writable(file, flag)


def _check_flags_of_sweep(arguments: argparse.Namespace) -> None:
    """Raises UserError for a flag that a sweep sets, or would ignore."""
    swept = {"--weights": ("weights", "sigma_rel"), "--checkpoint": ("checkpoint",)}.items()
    given = {"--weights": arguments.weights is not None, "--checkpoint": arguments.checkpoint != "newest"}
    for flag, keys in swept:
        if given[flag] and arguments.sweep.key in keys:
            raise UserError(f"{flag}: is what --sweep {arguments.sweep.key} varies; leave one of them out")
    for flag, value in {"--out": arguments.out, "--save-moments": arguments.save_moments}.items():
        if value is not None:
            raise UserError(f"{flag}: holds one evaluation, and --sweep makes several; leave it out")


def _evaluate_model(arguments: argparse.Namespace) -> None:
    for override in arguments.overrides:
        if not override.startswith(("evaluation.", "data.", "family.sampling.")):
            raise UserError(
                f"command line: {override!r} would change what was trained; an evaluation may override evaluation.*, data.* "
                "and family.sampling.*"
            )
    folder = Path(arguments.what)
    limit_s, device = hang_timeout_s(folder), join_world()
    with watching(limit_s) as watchdog:
        watchdog.mark("evaluates", patient=True)
        _evaluate_opened(arguments, folder, device)


def _evaluate_opened(arguments: argparse.Namespace, folder: Path, device: torch.device) -> None:
    world.on_main(partial(_check_files_writable, arguments))
    if arguments.out is None:
        world.on_main(partial(check_writable, folder))
    if arguments.sweep is not None:
        _sweep(arguments, folder, device)
        return
    model = _open(arguments, folder, device)
    evaluated = _evaluated(arguments, model)
    print_result(evaluated.result)  # before anything is written: the disk may be full
    _write(arguments, evaluated)
    if not arguments.only_out:
        _write_beside(arguments, folder, model.provenance["step"], evaluated)


def _write_beside(arguments: argparse.Namespace, folder: Path, step: int, evaluated: EvaluationResult) -> None:
    """Writes the result into the folder of what was evaluated."""
    try:
        say(f"written to {write_evaluation(folder, step, evaluated)}")
    except UserError as error:
        if arguments.out is None:
            raise UserError(f"{error}; write it elsewhere with --out FILE.json") from None
        say(f"warning: {error}; it is in {arguments.out} alone")


def _sweep(arguments: argparse.Namespace, folder: Path, device: torch.device) -> None:
    """Evaluates with each value, and shows the table of all."""
    sweep: Sweep = arguments.sweep
    paths, opened = _checked(arguments, folder, device)
    left = deque((value, False) for value in sweep.values)
    while left:
        value, patient = left.popleft()
        claim = Claim(paths[value])
        try:
            if world.on_main(partial(claim.take, patient)):
                say(f"{sweep.name(value)}:")
                model = _open(arguments, folder, device, sweep, value, opened)
                evaluated = _evaluated(arguments, model, samples_beside(paths[value]))
                world.on_main(beats.as_work("writes the evaluation", partial(_keep, evaluated, paths[value])))
            elif world.on_main(paths[value].is_file):
                say(f"{sweep.name(value)}: is measured already")
            else:
                say(f"{sweep.name(value)}: is being measured by another sweep; this one comes back to it")
                left.append((value, True))
        finally:
            claim.release()
    table = arguments.csv or folder_of(folder) / file_name(sweep, ".csv")
    picture = arguments.picture or folder_of(folder) / file_name(sweep, ".png")
    world.on_main(partial(compare_values, named(sweep, [paths[value] for value in sweep.values]), table, picture))
    say(f"the picture: {picture}")


def _checked(arguments: argparse.Namespace, folder: Path, device: torch.device) -> tuple[dict[str, Path], Model | None]:
    """(where the evaluation of each value is kept, a model whose weights are those of every value if there is one). Opens the
    model with each value, so that a wrong one is found before anything is measured; from then on all are of one checkpoint,
    though the run may go on. Raises UserError."""
    sweep: Sweep = arguments.sweep
    paths, opened = {}, None
    for value in sweep.values:
        model = _open(arguments, folder, device, sweep, value, opened)
        if not (folder / "model_index.json").is_file():
            opened = model if sweep.key not in FLAGS else None
            arguments.checkpoint = str(model.provenance["step"])
        named_by_sampling = [role for role, other in model.family.dependencies.items() if not other.exported]
        attach_dependencies(model.family, device, named_by_sampling)
        paths[value] = path_of(folder, model)
    return paths, opened


def _keep(evaluated: EvaluationResult, path: Path) -> None:
    for made in (path.parent.parent, path.parent):
        atomic.make_folder(made)
    evaluated.write(path)


def _open(
    arguments: argparse.Namespace,
    folder: Path,
    device: torch.device,
    sweep: Sweep | None = None,
    value: str = "",
    opened: Model | None = None,
) -> Model:
    """The model; of a sweep with one of its values. `opened`: a model of the run that has its weights."""
    weights, which, overrides = arguments.weights, arguments.checkpoint, [*arguments.overrides]
    if sweep is not None:
        weights, which = sweep.flag("weights", value, weights), sweep.flag("checkpoint", value, which)
        overrides += sweep.overrides(value)
    overrides += overrides_of(arguments.dependency, folder)
    if opened is not None:
        return opened.with_overrides(folder, overrides)
    return open_model(folder, device, weights=weights, which=which or "newest", overrides=overrides)


def _evaluated(arguments: argparse.Namespace, model: Model, kept: Path | None = None) -> EvaluationResult:
    keep_moments = arguments.save_moments is not None
    needed = needed_splits(model.family, model.recipe.evaluation, keep_moments)
    train, validation = find_needed(model.recipe.data, needed)
    if train is not None:
        model.check_data(train, "data.train")
    if validation is not None:
        check_fields(validation, model.family.spec, model.family.reads, "data.validation")
    evaluated = evaluate_model(model, train, validation, keep_moments=keep_moments, kept=kept)
    assert evaluated is not None, "an evaluation that nothing stops has a result"
    return evaluated


def _evaluate_images(arguments: argparse.Namespace) -> None:
    if meant := runs_meant(Path(arguments.what)):
        raise UserError(meant)
    for override in arguments.overrides:
        if not override.startswith("evaluation."):
            raise UserError(
                f"command line: {override!r}: {arguments.what} is neither a run nor an export, so only evaluation.* can "
                "be overridden"
            )
    for flag, given in (
        ("--weights", arguments.weights is not None),
        ("--checkpoint", arguments.checkpoint != "newest"),
        ("--dependency", bool(arguments.dependency)),
        ("--sweep", arguments.sweep is not None),
    ):
        if given:
            raise UserError(
                f"{flag}: {arguments.what} is neither a run nor an export, and has no weights or other models; leave it out"
            )
    options = evaluation_options(arguments.overrides)
    keep_moments = arguments.save_moments is not None
    device = join_world()
    with watching(EngineOptions().hang_timeout_s) as watchdog:
        watchdog.mark("evaluates", patient=True)
        world.on_main(partial(_check_files_writable, arguments))
        evaluated = evaluate_images(arguments.what, options, device, keep_moments=keep_moments)
        print_result(evaluated.result)
        _write(arguments, evaluated)


def _write(arguments: argparse.Namespace, evaluated: EvaluationResult) -> None:
    """Writes the files of --out and --save-moments. Raises UserError, after the other is written, if one cannot be."""

    def write() -> None:
        try:
            if arguments.out is not None:
                evaluated.write(arguments.out)
        finally:
            if arguments.save_moments is not None:
                assert evaluated.moments is not None
                write_moments(arguments.save_moments, evaluated.moments, evaluated.result["protocol"])

    world.on_main(beats.as_work("writes the evaluation", write))


if __name__ == "__main__":
    run_cli(main)
