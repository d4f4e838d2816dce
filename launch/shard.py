"""Samples to shards: python launch/shard.py SOURCE OUT [--size N] [--samples-per-shard N] [--format jpg|png|webp|npy]

SOURCE is a folder, a .tar or a .zip of SPLIT/CLASS/*.jpg or CLASS/*.jpg, the word digits, or a data set as published:
ImageNet (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit in a folder, or Kaggle's folder), LSUN's
CLASS_SPLIT_lmdb folders, MNIST's and Fashion-MNIST's idx files, the binary version of CIFAR-10 or CIFAR-100, SVHN's
train_32x32.mat and test_32x32.mat (its extra_32x32.mat takes 1.6 GB of memory a worker), or a folder or zip of StyleGAN and EDM
with the labels in its dataset.json. For idx files, CIFAR and dataset.json, class names are read from the lines of
SOURCE/classes.txt if it exists (beside a zip). Grey pictures stay grey.

Samples of other kinds, a command each; before it the names of their fields:

  image, b        photos OUT --labels none --field b=drawings      two folders of equal names
  image, low      large OUT --labels none --field low=small --factor low=4          ... one four times larger
  a, b            facades OUT --labels none --halves a,b           two pictures side by side in each file
  image           horse2zebra OUT                                  folders trainA, trainB, testA ...: an index for each
  image, seg      photos OUT --labels none --field seg=labels:map --classes seg=names.txt --field objects=instances:instance
  image, caption  photos OUT --labels none --field caption=.txt:text               1.txt beside 1.jpg
  image, caption  photos OUT --labels none --field caption=captions.csv#comment:text            by the first column
  image, looks    img_align_celeba OUT --labels none --field looks=list_attr_celeba.txt:attributes
  clip            clips OUT --labels none --kind clip --fps 25     a folder of frames each
  array           points.csv OUT, or points.npy OUT                a row each
  array           tracks OUT --labels none --kind array            a .npy or .csv each
  point           gaussians8 OUT, gaussians25, swiss_roll or two_moons: made on the spot

Where endings of names differ, they are cut off: 'photos/*_leftImg8bit.png' OUT --field 'seg=labels/*_labelIds.png:map'.
With --index-only, --field NAME=EXTENSION,EXTENSION says which members of the tars are which field.
"""

import argparse
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import ImageColor

from bigtrain.data.digits import DIGITS_SIZE, write_digits
from bigtrain.data.fields.registry import NAME
from bigtrain.data.index import Index
from bigtrain.data.points import POINT_SETS, list_points
from bigtrain.data.remote import Origin, is_remote, shown
from bigtrain.data.show import write_sheet
from bigtrain.data.sources.flags import KINDS, MAIN_KINDS, FieldFlag, SampleFlags, list_samples, member_specs
from bigtrain.data.sources.layouts.known import LAYOUTS
from bigtrain.data.sources.samples import SampleSet
from bigtrain.data.write.convert import FORMATS, Colour
from bigtrain.data.write.foreign_shards import LABELS_FROM, index_shards
from bigtrain.data.write.remote_tars import RemoteSource
from bigtrain.data.write.shard_names import SPLIT
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from bigtrain.sizes import size_key
from bigtrain.untrusted import one_line

SAMPLES_PER_SHARD = 2048
MAX_LINES = 1000
"""The most errors that --verify lists."""
VALIDATION = ("validation", "val", "valid", "dev", "test")
"""Names of splits that are held out, the one that is taken first."""
_WORDS = re.compile(r"[a-z]+")


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.verify:
        _verify(arguments)
        return
    if arguments.show is not None:
        _show(arguments)
        return
    indexes = _index(arguments) if arguments.index_only else _write(arguments)
    say(f"next: train with {_what_to_train_with(indexes)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Writes samples as webdataset shards OUT/SPLIT-000000.tar ... with an index OUT/SPLIT.json.\n"
        "Running it again writes what is missing and leaves complete shards as they are.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="see below")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder of the shards")
    _add_modes(parser.add_argument_group("instead of writing shards"))
    _add_pictures(parser.add_argument_group("pictures"))
    _add_fields(parser.add_argument_group("what a sample is"))
    _add_shards(parser.add_argument_group("shards"))
    return parser


Group = argparse._ArgumentGroup


def _add_modes(group: Group) -> None:
    group.add_argument(
        "--index-only",
        action="store_true",
        help="SOURCE is a folder of webdataset tars SPLIT-000000.tar ... (KEY.jpg|jpeg|png|webp, KEY.cls): index them "
        "in place, or into OUT. They may be named as on the Hub, SPLIT-00000-of-00002.tar, or as img2dataset does, 00000.tar. "
        "KEY.npy is pixels, uint8 [H, W, 3] or grey [H, W, 1], if KEY has no picture. Class names are read from the lines of "
        "SOURCE/classes.txt if it exists; classes that an index there has already keep their numbers. Tars at URLs are indexed "
        "into OUT and stay where they are: 'https://HOST/x-{000..147}.tar', hf://datasets/OWNER/NAME, "
        "or a list, a URL a line, in FILE.txt or at a URL; parts of them are fetched, and many --workers hide the delays",
    )
    group.add_argument(
        "--verify",
        action="store_true",
        help="SOURCE is an index, a path or a URL: read every sample of its shards and list what is broken (exit code 2)",
    )
    group.add_argument(
        "--show",
        metavar="FILE.png",
        type=Path,
        help="SOURCE is an index, a path or a URL: draw some of its samples, a row for each field",
    )


def _add_pictures(group: Group) -> None:
    group.add_argument(
        "--size",
        type=_size,
        metavar="N|HxW",
        help="resize until this size is covered, the side of a square or HEIGHTxWIDTH in pixels, and crop the centre "
        f"(default: pictures stay as they are; digits: {DIGITS_SIZE})",
    )
    group.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the pictures in the shards: jpg is quality 95, 4:4:4; png and webp lose nothing, webp makes three "
        "channels of grey; npy is pixels that need no decoding, the largest and the fastest (default: each picture's own, so "
        "that nothing lossless becomes lossy)",
    )
    group.add_argument(
        "--range",
        type=_range,
        metavar="LOW,HIGH",
        help="of grey pictures of 16 or 32 bits: the values that become 0 and 255, 0,4095 for 12 bits (default: the high byte "
        "of 16 bits is taken when they are read)",
    )
    group.add_argument(
        "--background",
        type=_colour,
        metavar="COLOUR",
        help="put transparent pictures over it: white, black, #RRGGBB (default: the colours that transparency hides)",
    )


def _add_fields(group: Group) -> None:
    group.add_argument(
        "--labels",
        type=_labels,
        help="where classes come from: none (all samples are one class, in folders or not) or, with --index-only, cls "
        "(KEY.cls), json:FIELD (KEY.json), each with a number from 0 on or a name, or none (default: the class folders; cls)",
    )
    group.add_argument(
        "--split",
        type=_split,
        metavar="NAME",
        help="the split of all that is in SOURCE, where neither folders nor names of tars say it (default: train)",
    )
    group.add_argument("--layout", choices=LAYOUTS, help="what SOURCE is (default: detected)")
    group.add_argument("--kind", choices=MAIN_KINDS, help="what the files of SOURCE are (default: image)")
    group.add_argument(
        "--field",
        type=_field,
        action="append",
        default=[],
        metavar="NAME=WHERE[:KIND]",
        help=f"a further field of each sample, of the kind {', '.join(KINDS)} (default: image). WHERE is a folder, tar or zip "
        "of files named as those of SOURCE; .ENDING of files beside them; a .csv or .tsv, by its first column, #COLUMN; or "
        "CelebA's list of attributes. With --index-only: the extensions of the members that may hold it; of a JSON #KEY. "
        "May be given several times",
    )
    group.add_argument(
        "--image-member",
        metavar="EXTENSION",
        help="with --index-only: the extension of the members that are the pictures, where samples have several: input.jpg for "
        "KEY.input.jpg",
    )
    group.add_argument(
        "--halves",
        type=_halves,
        metavar="LEFT,RIGHT",
        help="each picture is two side by side: the names of these fields",
    )
    group.add_argument(
        "--classes",
        type=_named(Path),
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="the names of the classes of the map NAME, a line each from class 0 on (with --index-only, of attributes too)",
    )
    group.add_argument(
        "--factor",
        type=_named(_positive),
        action="append",
        default=[],
        metavar="NAME=N",
        help="the pictures of the field NAME are N times smaller than the largest of their sample",
    )
    group.add_argument("--fps", metavar="N", type=_rate, help="frames a second of clips")
    group.add_argument(
        "--frames", metavar="N", type=_positive, help="the fewest frames that a clip may have (default: 1)"
    )
    group.add_argument(
        "--skip-bad-captions", action="store_true", help="name and leave out samples with a text that is not UTF-8"
    )


def _add_shards(group: Group) -> None:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    group.add_argument(
        "--skip-broken",
        action="store_true",
        help="name and leave out samples that cannot be read (default: all of them are listed, and nothing is indexed)",
    )
    group.add_argument(
        "--samples-per-shard", metavar="N", type=_positive, help=f"samples of each shard ({SAMPLES_PER_SHARD})"
    )
    group.add_argument(
        "--workers", metavar="N", type=_positive, default=cores, help="processes (default: the cores, here %(default)s)"
    )


def _labels(text: str) -> str:
    if not LABELS_FROM.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of cls, json:FIELD, none")
    return text


def _split(text: str) -> str:
    if not SPLIT.fullmatch(text):
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot name a split; a name is letters, digits, and . _ - within it"
        )
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _rate(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise ValueError
    return value


def _size(text: str) -> tuple[int, int]:
    height, times, width = text.lower().partition("x")
    return _positive(height), _positive(width if times else height)


def _range(text: str) -> tuple[int, int]:
    low, high = map(int, text.split(","))
    if not 0 <= low < high < 2**31:
        raise ValueError
    return low, high


def _colour(text: str) -> Colour:
    red, green, blue, *_ = ImageColor.getrgb(text)
    return red, green, blue


def _field(text: str) -> FieldFlag:
    try:
        return FieldFlag.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _halves(text: str) -> tuple[str, str]:
    left, right = text.split(",")
    if left == right or not (NAME.fullmatch(left) and NAME.fullmatch(right)):
        raise ValueError
    return left, right


def _named(value_of: Callable[[str], Any]) -> Callable[[str], tuple[str, Any]]:
    """NAME=VALUE."""

    def parse(text: str) -> tuple[str, Any]:
        name, equals, value = text.partition("=")
        if not (equals and name and value):
            raise ValueError
        return name, value_of(value)

    parse.__name__ = "NAME=VALUE"
    return parse


_rate.__name__ = "rate above 0"
_size.__name__ = "size"
_range.__name__ = "range LOW,HIGH of whole numbers from 0 to 2147483647"
_colour.__name__ = "colour"
_halves.__name__ = "LEFT,RIGHT of two names"
_positive.__name__ = "positive whole number"  # argparse says: invalid positive whole number value


def _sample_flags(arguments: argparse.Namespace) -> SampleFlags:
    return SampleFlags(
        kind=arguments.kind or "image",
        fields=tuple(arguments.field),
        classes=dict(arguments.classes),
        factors=dict(arguments.factor),
        halves=arguments.halves,
        fps=arguments.fps,
        least_frames=arguments.frames or 1,
        labels=arguments.labels,
        layout=arguments.layout,
        skip_bad_texts=arguments.skip_bad_captions,
        image_member=arguments.image_member,
    )


def _write(arguments: argparse.Namespace) -> list[Path]:
    if arguments.out is None:
        raise UserError("OUT, the folder of the shards, is missing: python launch/shard.py SOURCE OUT")
    flags = _sample_flags(arguments)
    if is_remote(arguments.source):
        raise UserError(
            f"{shown(arguments.source)}: pictures at a URL are fetched first, by other tools; give --index-only for tars of "
            "samples, which stay where they are"
        )
    if flags.labels not in (None, "none"):
        raise UserError(f"--labels {flags.labels} goes with --index-only; folders of pictures are the classes, or none")
    if flags.image_member is not None:
        raise UserError("--image-member goes with --index-only; elsewhere files are taken by their endings")
    digits = arguments.source == "digits"
    if (flags != SampleFlags() or arguments.split is not None) and (digits or arguments.source in POINT_SETS):
        raise UserError(
            f"{arguments.source}: is made on the spot, and takes no --labels none, --layout, --split or other fields"
        )
    size = arguments.size or ((DIGITS_SIZE, DIGITS_SIZE) if digits else None)
    form = arguments.format or ("png" if digits else None)
    options = ShardOptions(
        size,
        form,
        arguments.samples_per_shard or SAMPLES_PER_SHARD,
        arguments.range,
        arguments.background,
        arguments.skip_broken,
    )
    if digits:
        return write_digits(arguments.out, options, workers=arguments.workers)
    source = _listed(arguments.source, flags)
    if arguments.split is not None:
        source = _as_split(source, arguments.split)
    if source.left_out:
        say(f"{source.path}: {source.left_out} files are left out: not samples by their names")
    return write_shards(source, arguments.out, options, workers=arguments.workers)


def _as_split(source: SampleSet, name: str) -> SampleSet:
    """The samples as the split `name`. Raises UserError if there are several splits."""
    if len(source.splits) > 1:
        raise UserError(
            f"--split {name}: {source.path} has the splits {', '.join(source.splits)} already; leave it out"
        )
    (samples,) = source.splits.values()
    return replace(source, splits={name: samples})


def _listed(where: str, flags: SampleFlags) -> SampleSet:
    if where in POINT_SETS:
        return list_points(where)
    return list_samples(where, flags, lambda text: say(f"{text}: is not UTF-8, and left out"))


def _index(arguments: argparse.Namespace) -> list[Path]:
    _refuse_writing(arguments, "--index-only")
    flags = _sample_flags(arguments)
    return index_shards(
        RemoteSource.parse(arguments.source) or Path(arguments.source),
        arguments.out,
        workers=arguments.workers,
        labels=flags.labels,
        fields=member_specs(flags),
        skip_bad_texts=flags.skip_bad_texts,
        split=arguments.split,
    )


def _refuse_writing(arguments: argparse.Namespace, mode: str) -> None:
    flags = ("size", "samples_per_shard", "format", "layout", "range", "background", "halves", "kind", "skip_broken")
    for flag in flags:
        if getattr(arguments, flag) not in (None, False):
            raise UserError(f"--{flag.replace('_', '-')} does not go with {mode}, which leaves shards as they are")


def _verify(arguments: argparse.Namespace) -> None:
    _refuse_writing(arguments, "--verify")
    if arguments.out is not None or arguments.index_only or arguments.labels or arguments.field or arguments.split:
        raise UserError("--verify takes one index and nothing else: python launch/shard.py --verify INDEX")
    index = Index.read(arguments.source, Origin(key="--verify"))
    broken = verify(index, workers=arguments.workers)
    if not broken:
        say(f"{index.where}: complete: {index.samples} samples in {len(index.shards)} shards")
        return
    rest = [f"... and {len(broken) - MAX_LINES} more"] if len(broken) > MAX_LINES else []
    for line in [*broken[:MAX_LINES], *rest]:
        say(line)
    errors = "1 error" if len(broken) == 1 else f"{len(broken)} errors"
    raise UserError(f"{index.where}: {errors}; copy these shards again, or make them again")


def say(text: str) -> None:
    """Prints to stderr; as `say` of bigtrain.cli, which imports torch."""
    print(one_line(text), file=sys.stderr, flush=True)


def _show(arguments: argparse.Namespace) -> None:
    _refuse_writing(arguments, "--show")
    if arguments.out is not None or arguments.index_only or arguments.labels or arguments.field or arguments.split:
        raise UserError("--show takes one index and nothing else: python launch/shard.py INDEX --show FILE.png")
    if arguments.show.suffix.lower() != ".png":
        raise UserError(f"--show: {arguments.show}: the picture is a PNG; name it FILE.png")
    index = Index.read(arguments.source, Origin(key="--show"))
    write_sheet(index, arguments.show)
    say(f"{arguments.show}: the first and the last of {index.samples} samples, and some between")


def _what_to_train_with(indexes: Sequence[Path]) -> str:
    by_split = {path.stem: path for path in indexes}
    if domains := _domains(by_split, ("train",)):
        words = [f"data.train={_mapping(domains)}"]
        held_out = _domains(by_split, VALIDATION)
        words += [f"data.validation={_mapping(held_out)}"] if held_out.keys() == domains.keys() else []
        return shlex.join([*words, *_size_words(next(iter(domains.values())))])
    train = by_split.pop(_named_as("train", by_split) or _named_as("training", by_split) or min(by_split))
    index = Index.read(train)
    if index.picture is not None and index.image_size is None:
        return (
            f"{shlex.quote(f'data.train={train}')} data.resize=exact data.image_size=N: these pictures differ in size, and are "
            "resized when they are read; to resize them once, run again with --size and another OUT"
        )
    words = [f"data.train={train}"]
    words += [f"data.validation={by_split[name]}" for one in VALIDATION if (name := _named_as(one, by_split))][:1]
    return shlex.join([*words, *_size_words(train)])


def _named_as(split: str, names: Iterable[str]) -> str | None:
    """The split of that name, or the first that has it as a word: Train, imagenet-train."""
    found = [name for name in names if split in _WORDS.findall(name.lower())]
    return min(found, key=lambda name: (len(name), name), default=None)


def _domains(by_split: Mapping[str, Path], splits: Sequence[str]) -> dict[str, Path]:
    """The indexes of unpaired domains of the first of `splits` that has some, by the letter behind its name."""
    for split in splits:
        found = {name[-1].lower(): path for name, path in by_split.items() if name[:-1] == split and name[-1].isupper()}
        if len(found) > 1:
            return found
    return {}


def _mapping(paths: Mapping[str, Path]) -> str:
    return f"{{{', '.join(f'{name}: {path}' for name, path in paths.items())}}}"


def _size_words(path: Path) -> list[str]:
    size = Index.read(path).image_size
    return [] if size is None else [f"data.image_size={size_key(size)}"]


if __name__ == "__main__":
    from bigtrain.cli import run_cli  # here, so that worker processes, which import this file, do not import torch

    run_cli(main)
