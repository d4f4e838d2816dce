"""The order of samples, and how each is cut and mirrored: pure functions of (seed, epoch) and (seed, position).

Nothing here has state that a restart could lose; every rank and worker computes the same arrays.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from bigtrain.data.index import Index
from bigtrain.randomness import generator

FLIP_BLOCK = 1024
"""Positions whose flips, crops or windows are drawn together: a separate draw for each would cost as much as decoding it."""
_KEPT_EPOCHS = 2
"""Epochs whose order is cached: a batch may span two, and workers only go forward."""


def order(
    shard_sizes: Sequence[int] | np.ndarray, seed: int, epoch: int, shuffle_shards: int, stream: str = "data/order"
) -> np.ndarray:
    """The epoch's permutation of sample numbers, int64 [sum of shard_sizes]: a pure function of its arguments."""
    draws = generator(seed, stream, step=epoch)
    sizes = np.asarray(shard_sizes, dtype=np.int64)
    starts = np.cumsum(sizes) - sizes
    shards = draws.permutation(len(sizes))
    ends = np.cumsum(sizes[shards])
    numbers = np.arange(ends[-1]) + np.repeat(starts[shards] - (ends - sizes[shards]), sizes[shards])
    bounds = [0, *ends[shuffle_shards - 1 :: shuffle_shards].tolist(), int(ends[-1])]
    for begin, end in itertools.pairwise(bounds):
        draws.shuffle(numbers[begin:end])
    return numbers


def balanced_counts(labels: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """How often each sample occurs in an epoch in which every class occurs as often as the largest one, int64 [N].

    labels: int64 [N]; every class 0 .. max occurs. With n samples in a class and m in the largest, each sample occurs m div n
    times; the r = m mod n samples that are still missing in epoch e are the positions e * r .. (e + 1) * r of an endless
    sequence of permutations of the class. So every sample occurs at least once an epoch, and e * m / n times in the first e
    epochs, rounded up or down.
    """
    sizes = np.bincount(labels)
    most = int(sizes.max())
    by_class = np.split(np.argsort(labels, kind="stable"), np.cumsum(sizes)[:-1])
    counts = np.empty(len(labels), dtype=np.int64)
    for number, members in enumerate(by_class):
        repeats, missing = divmod(most, len(members))
        before, after = (_occurrences(len(members), missing * end, seed, number) for end in (epoch, epoch + 1))
        counts[members] = repeats + after - before
    return counts


def _occurrences(size: int, position: int, seed: int, number: int) -> np.ndarray:
    """How often each of a class's `size` samples occurs before `position` of its sequence of permutations, int64 [size]."""
    cycle, rest = divmod(position, size)
    times = np.full(size, cycle)
    if rest:
        times[generator(seed, "data/balance", step=cycle, index=number).permutation(size)[:rest]] += 1
    return times


def flips(seed: int, first: int, count: int) -> np.ndarray:
    """Whether positions first .. first + count - 1 are mirrored, bool [count]: a pure function of seed and position."""
    return _by_position(seed, "data/flip", first, count, lambda draws: draws.integers(0, 2, FLIP_BLOCK, dtype=bool))


def crops(seed: int, first: int, count: int) -> np.ndarray:
    """Where the crops of positions first .. first + count - 1 lie, float64 [count, 2] in [0, 1)."""
    return _by_position(seed, "data/crop", first, count, lambda draws: draws.random((FLIP_BLOCK, 2)))


def starts(seed: int, first: int, count: int) -> np.ndarray:
    """Where the windows of positions first .. first + count - 1 begin in their clips, float64 [count] in [0, 1)."""
    return _by_position(seed, "data/window", first, count, lambda draws: draws.random(FLIP_BLOCK))


def _by_position(
    seed: int, stream: str, first: int, count: int, draw: Callable[[np.random.Generator], np.ndarray]
) -> np.ndarray:
    blocks = range(first // FLIP_BLOCK, (first + count - 1) // FLIP_BLOCK + 1)
    begin = first - blocks.start * FLIP_BLOCK
    return np.concatenate([draw(generator(seed, stream, index=block)) for block in blocks])[begin : begin + count]


class Epochs:
    """The sample numbers by position, epoch after epoch; an epoch has sum(index.class_counts) positions.

    `stream`: of the draws; each of several indexes that are read side by side has its own order.
    """

    def __init__(self, index: Index, seed: int, shuffle_shards: int, stream: str = "data/order") -> None:
        self.length = sum(index.class_counts)
        self._shard_sizes = np.array([shard.samples for shard in index.shards])
        self._labels = index.labels if index.is_balanced else None
        self._seed, self._shuffle_shards, self._stream = seed, shuffle_shards, stream
        self._orders: dict[int, np.ndarray] = {}

    def numbers(self, first: int, count: int) -> np.ndarray:
        """The samples at positions first .. first + count - 1, int64 [count]."""
        pieces = []
        while count:
            epoch, offset = divmod(first, self.length)
            piece = self.order(epoch)[offset : offset + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return np.concatenate(pieces).astype(np.int64)

    def after(self, position: int) -> Iterator[int]:
        """The samples after a position in its epoch, and then those from the epoch's start up to it."""
        epoch, offset = divmod(position, self.length)
        yield from map(int, np.roll(self.order(epoch), -offset)[1:])

    def order(self, epoch: int) -> np.ndarray:
        """The sample numbers of an epoch, unsigned integers [length]."""
        if epoch not in self._orders:
            if len(self._orders) == _KEPT_EPOCHS:
                del self._orders[min(self._orders)]
            self._orders[epoch] = self._compute(epoch)
        return self._orders[epoch]

    def _compute(self, epoch: int) -> np.ndarray:
        dtype = np.min_scalar_type(self.length)  # small, because every worker of every rank holds a copy
        if self._labels is None:
            return order(self._shard_sizes, self._seed, epoch, self._shuffle_shards, self._stream).astype(dtype)
        counts = balanced_counts(self._labels, self._seed, epoch)
        samples = np.repeat(np.arange(len(counts)), counts)
        before = np.concatenate([[0], np.cumsum(counts)])  # np.add.reduceat would be wrong for an empty shard
        sizes = np.diff(before[np.concatenate([[0], np.cumsum(self._shard_sizes)])])
        return samples[order(sizes, self._seed, epoch, self._shuffle_shards, self._stream)].astype(dtype)
