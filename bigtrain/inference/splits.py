"""The splits of a run, the same on all ranks, and the images behind an index of codes."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions, shown
from bigtrain.data.read import variants
from bigtrain.data.read.side_by_side import SideBySide
from bigtrain.data.read.stream import Data
from bigtrain.data.remote import is_remote
from bigtrain.data.splits import describe, find_split
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec

AnyData = TypeVar("AnyData", bound=Data)


def find_splits(data: DataOptions) -> tuple[Data, Data | None]:
    """The indices of data.train and data.validation. The main rank looks first, as it may have to make them.

    Raises UserError if one is missing or differs between ranks, or if they do not have the same classes.
    """
    train = _found(data, "train")
    where = data.validation
    if where is None:
        return train, None
    validation = _found(data, "validation")
    if validation.classes != train.classes:
        raise UserError(
            f"data.validation: {shown(where)} has other classes than data.train; give splits of the same data"
        )
    if (train.codes and train.codes.tokenizer) != (validation.codes and validation.codes.tokenizer):
        raise UserError(
            f"data.validation: {shown(where)} and data.train are not codes of one tokenizer; encode both with the same run"
        )
    return train, validation


def find_needed(data: DataOptions, needed: Collection[str]) -> tuple[Data | None, Data | None]:
    """`find_splits`, without a look at data that are not among `needed`: an evaluation may do without. Raises UserError."""
    if "train" in needed:
        return find_splits(data) if "validation" in needed else (_found(data, "train"), None)
    return None, _found(data, "validation") if "validation" in needed and data.validation is not None else None


def _found(data: DataOptions, split: Literal["train", "validation"]) -> Data:
    return same_on_all(world.main_first(lambda: find_split(data, split)), f"data.{split}")


def check_fields(index: Data, own: DataSpec, names: Sequence[str], key: str) -> None:
    """Raises UserError, naming `key`, if a split lacks a field that a model is given, or has another shape or other classes in
    it. `own`: the data that the model is built for."""
    given = DataSpec.from_json(describe(index))
    for name in names:
        wanted, found = own.fields[name], given.fields.get(name)
        if found is None or found["kind"] != wanted["kind"]:
            has = ", ".join(f"{other} ({facts['kind']})" for other, facts in given.fields.items())
            raise UserError(
                f"{key}: {index.where} has no field {name} of the kind {wanted['kind']}, which the model takes; it has {has}"
            )
        if wanted["kind"] == "label" and given.classes != own.classes:
            raise UserError(
                f"{key}: {index.where} has {len(given.classes)} classes, and the model's own data have other ones "
                f"({len(own.classes)}); give a split of those"
            )
        shapes = [_shapes(spec, name) for spec in (own, given)]
        if None not in shapes and shapes[0] != shapes[1]:
            raise UserError(
                f"{key}: {index.where} has {_in_words(shapes[1])} in the field {name}, and the model takes "
                f"{_in_words(shapes[0])}; give a split of data like its own"
            )


def _shapes(spec: DataSpec, name: str) -> list[list[int]] | None:
    """The shapes of a field's tensors for one sample, without their lengths where those vary; None where a description of
    earlier data does not say them."""
    facts = spec.fields[name]
    if "tensors" in facts:
        return [list(shape)[1 if facts.get("varies") else 0 :] for shape in facts["tensors"].values()]
    if facts["kind"] != "image":
        return None
    return [[facts.get("channels", spec.channels), *facts.get("size", spec.size)]]


def _in_words(shapes: list[list[int]] | None) -> str:
    return " and ".join(" x ".join(map(str, shape)) for shape in shapes or [])


def same_on_all(index: AnyData, key: str) -> AnyData:
    """Returns the index if every rank has the same; every rank calls it. Raises UserError, on all ranks, if they differ."""
    fingerprints = world.gather_objects(index.fingerprint)
    if len(set(fingerprints)) > 1:
        others = [rank for rank, fingerprint in enumerate(fingerprints) if fingerprint != fingerprints[0]]
        raise UserError(
            f"{key}: {index.where} is not the same data on all machines: ranks {', '.join(map(str, others))} have others than "
            "rank 0; copy the index and its shards to all of them, or put them where all see the same"
        )
    return index


def one_index(data: Data, key: str = "evaluation.metrics") -> Index:
    """The index, where there is one. Raises UserError, naming `key`, where several are read side by side: none of them is what
    samples are compared with."""
    if isinstance(data, SideBySide):
        raise UserError(f"{key}: {data.where} are read side by side, and this is of one index; leave it out")
    return data


def images_behind(data: Data) -> Index:
    """The index of the images that codes were made from; an index of images itself. Raises UserError."""
    index = one_index(data)
    if index.codes is None:
        return index
    source = index.codes.images
    try:
        images = Index.read(_moved_with(index, source["path"]), index.origin)
        images.check_files()
    except UserError as error:
        raise UserError(f"{index.where}: the images that its codes were made from cannot be read: {error}") from None
    if source.get("channels", images.channels) != images.channels:
        images = variants.with_channels(images, source["channels"])
    if "resize" in source:
        assert index.image_size is not None, f"{index.path}: codes are of images of one size"
        images = variants.resized(images, index.image_size, source["resize"])
    if images.fingerprint != source["fingerprint"]:
        raise UserError(
            f"{index.where}: its codes were made from {images.where}, which holds other images now; encode them again"
        )
    return variants.subset(images, index.variant["classes"]) if "classes" in index.variant else images


def _moved_with(index: Index, recorded: str) -> str:
    """Where the images of an index of codes lie: as it records, or, if there is nothing, where they are if both have moved
    together with a folder above them. The fingerprint tells afterwards whether it is these."""
    path = Path(recorded)
    if index.origin.url is not None or is_remote(recorded) or path.exists():
        return recorded
    ends = [Path(*path.parts[first:]) for first in range(1, len(path.parts))]
    found = (above / end for above in index.path.resolve().parents for end in ends if (above / end).is_file())
    return str(next((one for one in found if not one.samefile(index.path)), path))
