"""A stream of batches whose position is one integer.

The order of an epoch is a pure function of (seed, epoch): shards are permuted, then samples are shuffled within groups of
`shuffle_shards` shards. Position p of the stream is sample `order(epoch = p div N)[p mod N]`, so a batch may span two epochs,
and each sample comes once an epoch. Step k of a stream that starts at P reads positions P + k * microbatch + [0, microbatch);
rank r takes the r-th slice of them, a worker its share of the steps. So ranks, workers and restarts never change what is read,
prefetching cannot lose a sample, and there is no loader state to save: the trainer owns the position.

Images are sent to the device as uint8 [n, H, W, 3], stacked in the worker; flips and normalisation happen on the device.
Codes are int32 [n, h, w] by level, those of the mirrored image where the position is flipped.
Do not pass a Stream to `accelerator.prepare`: that would shard it a second time.
"""

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.loader import Loader
from bigtrain.data.read.order import Epochs, flips
from bigtrain.data.read.prefetch import Prefetch
from bigtrain.data.read.reader import CodeReader, Reader
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.errors import UserError
from bigtrain.randomness import generator

_OTHER_BYTES = 256
"""Bytes per sample besides its pixels or codes: its label, flip and number, each array with its padding."""


class Stream:
    """An endless iterator of this rank's batches.

    `microbatch`: size of the global microbatch; with n = microbatch / world, item k holds the positions
    position + k * microbatch + rank * n + [0, n). Raises UserError for a missing or truncated shard, for flips that the
    codes do not have and, unless options.undecodable is `replace`, for an undecodable sample. Call `close()` at the end:
    workers ignore the signals that the training process handles.
    """

    def __init__(
        self,
        index: Index,
        options: DataOptions,
        seed: int,
        *,
        rank: int,
        world: int,
        microbatch: int,
        position: int = 0,
        pin_memory: bool = False,
    ) -> None:
        assert microbatch % world == 0, f"a global microbatch of {microbatch} does not divide over {world} ranks"
        if options.flip and index.codes is not None and index.codes.flip_variants == 1:
            raise UserError(
                f"data.flip: {index.where} holds no codes of mirrored images; set data.flip=false, or encode the images again "
                "into another folder with `launch/encode.py RUN INDEX OUT --flip`"
            )
        ShardCache(index).check_room(options.shuffle_shards)
        local = microbatch // world
        steps = _Steps(index, options, seed, first=position + rank * local, stride=microbatch, count=local)
        self._batches = Loader(
            steps, itertools.count(), options.workers, pin_memory, local * _sample_bytes(index, options.image_size)
        )

    def __iter__(self) -> "Stream":
        return self

    def __next__(self) -> Batch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the workers now; the stream then yields nothing more."""
        self._batches.close()


def rank_share(numbers: np.ndarray, rank: int, world: int) -> np.ndarray:
    """A rank's share of `numbers` [n]: every world-th."""
    return numbers[rank::world]


class SplitLoader:
    """One finite pass over a split: each sample once, over all ranks together, without flips.

    Iterating gives (sample numbers int64 [n], Batch) with n <= batch. Each rank reads its `rank_share`, in the index's order,
    so ranks may get different counts. With `limit`, the pass is over a fixed random subset of `limit` samples, still in the
    index's order. Raises UserError for a shard or a sample that cannot be read.
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
    ) -> None:
        numbers = np.arange(index.samples)
        if limit is not None and limit < index.samples:
            numbers = np.sort(generator(0, "data/sweep").permutation(index.samples)[:limit])
        mine = rank_share(numbers, rank, world)
        self._chunks = [mine[begin : begin + batch] for begin in range(0, len(mine), batch)]
        self._index, self._workers, self._pin_memory = index, workers, pin_memory

    def __len__(self) -> int:
        """Number of batches of this rank."""
        return len(self._chunks)

    def __iter__(self) -> Iterator[tuple[np.ndarray, Batch]]:
        return read_chunks(self._index, self._chunks, workers=self._workers, pin_memory=self._pin_memory)


def read_chunks(
    index: Index, chunks: Sequence[np.ndarray], *, workers: int, pin_memory: bool = False
) -> Generator[tuple[np.ndarray, Batch], None, None]:
    """(sample numbers, Batch) for each of `chunks` (int64 [n]), without flips. Raises UserError as a SplitLoader does."""
    positions = itertools.accumulate(map(len, chunks), initial=0)
    assert index.image_size is not None, f"{index.path}: a sweep needs images of one size"
    slot_bytes = max(map(len, chunks), default=0) * _sample_bytes(index, index.image_size)
    batches = Loader(_Chunks(index, chunks), zip(positions, chunks, strict=False), workers, pin_memory, slot_bytes)
    try:
        yield from batches
    finally:
        batches.close()


class _Steps(Dataset[Any]):
    """Batches by step of the stream: `count` positions from first + step * stride."""

    def __init__(self, index: Index, options: DataOptions, seed: int, *, first: int, stride: int, count: int) -> None:
        self._reader = _reader(index, options.image_size)
        self._epochs = Epochs(index, seed, options.shuffle_shards)
        self._options, self._seed = options, seed
        self._first, self._stride, self._count = first, stride, count
        self._prefetch = Prefetch(index, self._epochs.order, epochs=True)

    def __getitem__(self, step: int) -> Batch:
        first = self._first + step * self._stride
        self._prefetch.reach(*divmod(first, self._epochs.length))
        numbers = self._epochs.numbers(first, self._count)
        mirrored = flips(self._seed, first, self._count) if self._options.flip else np.zeros(self._count, dtype=bool)
        return _read(self._reader, numbers, mirrored, lambda row: self._successors(first + row))

    def _successors(self, position: int) -> Iterator[int]:
        """The samples that may replace that of a position if it is undecodable, in this order; none if that is an error."""
        return self._epochs.after(position) if self._options.undecodable == "replace" else iter(())


class _Chunks(Dataset[Any]):
    """Batches by (position of the chunk's first sample among all `chunks`, sample numbers); prefetches for these chunks."""

    def __init__(self, index: Index, chunks: Sequence[np.ndarray]) -> None:
        assert index.image_size is not None, f"{index.path}: a sweep needs images of one size"
        self._reader = _reader(index, index.image_size)
        self._numbers = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
        self._prefetch = Prefetch(index, self._order, epochs=False)

    def _order(self, epoch: int) -> np.ndarray:
        return self._numbers

    def __getitem__(self, item: tuple[int, np.ndarray]) -> tuple[np.ndarray, Batch]:
        position, numbers = item
        self._prefetch.reach(0, position)
        mirrored = np.zeros(len(numbers), dtype=bool)
        return numbers, _read(self._reader, numbers, mirrored, lambda _: iter(()))


def _sample_bytes(index: Index, image_size: int) -> int:
    """An upper bound of the bytes that a sample and its number take in a Batch."""
    if index.codes is None:
        return image_size**2 * 3 + _OTHER_BYTES
    return sum(int(np.prod(index.codes.shape(level)[1:])) for level in index.codes.levels) * 4 + _OTHER_BYTES


def _reader(index: Index, image_size: int) -> Reader | CodeReader:
    return Reader(index, image_size) if index.codes is None else CodeReader(index)


def _read(
    reader: Reader | CodeReader, numbers: np.ndarray, mirrored: np.ndarray, successors: Callable[[int], Iterator[int]]
) -> Batch:
    """The samples `numbers`, int64 [n]; one that cannot be decoded is replaced by the first of `successors(row)` that can."""
    numbers = numbers.copy()
    samples, failed = _fill(reader, numbers)
    replaced = [f"{reader.name(int(numbers[row]))}: {reason}" for row, reason in failed.items()]
    for row, damage in zip(failed, replaced, strict=True):
        numbers[row], samples[row] = _replacement(reader, successors(row), damage)
    labels, flipped = torch.from_numpy(reader.index.labels[numbers]), torch.from_numpy(mirrored)
    if isinstance(samples, Tensor):
        return Batch(samples, labels, flipped, replaced)
    variants = mirrored.astype(int).tolist()
    codes = {
        level: np.stack([sample[level][variant] for sample, variant in zip(samples, variants, strict=True)]).astype(
            np.int32
        )
        for level in samples[0]
    }
    return Batch(None, labels, flipped, replaced, {level: torch.from_numpy(grid) for level, grid in codes.items()})


def _fill(reader: Reader | CodeReader, numbers: np.ndarray) -> tuple[Any, dict[int, str]]:
    """(the samples `numbers`: a tensor of images, or a list of codes by level; by row, why a sample cannot be decoded)."""
    if isinstance(reader, CodeReader):
        codes: list[dict[str, np.ndarray]] = [{}] * len(numbers)
        return codes, reader.fill(numbers, codes)
    pixels = torch.empty(len(numbers), reader.image_size, reader.image_size, 3, dtype=torch.uint8)
    return pixels, reader.fill(numbers, pixels.numpy())


def _replacement(reader: Reader | CodeReader, successors: Iterator[int], damage: str) -> tuple[int, Any]:
    """(number, sample) of the first of `successors` that can be decoded. Raises UserError if there is none."""
    for number in successors:
        samples, failed = _fill(reader, np.array([number]))
        if not failed:
            return number, samples[0]
    kind, intact = ("image", "a whole one") if isinstance(reader, Reader) else ("sample of codes", "the images")
    raise UserError(
        f"{reader.index.home}/{damage}; this {kind} cannot be decoded: remake the shard from {intact}, "
        "or train without it by data.undecodable=replace (an evaluation or an encoding needs every one)"
    )
