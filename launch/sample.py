"""Draws samples by class: python launch/sample.py RUN_OR_EXPORT --out FILE.png [--npz FILE.npz]

--out FILE.png: a grid, one class a row. --out FOLDER: numbered PNGs, CLASS/NUMBER.png where there are classes. --npz: the
sample file that public FID evaluators read (arr_0: uint8 [n, H, W, C], arr_1: int64 labels). Sample i depends only on the
seed, i and its class. Weights that others have published become an export by launch/convert.py.

--samples N: the samples that an evaluation of N draws, with the classes as frequent as in the data; for other tools that
measure samples. Without it every class has equally many.

--inputs SPLIT: what the model makes of the inputs of a split, for models that turn one picture into another: rows of inputs,
outputs and targets, or the outputs alone in a folder. --reconstruct SPLIT: rows of images, each above the row of their
reconstructions. --redraw SPLIT: rows of images above what is drawn with their latents in none of the levels, in the coarsest,
in one more, and so on to all, for models with latents in levels. SPLIT is train or validation, the run's own data, or an index,
or the word digits.

--interpolate N, --traverse N, --manifold N: what lies between samples, what each latent changes, and the plane of two latents,
for models that decode latents (of latents that are codes, each category of a code, and no noise). --density N: the density over
a plane, for models of points in one.

--encode SPLIT: the same of images of a split, for models that encode them too: --interpolate N between each two of --images,
and --traverse N around the first. --shift attribute:NAME=1.5 (or class:NAME=1.5) adds 1.5 times the difference between the mean
latents of those that have the attribute and of the others: rows of images, of their reconstructions, and of these shifted.

RUN_OR_EXPORT is a run folder, an export, or hf://OWNER/NAME[@REVISION], an export on the Hugging Face Hub. Each family adds its
own options: RUN_OR_EXPORT --help shows them.
"""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bigtrain.cli import run_cli, say
from bigtrain.cluster.launch import join_world
from bigtrain.data.classes import some_names
from bigtrain.errors import UserError
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.exchange.hub import is_hub_model, local
from bigtrain.families.abilities import Density, EncodesLatents, LatentLevels, Latents, Reconstructs, Samples
from bigtrain.features.scripts import named_on_command_line
from bigtrain.inference.density import density_picture
from bigtrain.inference.dependencies import overrides_of
from bigtrain.inference.editing import LatentSplit, Shift
from bigtrain.inference.model import Model, open_model, require_label
from bigtrain.inference.rows import COLUMNS, LatentRows, find_given, output_rows, reconstruction_rows, redrawn_rows
from bigtrain.inference.sample_flags import (
    MODES,
    check,
    from_flags,
    image_numbers,
    is_given,
    is_grid,
    parser_of,
    refuse_sampling,
)
from bigtrain.inference.splits import check_fields
from bigtrain.pictures import check_grid, class_folders, save_grid, save_npz, save_pngs, to_uint8

CLASSIFIER = "classifier"
SHOWN = 50
"""Samples of a split that --inputs, --reconstruct and --redraw show."""
MOST_SAMPLES = 10_000_000
"""Samples of one call: they are held in memory."""


def main(argv: Sequence[str]) -> None:
    argv = [local(word) if is_hub_model(word) else word for word in argv]
    asks_help = {"-h", "--help"} & set(argv)
    # The family's own flags are known only once the model is open; until then their values look like positional arguments.
    models = [word for word in argv if not word.startswith("-") and (Path(word) / "recipe.yaml").exists()]
    if asks_help and not models:
        parser_of(__doc__).parse_args(argv)
    known = parser_of(__doc__).parse_known_args([word for word in argv if word not in asks_help])[0]
    what = Path(models[0]) if models else known.what
    model = open_model(
        what,
        join_world(),
        weights=known.weights,
        which=known.checkpoint,
        overrides=overrides_of(known.dependency, what),
    )
    samples = model.family.ability(Samples)
    arguments = parser_of(__doc__, None if samples is None else samples.sampling_class).parse_args(argv)
    check(arguments)
    _use_defaults(model, arguments)
    mode = next((mode for mode in MODES if getattr(arguments, mode) is not None), None)
    if samples is not None and mode is not None:
        refuse_sampling(samples, mode, arguments)
    if mode == "reconstruct":
        return _reconstruct(model, arguments)
    if mode == "density":
        return _draw_density(model, arguments)
    samples = model.family.require(Samples, arguments.what)
    model = _with_flags(model, samples, arguments)
    samples = model.family.require(Samples, arguments.what)
    sampling = samples.sampling
    if arguments.encode is not None:
        return _edit(model, sampling, mode, arguments)
    if mode == "redraw":
        return _redraw(model, sampling, arguments)
    if mode == "inputs":
        return _turn_inputs(model, sampling, arguments)
    if mode not in (None, "samples"):
        return _draw_latents(model, sampling, mode, arguments)
    if samples.conditions_beside_label:
        raise UserError(
            f"{arguments.what}: makes an image from {' and '.join(samples.conditions_beside_label)}: give --inputs train, "
            "--inputs validation or --inputs INDEX"
        )
    return _draw(model, sampling, arguments)


def _with_flags(model: Model, samples: Samples, arguments: argparse.Namespace) -> Model:
    """The model as the flags of its family say that it samples. Raises UserError that names the flag."""
    try:
        return model.with_sampling(from_flags(samples.sampling, arguments))
    except ValueError as error:  # of the family, which knows the keys of a recipe
        raise UserError(re.sub(r"^family\.sampling\.(\w+)", _flag_of, str(error))) from None


def _flag_of(key: re.Match[str]) -> str:
    return f"--{key[1].replace('_', '-')}"


def _use_defaults(model: Model, arguments: argparse.Namespace) -> None:
    """Fills in what was not given: --samples draws as an evaluation of the model does."""
    evaluation = model.recipe.evaluation if arguments.samples is not None else EvaluationOptions()
    if arguments.seed is None:
        arguments.seed = evaluation.seed
    if arguments.candidates is None:
        arguments.candidates = evaluation.candidates
    if arguments.classifier is None:
        arguments.classifier = evaluation.classifier
    else:
        arguments.classifier = _named_classifier(arguments)


def _draw(model: Model, sampling: Any, arguments: argparse.Namespace) -> None:
    """Samples, by class where the model is told the class."""
    family, spec = model.family.require(Samples, arguments.what), model.family.spec
    by_class = "label" in family.conditions
    if arguments.classes is not None or arguments.candidates > 1:
        flag = "--classes" if arguments.classes is not None else "--candidates"
        require_label(family, f"{flag}: {arguments.what}")
    numbers = None if arguments.samples is not None else _of_each_class(model, arguments)
    count = arguments.samples if numbers is None else len(numbers)
    columns = COLUMNS if numbers is None else arguments.per_class
    if is_grid(arguments):
        check_grid(count, columns, spec.size)
    selection = model.selection(arguments.candidates, arguments.classifier)
    sampler = model.sampler(arguments.seed, sampling, selection)
    labels = sampler.labels_of(range(count)).tolist() if numbers is None else numbers
    images = sampler.draw_all(labels, arguments.batch_size)
    if is_grid(arguments):
        save_grid(arguments.out, images, columns)
    elif arguments.out is not None:
        folders = class_folders(spec.classes)
        names = [folders[label] for label in labels] if by_class else None
        save_pngs(arguments.out, images, names, overwrite=arguments.overwrite)
    if arguments.npz is not None:
        save_npz(arguments.npz, images, labels if by_class else None)
    drawn = "" if numbers is None else _of_classes(model, list(dict.fromkeys(numbers)))
    _say_written(model, arguments, f"{count} samples{drawn}")
    if by_class and numbers is not None and not is_grid(arguments) and len(set(spec.class_counts)) > 1:
        say(f"equally many of each class, which the data have not: for a distance to them draw --samples {count}")


def _of_each_class(model: Model, arguments: argparse.Namespace) -> list[int]:
    """The class of each sample, class by class. Raises UserError if they are too many."""
    chosen = model.family.spec.find_classes(arguments.classes)
    if arguments.classes is None and arguments.npz is None and is_grid(arguments):
        chosen = chosen[:10]
    if len(chosen) * arguments.per_class > MOST_SAMPLES:
        raise UserError(
            f"--per-class: {arguments.per_class} samples of each of {len(chosen)} classes are more than {MOST_SAMPLES}; draw "
            "them in several files, each with its own --seed"
        )
    return [label for label in chosen for _ in range(arguments.per_class)]


def _named_classifier(arguments: argparse.Namespace) -> str:
    given: str = arguments.classifier
    if given != CLASSIFIER and arguments.candidates == 1:
        raise UserError("--classifier selects among candidates; give --candidates N as well")
    return given if given == CLASSIFIER else named_on_command_line(given, "--classifier", instead=CLASSIFIER)


def _reconstruct(model: Model, arguments: argparse.Namespace) -> None:
    draws = model.family.require(Reconstructs, arguments.what).draws_in_reconstruction
    if arguments.seed != EvaluationOptions().seed and not draws:
        raise UserError(f"--seed: a {model.family.kind} draws nothing in a reconstruction; leave it out")
    split = find_given(model.recipe.data, arguments.reconstruct, "--reconstruct")
    check_fields(split, model.family.spec, model.family.reads, "--reconstruct")
    save_grid(arguments.out, reconstruction_rows(model, split, SHOWN, arguments.seed), COLUMNS)
    _say_written(model, arguments, "images and their reconstructions")


def _redraw(model: Model, sampling: Any, arguments: argparse.Namespace) -> None:
    model.family.require(LatentLevels, f"--redraw: {arguments.what}")
    split = find_given(model.recipe.data, arguments.redraw, "--redraw")
    check_fields(split, model.family.spec, model.family.reads, "--redraw")
    save_grid(arguments.out, redrawn_rows(model, sampling, split, SHOWN, arguments.seed), COLUMNS)
    _say_written(model, arguments, "images and what is drawn around their coarse latents")


def _draw_density(model: Model, arguments: argparse.Namespace) -> None:
    family = model.family.require(Density, f"--density: {arguments.what}")
    save_grid(arguments.out, density_picture(family, model.weights, arguments.density, model.device), 1)
    _say_written(model, arguments, "the density")


def _turn_inputs(model: Model, sampling: Any, arguments: argparse.Namespace) -> None:
    """Rows of inputs, outputs and targets; or the outputs of the whole split, into a folder or an npz."""
    family = model.family.require(Samples, arguments.what)
    if not family.conditions_beside_label:
        raise UserError(f"--inputs: {arguments.what} is a {family.kind}, which draws images from nothing; leave it out")
    split = find_given(model.recipe.data, arguments.inputs, "--inputs")
    check_fields(split, model.family.spec, family.conditions, "--inputs")
    sampler = model.sampler(arguments.seed, sampling)
    if is_grid(arguments):
        save_grid(arguments.out, output_rows(sampler, split, SHOWN), COLUMNS)
    if arguments.npz is not None or not is_grid(arguments):
        outputs = sampler.draw_of(split, arguments.batch_size)
        if arguments.out is not None and not is_grid(arguments):
            save_pngs(arguments.out, outputs, overwrite=arguments.overwrite)
        if arguments.npz is not None:
            save_npz(arguments.npz, outputs, None)
    _say_written(model, arguments, f"what is made of {split.where}")


def _draw_latents(model: Model, sampling: Any, mode: str, arguments: argparse.Namespace) -> None:
    """Interpolations, one row a class (or --per-class rows), traversals, or the manifold, of the first of the classes."""
    family = model.family.require(Latents, f"--{mode}: {arguments.what}")
    if arguments.classes is not None:
        require_label(family, f"--classes: {arguments.what}")
    labels = model.family.spec.find_classes(arguments.classes)
    columns = getattr(arguments, mode)
    rows = LatentRows(family, model.sampler(arguments.seed, sampling).networks, sampling, arguments.seed, model.device)
    if mode == "interpolate":
        given = is_given(arguments, "per_class") or "label" not in family.conditions
        each = arguments.per_class if given else 1
        chosen = labels if arguments.classes is not None else labels[:10]
        chosen = chosen if "label" in family.conditions else labels[:1]
        images = rows.interpolated([label for label in chosen for _ in range(each)], columns)
    else:
        chosen = labels[:1]
        images = (rows.traversals if mode == "traverse" else rows.manifold)(chosen[0], columns)
    save_grid(arguments.out, images, columns)
    _say_written(model, arguments, f"{len(images)} images{_of_classes(model, chosen)}")


def _edit(model: Model, sampling: Any, mode: str | None, arguments: argparse.Namespace) -> None:
    """Pictures of images of a split in latent space."""
    family = model.family.require(EncodesLatents, f"--encode: {arguments.what}")
    split = find_given(model.recipe.data, arguments.encode, "--encode")
    check_fields(split, model.family.spec, model.family.reads, "--encode")
    shifts = [Shift.read(text, split) for text in arguments.shift or ()]
    networks = model.sampler(arguments.seed, sampling).networks
    latent_split = LatentSplit(model.family, networks, split, arguments.seed, model.device)
    rows = LatentRows(family, networks, sampling, arguments.seed, model.device)
    wanted = {"interpolate": 2, "traverse": 1}.get(mode or "", COLUMNS)
    chosen = (
        latent_split.some(wanted)
        if arguments.images is None
        else latent_split.of_numbers(image_numbers(arguments.images))
    )
    labels = chosen.fields["label"].tolist() if "label" in family.conditions else [0] * len(chosen.latents)
    if mode == "interpolate":
        if len(labels) % 2:
            raise UserError("--images: --interpolate takes them two by two, and there is one too many")
        pairs = zip(chosen.latents[::2], chosen.latents[1::2], labels[::2], strict=True)
        images = torch.cat([rows.between(*pair, arguments.interpolate) for pair in pairs])
        columns = arguments.interpolate
    elif mode == "traverse":
        images, columns = rows.around(chosen.latents[0], labels[0], arguments.traverse), arguments.traverse
    else:
        shifted = chosen.latents + latent_split.differences(shifts, arguments.batch_size).to(chosen.latents.dtype)
        given = to_uint8(chosen.fields["image"]).cpu()
        images = torch.cat([given, rows.decoded(chosen.latents, labels), rows.decoded(shifted, labels)])
        columns = len(labels)
    save_grid(arguments.out, images, columns)
    _say_written(model, arguments, f"images {', '.join(map(str, chosen.numbers))} of {split.where} in latent space")


def _of_classes(model: Model, labels: Sequence[int]) -> str:
    """Which classes were drawn, for a message; nothing where the model is not told the class."""
    told = "label" in model.family.require(Samples, "sampling").conditions
    return f" of {some_names([model.family.spec.classes[label] for label in labels])}" if told else ""


def _say_written(model: Model, arguments: argparse.Namespace, what: str) -> None:
    written = " and ".join(str(path) for path in (arguments.out, arguments.npz) if path is not None)
    say(f"{what} of step {model.provenance['step']}: {written}")


if __name__ == "__main__":
    run_cli(main)
