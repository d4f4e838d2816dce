"""Pictures to shards: python launch/shard.py SOURCE OUT [--size N] [--samples-per-shard N] [--format jpg|png|webp|npy]

SOURCE is a folder, a .tar or a .zip of SPLIT/CLASS/*.jpg or CLASS/*.jpg, the word digits, or a data set as published:
ImageNet (ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and the devkit in a folder, or Kaggle's folder), LSUN's
CLASS_SPLIT_lmdb folders, MNIST's and Fashion-MNIST's idx files, the binary version of CIFAR-10 or CIFAR-100. For idx files
and CIFAR, class names are read from the lines of SOURCE/classes.txt if it exists.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from bigtrain.data.digits import DIGITS_SIZE, write_digits
from bigtrain.data.index import Index
from bigtrain.data.remote import Origin
from bigtrain.data.sources.layouts.by_class import list_unlabelled
from bigtrain.data.sources.layouts.known import LAYOUTS, list_source
from bigtrain.data.write.convert import FORMATS
from bigtrain.data.write.foreign_shards import LABELS_FROM, index_shards
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from bigtrain.sizes import size_key

SAMPLES_PER_SHARD = 2048
MAX_LINES = 1000
"""The most errors that --verify lists."""


def main(argv: Sequence[str]) -> None:
    arguments = _parser().parse_args(argv)
    if arguments.verify:
        _verify(arguments)
        return
    indexes = _index(arguments) if arguments.index_only else _write(arguments)
    print(f"next: train with {_what_to_train_with(indexes)}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser = argparse.ArgumentParser(
        prog="launch/shard.py",
        description="Writes pictures as webdataset shards OUT/SPLIT-000000.tar ... with an index OUT/SPLIT.json. "
        "Running it again writes what is missing and leaves complete shards as they are.",
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", help="see below")
    parser.add_argument("out", metavar="OUT", nargs="?", type=Path, help="folder of the shards")
    parser.add_argument(
        "--size",
        type=_size,
        metavar="N|HxW",
        help="resize until this size is covered, the side of a square or HEIGHTxWIDTH in pixels, and crop the centre "
        f"(default: pictures stay as they are; digits: {DIGITS_SIZE})",
    )
    parser.add_argument("--samples-per-shard", type=_positive, help=f"default: {SAMPLES_PER_SHARD}")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="format of the pictures in the shards: jpg is quality 95, 4:4:4; png and webp lose nothing; npy is pixels that "
        "need no decoding, the largest and the fastest (default: each picture's own, so that nothing lossless becomes lossy)",
    )
    parser.add_argument(
        "--workers", type=_positive, default=cores, help="processes (default: the cores, here %(default)s)"
    )
    parser.add_argument(
        "--labels",
        type=_labels,
        help="where classes come from: none (all pictures are one class, in folders or not) or, with --index-only, cls "
        "(KEY.cls), json:FIELD (a number or a name in KEY.json) or none (default: the class folders; cls)",
    )
    parser.add_argument(
        "--index-only",
        action="store_true",
        help="SOURCE is a folder of webdataset tars SPLIT-000000.tar ... (KEY.jpg|jpeg|png|webp, KEY.cls): index them "
        "in place, or into OUT; KEY.npy is pixels, uint8 [H, W, 3], if KEY has no picture. "
        "Class names are read from the lines of SOURCE/classes.txt if it exists",
    )
    parser.add_argument("--layout", choices=LAYOUTS, help="what SOURCE is (default: detected)")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="SOURCE is an index, a path or a URL: read every sample of its shards and list what is broken (exit code 2)",
    )
    return parser


def _labels(text: str) -> str:
    if not LABELS_FROM.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is none of cls, json:FIELD, none")
    return text


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _size(text: str) -> tuple[int, int]:
    height, _, width = text.lower().partition("x")
    return _positive(height), _positive(width or height)


_size.__name__ = "size"
_positive.__name__ = "positive whole number"  # argparse says: invalid positive whole number value


def _write(arguments: argparse.Namespace) -> list[Path]:
    if arguments.out is None:
        raise UserError("OUT, the folder of the shards, is missing: python launch/shard.py SOURCE OUT")
    digits = arguments.source == "digits"
    size = arguments.size or ((DIGITS_SIZE, DIGITS_SIZE) if digits else None)
    form = arguments.format or ("png" if digits else None)
    options = ShardOptions(size, form, arguments.samples_per_shard or SAMPLES_PER_SHARD)
    if arguments.labels not in (None, "none") or (digits and arguments.labels):
        raise UserError(
            f"--labels {arguments.labels} goes with --index-only; folders of pictures are the classes, or none"
        )
    if digits:
        return write_digits(arguments.out, options, workers=arguments.workers)
    if arguments.labels and arguments.layout not in (None, "folder"):
        raise UserError(f"--labels none takes a folder of pictures, and not --layout {arguments.layout}")
    where = Path(arguments.source)
    source = list_unlabelled(where) if arguments.labels else list_source(where, arguments.layout)
    if source.left_out:
        print(f"{source.path}: {source.left_out} files are left out: not pictures by their extension", file=sys.stderr)
    return write_shards(source, arguments.out, options, workers=arguments.workers)


def _index(arguments: argparse.Namespace) -> list[Path]:
    _refuse_writing(arguments, "--index-only")
    return index_shards(
        Path(arguments.source), arguments.out, workers=arguments.workers, labels=arguments.labels or "cls"
    )


def _refuse_writing(arguments: argparse.Namespace, mode: str) -> None:
    given = [flag for flag in ("size", "samples_per_shard", "format", "layout") if getattr(arguments, flag) is not None]
    if given:
        raise UserError(f"--{given[0].replace('_', '-')} does not go with {mode}, which leaves shards as they are")


def _verify(arguments: argparse.Namespace) -> None:
    _refuse_writing(arguments, "--verify")
    if arguments.out is not None or arguments.index_only or arguments.labels:
        raise UserError("--verify takes one index and nothing else: python launch/shard.py --verify INDEX")
    index = Index.read(arguments.source, Origin(key="--verify"))
    broken = verify(index, workers=arguments.workers)
    if not broken:
        print(f"{index.where}: complete: {index.samples} samples in {len(index.shards)} shards", file=sys.stderr)
        return
    rest = [f"... and {len(broken) - MAX_LINES} more"] if len(broken) > MAX_LINES else []
    lines = "\n".join([*broken[:MAX_LINES], *rest])
    raise UserError(f"{index.where}: {len(broken)} errors; copy these shards again, or make them again:\n{lines}")


def _what_to_train_with(indexes: Sequence[Path]) -> str:
    by_split = {path.stem: path for path in indexes}
    train = by_split.pop("train", None) or by_split.pop(min(by_split))
    words = [f"data.train={train}"]
    words += [f"data.validation={by_split[name]}" for name in ("validation", "val", "test") if name in by_split][:1]
    index = Index.read(train)
    if index.picture is not None and index.image_size is None:
        return (
            f"data.train={train} data.resize=exact data.image_size=N: these pictures differ in size, and are resized when they "
            "are read; to resize them once, run again with --size and another OUT"
        )
    return " ".join(words if index.image_size is None else [*words, f"data.image_size={size_key(index.image_size)}"])


if __name__ == "__main__":
    from bigtrain.cli import run_cli  # here, so that worker processes, which import this file, do not import torch

    run_cli(main)
