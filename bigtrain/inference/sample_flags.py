"""The flags of launch/sample.py, and which of them say nothing of each other."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from bigtrain.errors import UserError
from bigtrain.families.abilities import Latents, Samples
from bigtrain.inference.model_flags import add_model_flags
from bigtrain.options import Options
from bigtrain.pictures import check_file, check_folder
from bigtrain.recipe_yaml import parse
from bigtrain.wrong_values import what_is_wrong

COUNTS = {
    "samples": (1, 10_000_000),
    "per_class": (1, 1_000_000),
    "batch_size": (1, 1_000_000),
    "candidates": (1, 1_000_000),
    "interpolate": (2, 10_000),
    "traverse": (2, 10_000),
    "manifold": (2, 1_000),
    "density": (2, 10_000),
}
"""The flags that are numbers of images, and their bounds."""
MODES = {
    "samples": ("classes", "per_class"),
    "inputs": ("classes", "per_class", "candidates", "classifier"),
    "reconstruct": ("classes", "per_class", "candidates", "classifier", "npz"),
    "redraw": ("classes", "per_class", "candidates", "classifier", "npz"),
    "interpolate": ("candidates", "classifier", "npz"),
    "traverse": ("per_class", "candidates", "classifier", "npz"),
    "manifold": ("per_class", "candidates", "classifier", "npz"),
    "shift": ("classes", "per_class", "candidates", "classifier", "npz"),
    "density": ("classes", "per_class", "candidates", "classifier", "npz"),
}
"""What may be drawn instead of samples of each class, and the flags that say nothing of it."""
NOT_SAMPLED = ("reconstruct", "density")
"""Those of which the flags of a family, which say how it samples, say nothing either."""


def parser_of(description: str | None, options: type[Options] | None = None) -> argparse.ArgumentParser:
    """`options`: those by which a family samples, each a flag."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "what",
        metavar="RUN_OR_EXPORT",
        type=Path,
        help="a run folder, an export, or hf://OWNER/NAME[@REVISION], an export on the Hugging Face Hub",
    )
    parser.add_argument(
        "--out", metavar="PATH", type=Path, help="FILE.png for a grid, or a folder for [CLASS/]NUMBER.png"
    )
    parser.add_argument(
        "--npz",
        metavar="FILE.npz",
        type=Path,
        help="a file of uint8 samples [n, h, w, channels]; public evaluators want three channels, and grey ones have one",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace the numbered pictures that the folder --out holds"
    )
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME,...",
        help="comma-separated names of classes, or positions as index:N (or N, where no class has such a name); default: all, "
        "in a grid the first 10",
    )
    parser.add_argument("--per-class", type=int, default=8, help="samples of each class (8)")
    parser.add_argument(
        "--samples",
        metavar="N",
        type=int,
        help="instead, N samples with the data's class frequencies: just those that an evaluation of N samples draws",
    )
    parser.add_argument("--seed", type=int, help="keys every draw (0; with --samples the recipe's evaluation.seed)")
    add_model_flags(parser)
    parser.add_argument("--batch-size", type=int, default=64, help="samples drawn at a time (64)")
    parser.add_argument(
        "--candidates",
        type=int,
        help="rejection sampling: draw so many for each sample and keep the best (1: no selection; with --samples the recipe's "
        "evaluation.candidates)",
    )
    parser.add_argument(
        "--classifier",
        help="what selects among them: `classifier`, trained on the spot on the data's labels, or a TorchScript file, a "
        "program that runs with your rights",
    )
    parser.add_argument("--inputs", metavar="SPLIT", help="the split whose inputs are turned into outputs")
    parser.add_argument("--reconstruct", metavar="SPLIT", help="the split whose images are reconstructed")
    parser.add_argument("--redraw", metavar="SPLIT", help="the split whose images' finer latents are drawn anew")
    parser.add_argument("--interpolate", metavar="N", type=int, help="rows of N images between two samples")
    parser.add_argument(
        "--traverse", metavar="N", type=int, help="a row of N images for each latent, or each category of a code"
    )
    parser.add_argument("--encode", metavar="SPLIT", help="take the images of a split instead of samples, as latents")
    parser.add_argument(
        "--images", metavar="I,J,...", help="which images of --encode, by number; without it a random few"
    )
    parser.add_argument(
        "--shift",
        metavar="WHAT=FACTOR",
        action="append",
        help="attribute:NAME=1.5 or class:NAME=1.5, added to the latents of the images of --encode; may be given several times",
    )
    parser.add_argument("--manifold", metavar="N", type=int, help="N x N images over the plane of two latents")
    parser.add_argument("--density", metavar="N", type=int, help="the density over a plane, N x N pixels")
    if options is not None:
        add_flags(parser, options)
    return parser


def check(arguments: argparse.Namespace) -> None:
    """Raises UserError for flags that contradict each other."""
    if arguments.out is None and arguments.npz is None:
        raise UserError("give --out FILE.png, --out FOLDER or --npz FILE, where the samples are to be written")
    for flag, (least, most) in COUNTS.items():
        value = getattr(arguments, flag)
        if value is not None and not least <= value <= most:
            bound = f"at least {least}" if value < least else f"at most {most}"
            raise UserError(f"--{flag.replace('_', '-')}: must be {bound} (given: {value})")
    if arguments.out is not None and arguments.out.suffix.lower() not in ("", ".png"):
        raise UserError(f"--out: {arguments.out}: pictures are written as FILE.png, or into a folder")
    modes = [mode for mode in MODES if getattr(arguments, mode) is not None]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]}: give one of them")
    for mode in modes:
        for flag in MODES[mode]:
            if is_given(arguments, flag):
                raise UserError(f"--{flag.replace('_', '-')}: says nothing of --{mode}; leave it out")
        if mode not in ("samples", "inputs") and not is_grid(arguments):
            raise UserError(f"--{mode}: is drawn as one grid; give --out FILE.png")
    _check_encode(arguments, modes)
    _check_targets(arguments)


def _check_encode(arguments: argparse.Namespace, modes: Sequence[str]) -> None:
    if arguments.encode is None:
        for flag in ("shift", "images"):
            if getattr(arguments, flag) is not None:
                raise UserError(
                    f"--{flag}: is of images of a split; give --encode train, --encode validation or --encode INDEX"
                )
    elif not set(modes) & {"shift", "interpolate", "traverse"}:
        raise UserError("--encode: give --shift WHAT=FACTOR, --interpolate N or --traverse N as well")
    elif arguments.classes is not None:
        raise UserError("--classes: says nothing of --encode, whose images have their own; leave it out")
    elif is_given(arguments, "per_class"):
        raise UserError("--per-class: says nothing of --encode, whose images --images numbers; leave it out")
    elif "traverse" in modes and arguments.images is not None and len(image_numbers(arguments.images)) > 1:
        raise UserError(
            f"--images: --traverse varies one image, and {arguments.images} are several; give the number of one"
        )


def _check_targets(arguments: argparse.Namespace) -> None:
    """Raises UserError, before anything is drawn, for files and folders that are not written over."""
    is_folder = arguments.out is not None and not is_grid(arguments)
    if arguments.overwrite and not is_folder:
        raise UserError("--overwrite: is for the pictures in a folder; give --out FOLDER, or leave it out")
    if is_folder:
        check_folder(arguments.out, overwrite=arguments.overwrite)
    for path in (arguments.npz, None if is_folder else arguments.out):
        if path is not None:
            check_file(path)


def is_given(arguments: argparse.Namespace, flag: str) -> bool:
    """Whether it has another value than its default."""
    return bool(getattr(arguments, flag) != parser_of(None).get_default(flag))


def is_grid(arguments: argparse.Namespace) -> bool:
    return arguments.out is not None and arguments.out.suffix.lower() == ".png"


def refuse_sampling(samples: Samples, mode: str, arguments: argparse.Namespace) -> None:
    """Raises UserError for a flag of the family that says nothing of what is drawn: of the mode, or of --encode."""
    names: Iterable[str] = ()
    if mode in NOT_SAMPLED:
        names = samples.sampling_class.model_fields
    elif isinstance(samples, Latents) and (mode == "manifold" or arguments.encode is not None):
        names = samples.drawing_options
    for name in names:
        if getattr(arguments, name) is not None:
            what = mode if arguments.encode is None else "encode"
            raise UserError(f"--{name.replace('_', '-')}: says nothing of --{what}; leave it out")


def image_numbers(words: str) -> list[int]:
    """Of --images."""
    try:
        return [int(word) for word in words.split(",")]
    except ValueError:
        raise UserError(f"--images: {words!r} is not a list of numbers, as 3,17") from None


def add_flags(parser: argparse.ArgumentParser, options: type[Options]) -> None:
    """Adds a flag for every field of an options class: --truncation for truncation; the value `none` means null."""
    group = parser.add_argument_group("options of this family")
    for name, field in options.model_fields.items():
        choices = get_args(field.annotation) if get_origin(field.annotation) is Literal else None
        group.add_argument(f"--{name.replace('_', '-')}", default=None, choices=choices, help=field.description)


def from_flags(defaults: Options, arguments: argparse.Namespace) -> Any:
    """`defaults`, replaced by the values of the flags of `add_flags`. Raises UserError that names the flag."""
    given = {name: getattr(arguments, name) for name in type(defaults).model_fields}
    values = defaults.model_dump()
    for one, other in defaults.exclusive:
        if given[one] is not None and given[other] is not None:
            raise UserError(f"--{one.replace('_', '-')} and --{other.replace('_', '-')}: give one of them")
        if given[one] is not None or given[other] is not None:
            values |= {name: type(defaults).model_fields[name].default for name in (one, other)}
    for name, word in given.items():
        if word is not None:
            try:
                values[name] = None if word == "none" else parse(word)
            except ValueError as error:
                raise UserError(f"--{name.replace('_', '-')}: {error} (given: {word!r})") from None
    try:
        return type(defaults).model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        flag = str(first["loc"][0]).replace("_", "-")
        raise UserError(f"--{flag}: {what_is_wrong(first)}") from None
