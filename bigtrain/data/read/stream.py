"""A stream of batches whose position is one integer.

The order of an epoch is a pure function of (seed, epoch): shards are permuted, then samples are shuffled within groups of
`shuffle_shards` shards. Position p of the stream is sample `order(epoch = p div N)[p mod N]`, so a batch may span two epochs,
and each sample comes once an epoch. Step k of a stream that starts at P reads positions P + k * microbatch + [0, microbatch);
rank r takes the r-th slice of them, a worker its share of the steps. So ranks, workers and restarts never change what is read,
prefetching cannot lose a sample, and there is no loader state to save: the trainer owns the position.

Of several indexes side by side each has its own order and its own epochs, all at the one position: so each sample comes once
an epoch of its own index. Fields are decoded, cut and stacked in the worker, keyed by the position; flips and normalisation
happen on the device. Do not pass a Stream to `accelerator.prepare`: that would shard it a second time.
"""

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from bigtrain.data.fields.codes import CodesField
from bigtrain.data.fields.field import Geometry
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.loader import Loader
from bigtrain.data.read.order import Epochs, crops, flips, starts
from bigtrain.data.read.prefetch import Prefetch
from bigtrain.data.read.reader import Reader
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.read.side_by_side import SideBySide
from bigtrain.data.read.verification import ShardVerification, shards_of
from bigtrain.errors import UserError
from bigtrain.randomness import generator

_OTHER_BYTES = 256
"""Bytes per sample besides its fields: its flip and number, and each array's padding."""


Data = Index | SideBySide
"""What a stream reads."""


class Stream:
    """An endless iterator of this rank's batches.

    `microbatch`: size of the global microbatch; with n = microbatch / world, item k holds the positions
    position + k * microbatch + rank * n + [0, n). `fields`: which are read, by name; None: all. Raises UserError for a missing
    or truncated shard, for flips that the codes do not have and, unless options.undecodable is `replace`, for an undecodable
    sample. Call `close()` at the end: workers ignore the signals that the training process handles.
    """

    def __init__(
        self,
        index: Data,
        options: DataOptions,
        seed: int,
        *,
        rank: int,
        world: int,
        microbatch: int,
        position: int = 0,
        pin_memory: bool = False,
        fields: Sequence[str] | None = None,
    ) -> None:
        assert microbatch % world == 0, f"a global microbatch of {microbatch} does not divide over {world} ranks"
        local = microbatch // world
        parts = []
        for part in index.parts:
            _check_flips(part.index, options)
            ShardCache(part.index).check_room(options.shuffle_shards)
            names = part.own_names(fields)
            if names:  # an index of several side by side may hold nothing that is read
                parts.append(_Part(part.index, names, options, seed, part.stream))
        steps = _Steps(parts, options, seed, first=position + rank * local, stride=microbatch, count=local)
        slot_bytes = local * sum(part.sample_bytes for part in parts)
        self._batches = Loader(steps, itertools.count(), options.workers, pin_memory, slot_bytes)

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the workers now; the stream then yields nothing more."""
        self._batches.close()


def _check_flips(index: Index, options: DataOptions) -> None:
    codes = [field for field in index.fields.values() if isinstance(field, CodesField)]
    if options.flip and any(field.flip_variants == 1 for field in codes):
        raise UserError(
            f"data.flip: {index.where} holds no codes of mirrored images; set data.flip=false, or encode the images again "
            "into another folder with `launch/encode.py RUN INDEX OUT --flip`"
        )


def rank_share(numbers: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A rank's share of `numbers` [n]: every world-th."""
    return numbers[rank::world]


class SplitLoader:
    """One finite pass over a split: each sample once, over all ranks together, without flips.

    Iterating gives (sample numbers int64 [n], Batch) with n <= batch, of `fields`, or of all. Each rank reads its
    `rank_share`, in the index's order, so ranks may get different counts. With `limit`, the pass is over a fixed random
    subset of `limit` samples, still in the index's order. Raises UserError for a shard or a sample that cannot be read.
    """

    def __init__(
        self,
        index: Index,
        *,
        rank: int,
        world: int,
        batch: int,
        workers: int,
        limit: int | None = None,
        pin_memory: bool = False,
        fields: Sequence[str] | None = None,
    ) -> None:
        numbers = np.arange(index.samples)
        if limit is not None and limit < index.samples:
            numbers = np.sort(generator(0, "data/sweep").permutation(index.samples)[:limit])
        mine = rank_share(numbers, rank, world)
        self._chunks = [mine[begin : begin + batch] for begin in range(0, len(mine), batch)]
        self._index, self._workers, self._pin_memory, self._fields = index, workers, pin_memory, fields

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Batch]]:
        return read_chunks(
            self._index, self._chunks, workers=self._workers, pin_memory=self._pin_memory, fields=self._fields
        )


def read_chunks(
    index: Index,
    chunks: Sequence[np.ndarray],
    *,
    workers: int,
    pin_memory: bool = False,
    fields: Sequence[str] | None = None,
) -> Generator[tuple[np.ndarray, Batch], None, None]:
    """(sample numbers, Batch of `fields`, or of all) for each of `chunks` (int64 [n]), neither mirrored nor cut at random.
    Raises UserError as a SplitLoader does, at the end also for a shard that does not hold what its index says."""
    positions = itertools.accumulate(map(len, chunks), initial=0)
    reader = Reader(index, fields)
    slot_bytes = max(map(len, chunks), default=0) * _sample_bytes(reader)
    batches = Loader(_Chunks(reader, chunks), zip(positions, chunks, strict=False), workers, pin_memory, slot_bytes)
    try:
        yield from batches
    finally:
        batches.close()
    if index.verified and chunks:
        ShardVerification(index).check(shards_of(index, np.concatenate(chunks)))


def _sample_bytes(reader: Reader) -> int:
    """An upper bound of the bytes that a sample and its number take in a Batch."""
    return sum(field.sample_bytes for field in reader.fields.values()) + _OTHER_BYTES


class _Part:
    """One index of a stream: its reader, its order, and the names that its fields have in a batch. `names`: in the batch, by
    the index's own name."""

    def __init__(self, index: Index, names: Mapping[str, str], options: DataOptions, seed: int, stream: str) -> None:
        self.reader = Reader(index, list(names))
        self.names = names
        self.epochs = Epochs(index, seed, options.shuffle_shards, stream)
        self.sample_bytes = _sample_bytes(self.reader)
        self._prefetch = Prefetch(index, self.epochs.order, epochs=True)
        self._replaces = options.undecodable == "replace"

    def read(self, first: int, count: int, geometry: Geometry) -> tuple[dict[str, np.ndarray], list[str]]:
        """(the samples at positions first .. first + count - 1 by name in the batch; those that were replaced)."""
        self._prefetch.reach(*divmod(first, self.epochs.length))
        values, replaced = _read(
            self.reader, self.epochs.numbers(first, count), geometry, lambda row: self._successors(first + row)
        )
        return {self.names[name]: value for name, value in values.items()}, replaced

    def _successors(self, position: int) -> Iterator[int]:
        """The samples that may replace that of a position if it is undecodable, in this order; none if that is an error."""
        return self.epochs.after(position) if self._replaces else iter(())


class _Steps(Dataset[Any]):
    """Batches by step of the stream: `count` positions from first + step * stride."""

    def __init__(
        self, parts: Sequence[_Part], options: DataOptions, seed: int, *, first: int, stride: int, count: int
    ) -> None:
        self._parts, self._flip, self._seed = parts, options.flip, seed
        self._first, self._stride, self._count = first, stride, count
        self._is_cut = any(field.is_cut for part in parts for field in part.reader.fields.values())

    def __getitem__(self, step: int) -> Batch:
        first = self._first + step * self._stride
        geometry = self._geometry(first)
        values: dict[str, np.ndarray] = {}
        replaced: list[str] = []
        for part in self._parts:
            of_part, replaced_in_part = part.read(first, self._count, geometry)
            values |= of_part
            replaced += replaced_in_part
        return _batch(values, geometry, replaced)

    def _geometry(self, first: int) -> Geometry:
        mirrored = flips(self._seed, first, self._count) if self._flip else np.zeros(self._count, dtype=bool)
        if not self._is_cut:
            return Geometry(mirrored)
        return Geometry(mirrored, crops(self._seed, first, self._count), starts(self._seed, first, self._count))


class _Chunks(Dataset[Any]):
    """Batches by (position of the chunk's first sample among all `chunks`, sample numbers); prefetches for these chunks."""

    def __init__(self, reader: Reader, chunks: Sequence[np.ndarray]) -> None:
        self._reader = reader
        self._numbers = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
        self._prefetch = Prefetch(reader.index, self._order, epochs=False)

    def _order(self, epoch: int) -> np.ndarray:
        return self._numbers

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[np.ndarray, Batch]:
        position, numbers = item
        self._prefetch.reach(0, position)
        geometry = Geometry.plain(len(numbers))
        values, replaced = _read(self._reader, numbers, geometry, lambda _: iter(()))
        return numbers, _batch(values, geometry, replaced)


def _batch(values: Mapping[str, np.ndarray], geometry: Geometry, replaced: list[str]) -> Batch:
    tensors = {name: torch.from_numpy(value) for name, value in values.items()}
    return Batch(tensors, torch.from_numpy(geometry.flips), replaced)


def _read(
    reader: Reader, numbers: np.ndarray, geometry: Geometry, successors: Callable[[int], Iterator[int]]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """(the samples `numbers`, int64 [n], by field; "SHARD/KEY: reason" for each that could not be decoded and was replaced
    by the first of `successors(row)` that can)."""
    values, failed = reader.read(numbers, geometry)
    replaced = []
    for row, reason in sorted(failed.items()):
        damage = f"{reader.name(int(numbers[row]))}: {reason}"
        replacement = _replacement(reader, successors(row), geometry.of(row), damage)
        for name, value in replacement.items():
            values[name][row] = value[0]
        replaced.append(damage)
    return values, replaced


def _replacement(reader: Reader, successors: Iterator[int], geometry: Geometry, damage: str) -> dict[str, np.ndarray]:
    """The first of `successors` that can be decoded, [1, ...] by field. Raises UserError if there is none."""
    for number in successors:
        values, failed = reader.read(np.array([number]), geometry)
        if not failed:
            return values
    is_image = "image" in reader.fields
    kind, intact = ("image", "a whole one") if is_image else ("sample", "whole ones")
    raise UserError(
        f"{reader.index.home}/{damage}; this {kind} cannot be decoded: remake the shard from {intact}, "
        "or train without it by data.undecodable=replace (an evaluation or an encoding needs every one)"
    )
