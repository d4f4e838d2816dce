"""Variants of an index: images resized when they are read, only some classes, or all classes equally often.

A variant is an Index with its own sample numbers, so order, passes over the split, class counts and references need not know of
it. `Index.variant` records the options (JSON: resize, classes, balance) for fingerprints and protocols.
"""

import difflib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bigtrain.data.index import Index, Resize, Shard
from bigtrain.errors import UserError


def resized(index: Index, image_size: int, how: Resize) -> Index:
    """The same images, resized to squares of `image_size` pixels when they are read."""
    return replace(index, image_size=image_size, variant={**index.variant, "resize": how})


def subset(index: Index, chosen: Sequence[int | str]) -> Index:
    """The samples of the classes `chosen` (names, or numbers), which are renumbered in this order.

    Raises UserError for an unknown class, for a class that is given twice, or if none of them has a sample.
    """
    numbers = [_class_number(index, word) for word in chosen]
    if len(set(numbers)) < len(numbers):
        raise UserError(f"a class is given twice in {list(chosen)}; give each once")
    shards = [_shard_subset(shard, np.array(numbers), len(index.classes)) for shard in index.shards]
    part = replace(
        index,
        classes=tuple(index.classes[number] for number in numbers),
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


def _class_number(index: Index, word: int | str) -> int:
    if isinstance(word, str) and word in index.classes:
        numbers = [number for number, name in enumerate(index.classes) if name == word]
        if len(numbers) > 1:
            raise UserError(f"{index.where} has {len(numbers)} classes {word!r}; give one by its number: {numbers}")
        return numbers[0]
    if str(word).isdecimal() and int(word) < len(index.classes):
        return int(word)
    near = difflib.get_close_matches(str(word), index.classes, n=1)
    raise UserError(
        f"{index.where} has no class {word!r}{f'; did you mean {near[0]!r}?' if near else ''} (it has "
        f"{len(index.classes)}, to be given by name or by number from 0)"
    )


def _shard_subset(shard: Shard, numbers: np.ndarray, classes: int) -> Shard:
    """The samples whose label is among `numbers`, relabelled by its position there."""
    new_number = np.full(classes, -1)
    new_number[numbers] = np.arange(len(numbers))
    labels = new_number[shard.labels]
    kept = np.flatnonzero(labels >= 0)
    members = {name: (offsets[kept], sizes[kept]) for name, (offsets, sizes) in shard.members.items()}
    keys = tuple(shard.keys[position] for position in kept.tolist())
    return replace(shard, keys=keys, labels=labels[kept], members=members)
