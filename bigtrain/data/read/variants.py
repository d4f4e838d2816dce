"""Variants of an index: fields resized, cropped, renamed, derived or tokenised when they are read; only some classes, or all
classes equally often; the labels of few samples.

A variant is an Index with its own fields or sample numbers, so order, passes over the split, class counts and references need
not know of it. `Index.variant` records the options (JSON) for fingerprints and protocols.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from bigtrain.data.classes import class_numbers
from bigtrain.data.fields.clip import ClipField
from bigtrain.data.fields.derived import derived
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import KNOWN_LABEL, KnownLabelField, LabelField
from bigtrain.data.fields.pictures import ImageField, PicturedField
from bigtrain.data.fields.registry import NAME
from bigtrain.data.fields.text import TextField, tokenizer_hash
from bigtrain.data.index import Index
from bigtrain.data.resize import Resize
from bigtrain.data.shard import Shard
from bigtrain.errors import UserError
from bigtrain.randomness import generator


def resized(index: Index, size: tuple[int, int], how: Resize, crop_from: tuple[int, int] | None = None) -> Index:
    """The same samples, with the pictures made (height, width) `size` when they are read: resized to it, or to `crop_from`, of
    which `size` is then cropped. Fields of a factor get the same part of both. Raises UserError for sizes that do not
    divide."""
    pictured = {name: field for name, field in index.fields.items() if isinstance(field, PicturedField)}
    unit = math.lcm(*(field.factor for field in pictured.values()))
    fields = {name: field.at_size(size, how, crop_from, unit) for name, field in pictured.items()}
    variant: dict[str, Any] = {} if how == "never" else {"resize": how}
    variant |= {} if crop_from is None else {"crop_from": list(crop_from)}
    return replace(index, fields={**index.fields, **fields}, variant={**index.variant, **variant})


def channels_of(index: Index) -> set[int]:
    """Of the images and clips."""
    return {field.channels for field in index.fields.values() if isinstance(field, ImageField | ClipField)}


def with_channels(index: Index, channels: int) -> Index:
    """The same samples, with images of `channels` channels."""
    fields = {
        name: replace(field, channels=channels) if isinstance(field, ImageField | ClipField) else field
        for name, field in index.fields.items()
    }
    return replace(index, fields=fields, variant={**index.variant, "channels": channels})


def renamed(index: Index, names: Mapping[str, str]) -> Index:
    """The same samples, with fields under other names; names: by the new name, the index's own. Raises UserError."""
    for new, own in names.items():
        if own not in index.fields:
            raise UserError(f"{new}: {index.where} has no field {own!r}; it has {', '.join(index.fields)}")
        if not NAME.fullmatch(new):
            raise UserError(f"{new!r} cannot name a field; a name is letters, digits and underscores")
        if new in index.fields and new not in names.values():
            raise UserError(f"{new}: {index.where} has a field of that name already; rename that one too")
    if len(set(names.values())) < len(names):
        raise UserError(f"a field is renamed twice in {dict(names)}; give each one name")
    new_names = {own: new for new, own in names.items()}
    fields = {
        new_names.get(own, own): replace(field, name=new_names.get(own, own)) for own, field in index.fields.items()
    }
    return replace(index, fields=fields, variant={**index.variant, "rename": dict(names)})


def with_derived(index: Index, derivations: Mapping[str, Any]) -> Index:
    """The same samples with further fields, each derived from an image. Raises UserError that names the key."""
    fields: dict[str, Field] = dict(index.fields)
    for name, derivation in derivations.items():
        if not NAME.fullmatch(name):
            raise UserError(f"data.derive: {name!r} cannot name a field; a name is letters, digits and underscores")
        fields[name] = derived(name, derivation, fields)
    options = {name: derivation.model_dump(mode="json") for name, derivation in derivations.items()}
    return replace(index, fields=fields, variant={**index.variant, "derive": options})


def tokenised(index: Index, tokenizer: str, length: int) -> Index:
    """The same samples, with texts as at most `length` tokens. Raises UserError if there is no such tokenizer."""
    fields = {
        name: field.tokenised(tokenizer, length) if isinstance(field, TextField) else field
        for name, field in index.fields.items()
    }
    text = {"tokenizer": tokenizer_hash(tokenizer), "length": length}
    return replace(index, fields=fields, variant={**index.variant, "text": text})


def windowed(index: Index, frames: int) -> Index:
    """The same samples, with clips of `frames` frames. Raises UserError if a clip is shorter."""
    fields = {
        name: field.windowed(frames) if isinstance(field, ClipField) else field for name, field in index.fields.items()
    }
    return replace(index, fields=fields, variant={**index.variant, "frames": frames})


def subset(index: Index, chosen: Sequence[int | str]) -> Index:
    """The samples of the classes `chosen` (names, or positions), which are renumbered in this order.

    Raises UserError for an unknown class, for a class that is given twice, or if none of them has a sample.
    """
    numbers = _numbers_of(index, chosen)
    if len(set(numbers)) < len(numbers):
        raise UserError(f"a class is given twice in {list(chosen)}; give each once")
    shards = [_shard_subset(shard, np.array(numbers), len(index.classes)) for shard in index.shards]
    label: LabelField = replace(index.label_field, classes=tuple(index.classes[number] for number in numbers))
    part = replace(
        index,
        fields={**index.fields, label.name: label},
        shards=tuple(shard for shard in shards if shard.samples),
        variant={**index.variant, "classes": numbers},
    )
    if part.samples == 0:
        raise UserError(f"{index.where} has no sample of the classes {list(chosen)}")
    return part


def balanced(index: Index) -> Index:
    """The same samples, but each class occurs equally often in an epoch. Raises UserError for an empty class."""
    if 0 in index.class_counts:
        raise UserError(
            f"{index.where} has no sample of the class {index.classes[index.class_counts.index(0)]!r}, so the classes cannot "
            "be balanced; leave it out by data.classes"
        )
    return replace(index, variant={**index.variant, "balance": True})


def with_known_labels(index: Index, per_class: int | None = None, seed: int = 0, only: bool = False) -> Index:
    """The same samples, or `only` those that are chosen, with a further field: the labels of `per_class` random samples of each
    class, or of all (None). `balanced` comes before, as it changes their share. Raises UserError for a class that has fewer."""
    if KNOWN_LABEL in index.fields:
        raise UserError(f"{index.where} has a field {KNOWN_LABEL} already; rename it by data.rename")
    if per_class is None:
        field = KnownLabelField(KNOWN_LABEL, (), np.ones(index.samples, dtype=bool), 1.0)
        return replace(index, fields={**index.fields, KNOWN_LABEL: field})
    counts = np.bincount(index.labels, minlength=len(index.classes))
    few = [name for name, count in zip(index.classes, counts.tolist(), strict=True) if count < per_class]
    if few:
        raise UserError(
            f"{index.where} has fewer than {per_class} samples of the class {few[0]!r}; take fewer per_class"
        )
    order = generator(seed, "data/known_labels").permutation(index.samples)
    by_class = [order[index.labels[order] == number][:per_class] for number in range(len(index.classes))]
    chosen = np.zeros(index.samples, dtype=bool)
    chosen[np.concatenate(by_class)] = True
    variant = {**index.variant, "known_labels": {"per_class": per_class, "seed": seed, "only": only}}
    # Balance shows samples of small classes more often.
    share = float((per_class / counts).mean()) if index.is_balanced else per_class * len(counts) / index.samples
    if only:
        share = 1.0
        starts = np.cumsum([shard.samples for shard in index.shards])[:-1]
        parts = zip(index.shards, np.split(chosen, starts), strict=True)
        shards = tuple(_shard_part(shard, np.flatnonzero(kept), shard.labels) for shard, kept in parts if kept.any())
        index, chosen = replace(index, shards=shards), np.ones(chosen.sum(), dtype=bool)
    field = KnownLabelField(KNOWN_LABEL, (), chosen, share)
    return replace(index, fields={**index.fields, KNOWN_LABEL: field}, variant=variant)


def _numbers_of(index: Index, chosen: Sequence[int | str]) -> list[int]:
    try:
        return class_numbers(index.classes, chosen)
    except UserError as error:
        raise UserError(f"{index.where}: {error}") from None


def _shard_subset(shard: Shard, numbers: np.ndarray, classes: int) -> Shard:
    """The samples whose label is among `numbers`, relabelled by its position there."""
    new_number = np.full(classes, -1)
    new_number[numbers] = np.arange(len(numbers))
    labels = new_number[shard.labels]
    return _shard_part(shard, np.flatnonzero(labels >= 0), labels)


def _shard_part(shard: Shard, kept: np.ndarray, labels: np.ndarray) -> Shard:
    """The samples at the positions `kept`; labels: int64 [samples], of all of the shard."""
    members = {name: (offsets[kept], sizes[kept]) for name, (offsets, sizes) in shard.members.items()}
    keys = tuple(shard.keys[position] for position in kept.tolist())
    return replace(shard, keys=keys, labels=labels[kept], members=members)
