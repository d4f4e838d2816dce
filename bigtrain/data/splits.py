"""Opens the indexes that a recipe names (`data.train`, `data.validation`), with the recipe's size, classes and balance."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from bigtrain.cluster.world import is_main
from bigtrain.data.digits import digits_index
from bigtrain.data.index import HOW_TO_MAKE, Index, Resize
from bigtrain.data.options import DataOptions
from bigtrain.data.read import variants
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.remote import DEFAULTS, HERE, Origin, RemoteOptions, is_remote
from bigtrain.errors import UserError
from bigtrain.formats import FORMAT
from bigtrain.sizes import size_text


def find_split(data: DataOptions, split: Literal["train", "validation"]) -> Index:
    """The index that `data.SPLIT` names, resized and filtered by class as `data` says.

    Raises UserError, also for missing shards.
    """
    where = data.train if split == "train" else data.validation
    assert where is not None, f"data.{split} names no index"
    return _with_classes(find_index(where, split, data.image_size, data.resize, data.remote), data, split)


def as_trained_on(index: Index, data: DataOptions) -> Index:
    """`index`, which is that of `data.train`, resized and filtered by class as `data` says; its shards may be missing. Raises
    UserError."""
    return _with_classes(_with_size(index, data.train, "train", data.image_size, data.resize), data, "train")


def _with_classes(index: Index, data: DataOptions, split: Literal["train", "validation"]) -> Index:
    if data.classes is not None:
        with _prefixed("data.classes"):
            index = variants.subset(index, data.classes)
    if data.balance and split == "train":
        with _prefixed("data.balance"):
            index = variants.balanced(index)
    return index


def find_index(
    where: str, split: str, image_size: int, resize: Resize = "never", remote: RemoteOptions = DEFAULTS
) -> Index:
    """The index that `data.SPLIT` names, with images of `image_size` pixels. Raises UserError, also for missing shards."""
    return _with_size(open_index(where, split, f"data.{split}", image_size, remote), where, split, image_size, resize)


def _with_size(index: Index, where: str, split: str, image_size: int, resize: Resize) -> Index:
    if index.image_size == image_size:
        return index
    if index.codes is None and resize != "never":
        return variants.resized(index, image_size, resize)
    has = "images of different sizes" if index.image_size is None else f"images of {index.image_size} pixels"
    exact = "" if index.codes is not None else "have them resized when they are read by data.resize=exact, or "
    raise UserError(
        f"data.{split}: {where} has {has} but data.image_size is {image_size}; "
        f"{'' if index.image_size is None else f'set data.image_size={index.image_size}, or '}{exact}"
        f"make shards of that size with `python launch/shard.py SOURCE OUT --size {image_size}`"
    )


def open_index(where: str, split: str, key: str, digits_size: int, remote: RemoteOptions = DEFAULTS) -> Index:
    """The index at a path or a URL, with images of any size, or that of the digits' `split`. Local shards must be present.

    Raises UserError that names `key`, the option that gave `where`.
    """
    if where == "digits":
        return _checked(digits_index(split, digits_size), key, "remove the folder, and it is made again")
    origin = Origin(key=key, options=remote)
    if is_remote(where):
        index = Index.read(where, origin)
        index.check_files()
        if is_main():
            folder = ShardCache(index).folder
            tqdm.write(
                f"{key}: the shards of {index.where} are fetched to {folder} as they are needed", file=sys.stderr
            )
        return index
    if Path(where).is_dir():
        indexes = ", ".join(sorted(map(str, Path(where).glob("*.json")))) or f"none here: {HOW_TO_MAKE}"
        raise UserError(f"{key}: {where} is a folder; give the index in it ({indexes})")
    return _checked(Path(where), key, origin=origin)


def find_images(
    where: str,
    split: str,
    key: str,
    size: tuple[int, int],
    resize: Resize = "never",
    remote: RemoteOptions = DEFAULTS,
) -> Index:
    """The index at a path or a URL, or that of the digits' `split`, of images that have or are resized to `size` (height,
    width).

    Raises UserError that names `key`, the option that gave `where`, for anything else.
    """
    height, width = size
    index = open_index(where, split, key, height, remote)
    if index.codes is not None:
        raise UserError(f"{key}: {where} is an index of codes; give that of the images ({index.codes.images['path']})")
    if height == width == index.image_size:
        return index
    if height == width and resize != "never":
        return variants.resized(index, height, resize)
    has = "images of different sizes" if index.image_size is None else f"images of {index.image_size} pixels"
    raise UserError(
        f"{key}: {where} has {has}, but the model takes {size_text(size)}; make shards of that size with "
        f"`python launch/shard.py SOURCE OUT --size {height}`"
    )


@contextlib.contextmanager
def _prefixed(key: str) -> Iterator[None]:
    """Prefixes the recipe's key to the message of a UserError."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _checked(path: Path, key: str, remedy: str = "", origin: Origin = HERE) -> Index:
    try:
        index = Index.read(path, origin)
        index.check_files()
    except UserError as error:
        raise UserError(f"{key}: {error}{f'; or {remedy}' if remedy else ''}") from None
    return index


def image_shape(index: Index) -> tuple[int, int, int]:
    """(channels, height, width) of the images of an index, which are all of one size."""
    assert index.image_size is not None, f"{index.path}: images of one size are needed"
    return 3, index.image_size, index.image_size


def describe(index: Index) -> dict[str, Any]:
    """The description of the data that a checkpoint holds: enough to sample without the data (`DataSpec.of`)."""
    facts: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "image_size": index.image_size,
        "channels": 3,
        "classes": list(index.classes),
        "class_counts": list(index.class_counts),
    }
    if index.variant:
        facts["view"] = dict(index.variant)
    if index.codes is not None:
        facts["codes"] = {"tokenizer": index.codes.tokenizer, "levels": dict(index.codes.levels)}
    return facts
