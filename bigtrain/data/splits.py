"""Opens the indexes that a recipe names (`data.train`, `data.validation`), with fields and classes as the recipe says."""

import contextlib
import os
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

from tqdm import tqdm

from bigtrain.cluster.world import is_main
from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.indexes_beside import why_a_folder_is_none
from bigtrain.data.options import NONE, DataOptions, sides
from bigtrain.data.read import variants
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.read.side_by_side import SideBySide
from bigtrain.data.read.stream import Data
from bigtrain.data.remote import DEFAULTS, HERE, Origin, RemoteOptions, check_url, is_remote, shown
from bigtrain.data.resize import Resize
from bigtrain.errors import UserError
from bigtrain.formats import FORMAT
from bigtrain.sizes import image_size_of, size_flag, size_key, size_text
from bigtrain.untrusted import one_line

DIGITS = "digits"
"""Names scikit-learn's digits where an index is asked for."""
Split = Literal["train", "validation"]


class NoImages(UserError):
    """Pictures of a size are asked for, and an index, which `key` names, has none. `has`: says what it has."""

    def __init__(self, key: str, index: Index) -> None:
        fields = ", ".join(f"{name} ({field.kind})" for name, field in index.fields.items())
        self.has = f"{index.where} has no images, but {fields}"
        super().__init__(f"{key}: {self.has}; leave out data.image_size, or give an index of images")


def find_split(data: DataOptions, split: Split) -> Data:
    """What `data.SPLIT` names, with fields and classes as `data` says. Raises UserError, also for missing shards."""
    size = sides(data.crop_from or data.image_size)
    return _each(
        data, split, lambda where, key: _as_read(open_index(where, split, key, size, data.remote), data, split, key)
    )


def known_split(data: DataOptions) -> Data | None:
    """What `data.train` names, with fields and classes as `data` says, from the indexes alone: their shards may be missing.
    None if an index is not on this machine. Raises UserError."""
    paths = [data.train] if isinstance(data.train, str) else list(data.train.values())
    if not all(path == DIGITS or Path(path).is_file() for path in paths):
        return None
    size = sides(data.crop_from or data.image_size)

    def read(where: str, key: str) -> Index:
        index = Index.read(digits_index("train", size) if where == DIGITS else where)
        return _as_read(index, data, "train", key)

    return _each(data, "train", read)


def _each(data: DataOptions, split: Split, read: Callable[[str, str], Index]) -> Data:
    """What `data.SPLIT` names, one index or several; `read` gives the one that a key names."""
    where, key = (data.train if split == "train" else data.validation), f"data.{split}"
    assert where is not None, f"{key} names no index"
    if where == NONE:
        raise UserError(f"{key}: names no data, and this needs them; give their index with {key}=INDEX")
    if isinstance(where, str):
        return read(where, key)
    return SideBySide({name: read(path, f"{key}.{name}") for name, path in where.items()})


def find_index(
    where: str,
    split: str,
    size: int | tuple[int, int] | None,
    resize: Resize = "never",
    remote: RemoteOptions = DEFAULTS,
) -> Index:
    """The index that `data.SPLIT` names, with images of `size` (height, width, or the side of a square; None: as they are).
    Raises UserError, also for missing shards."""
    index = open_index(where, split, f"data.{split}", sides(size), remote)
    return _with_size(index, f"data.{split}", sides(size), resize, None)


def _as_read(index: Index, data: DataOptions, split: Split, key: str) -> Index:
    """The index that `key` names, with all that a recipe says of how it is read."""
    index = replace(index, verified=data.verify == "once")
    if data.channels is not None:
        index = _with_channels(index, key, data.channels)
    index = _with_size(index, key, sides(data.image_size), data.resize, sides(data.crop_from))
    kinds = {field.kind for field in index.fields.values()}
    if "clip" in kinds and data.frames is not None:
        index = variants.windowed(index, data.frames)
    if "text" in kinds:
        index = variants.tokenised(index, data.text.tokenizer, data.text.length)
    if data.rename:
        with _prefixed("data.rename"):
            index = variants.renamed(index, data.rename)
    if data.derive:
        index = variants.with_derived(index, data.derive)
    if data.classes is not None:
        with _prefixed("data.classes"):
            index = variants.subset(index, data.classes)
    if data.balance and split == "train":
        with _prefixed("data.balance"):
            index = variants.balanced(index)
    if data.known_labels is not None:
        with _prefixed("data.known_labels"):
            known = data.known_labels.model_dump() if split == "train" else {}
            index = variants.with_known_labels(index, **known)
    return index


def _with_channels(index: Index, name: str, channels: int) -> Index:
    """The index that the key `name` names, with images of `channels` channels. Raises UserError."""
    if index.codes is not None and index.channels != channels:
        raise UserError(
            f"{name}: {index.where} holds codes of images with {index.channels} channels but data.channels is {channels}; "
            "leave it out"
        )
    return index if variants.channels_of(index) <= {channels} else variants.with_channels(index, channels)


def _with_size(
    index: Index, name: str, size: tuple[int, int] | None, resize: Resize, crop_from: tuple[int, int] | None
) -> Index:
    """The index that the key `name` names, with pictures of `size`, resized or cropped if that is asked for. Raises
    UserError."""
    has, what = index.image_size, f"{name}: {index.where}"
    if size is None or (has == size and crop_from in (None, size)):
        return index
    if index.picture is None and index.codes is None:
        raise NoImages(name, index)
    if index.picture is not None and (resize != "never" or (crop_from is not None and has == crop_from)):
        how = "never" if crop_from is not None and has == crop_from else resize
        return variants.resized(index, size, how, crop_from)
    wanted = crop_from or size
    key = "image_size" if crop_from is None else "crop_from"
    described = "images of different sizes" if has is None else f"images of {size_text(has)} pixels"
    exact = "" if index.codes is not None else "have them resized when they are read by data.resize=exact, or "
    raise UserError(
        f"{what} has {described} but data.{key} is {size_text(wanted)}; "
        f"{'' if has is None else f'set data.{key}={size_key(has)}, or '}{exact}"
        f"make shards of that size with `python launch/shard.py SOURCE OUT --size {size_flag(wanted)}`"
    )


def open_index(
    where: str, split: str, key: str, digits_size: tuple[int, int] | None = None, remote: RemoteOptions = DEFAULTS
) -> Index:
    """The index at a path or a URL, as it is, or that of the digits' `split` at `digits_size`. Local shards must be present.

    Raises UserError that names `key`, the option that gave `where`.
    """
    if where == DIGITS:
        return _checked(digits_index(split, digits_size), key, "remove the folder, and it is made again")
    origin = Origin(key=key, options=remote)
    if is_remote(where):
        check_url(where, origin)
    if where.endswith(".tar"):
        _refuse_tars(where, key)
    if is_remote(where):
        index = Index.read(where, origin)
        index.check_files()
        if is_main():
            folder = ShardCache(index).folder
            said = f"{key}: the shards of {index.where} are fetched to {folder} as they are needed"
            tqdm.write(one_line(said), file=sys.stderr)
        return index
    if Path(where).is_dir():
        raise UserError(f"{key}: {where} {why_a_folder_is_none(Path(where))}")
    return _checked(Path(where), key, origin=origin)


def _refuse_tars(where: str, key: str) -> NoReturn:
    """Raises UserError for shards, one or a pattern with braces as webdataset takes it, where an index is wanted."""
    if is_remote(where):
        named, make = shown(where), f"python launch/shard.py '{shown(where)}' OUT --index-only"
    else:
        folder = os.path.dirname(where) or "."
        named, make = where, f"python launch/shard.py {shlex.quote(folder)} --index-only"
    raise UserError(
        f"{key}: {named}: training reads an index of such tars: `{make}` writes it; then give its path here"
    )


def find_images(
    where: str,
    split: str,
    key: str,
    size: tuple[int, int],
    resize: Resize = "never",
    remote: RemoteOptions = DEFAULTS,
    channels: int = 3,
) -> Index:
    """The index at a path or a URL, or that of the digits' `split`, of images that have or get (height, width) `size` and
    `channels`.

    Raises UserError that names `key`, the option that gave `where`, for anything else.
    """
    index = open_index(where, split, key, size, remote)
    if index.codes is not None:
        raise UserError(f"{key}: {where} is an index of codes; give that of the images ({index.codes.images['path']})")
    if index.picture is None:
        raise UserError(f"{key}: {where} has no images, but {', '.join(index.fields)}; give an index of images")
    if index.channels != channels:
        index = variants.with_channels(index, channels)
    if index.image_size == size:
        return index
    if resize != "never":
        return variants.resized(index, size, resize)
    has = "images of different sizes" if index.image_size is None else f"images of {size_text(index.image_size)} pixels"
    raise UserError(
        f"{key}: {where} has {has}, but the model takes {size_text(size)}; make shards of that size with "
        f"`python launch/shard.py SOURCE OUT --size {size_flag(size)}`"
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
    return (index.channels, *index.image_size)


def describe(index: Data) -> dict[str, Any]:
    """The description of the data that a checkpoint holds: enough to sample without the data (`DataSpec.of`)."""
    size = index.image_size
    facts: dict[str, Any] = {
        "format": FORMAT,
        "fingerprint": index.fingerprint,
        "image_size": None if size is None else image_size_of(size),
        "channels": index.channels,
        "classes": list(index.classes),
        "class_counts": list(index.class_counts),
        "fields": {name: field.described() for name, field in index.fields.items()},
    }
    if isinstance(index, Index) and index.variant:
        facts["view"] = dict(index.variant)
    if index.codes is not None:
        facts["codes"] = {"tokenizer": index.codes.tokenizer, "levels": dict(index.codes.levels)}
    return facts
