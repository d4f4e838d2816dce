"""Promise 4 at the level of numbers: whatever shards, ranks, workers and restarts, each sample comes once an epoch."""

from pathlib import Path
from unittest import mock

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.index import Index, plain_fields
from bigtrain.data.options import DataOptions
from bigtrain.data.read import stream
from bigtrain.data.read.order import order
from bigtrain.data.read.prefetch import first_uses
from bigtrain.data.read.stream import Stream
from bigtrain.data.shard import Shard

SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=12)
WINDOWS = st.integers(1, 6)
SEEDS = st.integers(0, 2**32)
LIVES = st.lists(
    st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(1, 4), st.integers(0, 6)), min_size=1, max_size=4
)
"""Of a run that is stopped and started again: (ranks, workers of each, steps)."""
MICROBATCH = 12


def index_of(sizes: list[int]) -> Index:
    """An index without files."""
    shards = tuple(
        Shard(f"train-{n:06d}.tar", 0, "0" * 64, tuple(map(str, range(size))), np.zeros(size, dtype=np.int64), {})
        for n, size in enumerate(sizes)
    )
    return Index(Path("train.json"), "train", plain_fields(("thing",), (1, 1)), shards)


def numbers_of_a_rank(index: Index, options: DataOptions, seed: int, rank: int, world: int, position: int) -> object:
    """What the rank's workers are asked for: the data set that torch's loader deals steps of."""
    with mock.patch.object(stream, "Loader", lambda batches, *_: batches):
        steps = Stream(index, options, seed, rank=rank, world=world, microbatch=MICROBATCH, position=position)
    return steps._batches


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, window=WINDOWS, seed=SEEDS, lives=LIVES)
def test_each_sample_comes_once_an_epoch_over_shards_ranks_workers_and_restarts(
    sizes: list[int], window: int, seed: int, lives: list[tuple[int, int, int]]
) -> None:
    index = index_of(sizes)
    options = DataOptions(train="train.json", image_size=1, workers=0, shuffle_shards=window)
    seen: list[int] = []
    with mock.patch.object(stream, "_read", lambda reader, numbers, *_: ({"image": numbers}, [])):
        for world, workers, steps in lives:
            ranks = [
                # Each worker is a process with a copy of its own, and takes every so-many-th step.
                [numbers_of_a_rank(index, options, seed, rank, world, len(seen)) for _ in range(workers)]
                for rank in range(world)
            ]
            for step in range(steps):
                seen += [number for copies in ranks for number in copies[step % workers][step]["image"].tolist()]
    samples = sum(sizes)
    epochs = -(-len(seen) // samples)
    wanted = np.concatenate([order(sizes, seed, epoch, window) for epoch in range(epochs)] or [np.empty(0)])
    assert seen == wanted[: len(seen)].tolist()
    for begin in range(0, len(seen) - samples + 1, samples):
        assert sorted(seen[begin : begin + samples]) == list(range(samples))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, window=WINDOWS, seed=SEEDS, start=st.integers(0, 200), ahead=st.integers(1, 8))
def test_what_is_fetched_ahead_is_what_comes_next(
    sizes: list[int], window: int, seed: int, start: int, ahead: int
) -> None:
    numbers = order(sizes, seed, 0, window)[start % sum(sizes) :]
    shards = np.searchsorted(np.cumsum(sizes), numbers, side="right")
    positions, found = first_uses(shards)
    needed = list(dict.fromkeys(shards.tolist()))
    assert found[:ahead].tolist() == needed[:ahead]
    assert (shards[positions] == found).all()


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, window=WINDOWS, seed=SEEDS)
def test_no_more_shards_than_a_windows_are_open_at_a_time(sizes: list[int], window: int, seed: int) -> None:
    """What the cache's bound counts on: the shards in use are those of one window, and then never again in the epoch."""
    numbers = order(sizes, seed, 0, window)
    shards = np.searchsorted(np.cumsum(sizes), numbers, side="right")
    first = {shard: int(np.flatnonzero(shards == shard)[0]) for shard in range(len(sizes))}
    last = {shard: int(np.flatnonzero(shards == shard)[-1]) for shard in range(len(sizes))}
    in_use = [sum(first[shard] <= position <= last[shard] for shard in first) for position in range(len(shards))]
    assert max(in_use) <= window
