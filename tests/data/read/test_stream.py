"""Promises 1, 2 and 4, as far as the data goes: what a run sees is a function of seed and position alone."""

import gc
import itertools
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bigtrain.data.fields.pictures import to_images
from bigtrain.data.index import Index, plain_fields
from bigtrain.data.options import DataOptions
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.order import FLIP_BLOCK, flips, order
from bigtrain.data.read.stream import SplitLoader, Stream, rank_share
from bigtrain.data.splits import find_index
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.errors import UserError
from tests.data.conftest import make_numbered_shards, numbered_png, write_tar

Make = Callable[..., Index]


def options(**given: object) -> DataOptions:
    return DataOptions.model_validate({"train": "train.json", "image_size": 4, "workers": 0, **given})


def numbers_of(images: Tensor) -> list[int]:
    """The sample numbers that the pixels carry."""
    return (images[:, 0, 0, 0].int() + 256 * images[:, 0, 0, 1].int()).tolist()


def read(index: Index, steps: int, *, world: int, microbatch: int, position: int = 0, **given: object) -> list[Batch]:
    """The global microbatches of `steps` steps, the ranks' slices joined in the order of ranks."""
    streams = [
        Stream(index, options(**given), 7, rank=rank, world=world, microbatch=microbatch, position=position)
        for rank in range(world)
    ]
    joined = []
    for _ in range(steps):
        parts = [next(stream) for stream in streams]
        values = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        mirrored = torch.cat([part.flips for part in parts])
        joined.append(Batch(values, mirrored, [name for part in parts for name in part.replaced]))
    for stream in streams:
        stream.close()
    return joined


def same(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        a.keys() == b.keys()
        and all(torch.equal(a[name], b[name]) for name in a)
        and torch.equal(a.flips, b.flips)
        and a.replaced == b.replaced
        for a, b in zip(first, second, strict=True)
    )


WORLDS = st.sampled_from([1, 2, 3, 4, 6, 12])


@settings(max_examples=25, deadline=None)
@given(
    shard_sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    window=st.integers(1, 4),
    world=WORLDS,
    later_world=WORLDS,
    stop=st.integers(0, 4),
)
def test_each_sample_comes_once_an_epoch_over_any_ranks_and_restarts(
    shard_sizes: list[int], window: int, world: int, later_world: int, stop: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        index, samples = make_numbered_shards(shard_sizes, Path(name)), sum(shard_sizes)
        steps = stop + 2 * samples // 12 + 1
        before = read(index, stop, world=world, microbatch=12, shuffle_shards=window, flip=True)
        after = read(
            index, steps - stop, world=later_world, microbatch=12, position=12 * stop, shuffle_shards=window, flip=True
        )
        seen = [number for batch in before + after for number in numbers_of(batch["image"])]
        assert sorted(seen[:samples]) == list(range(samples))
        assert sorted(seen[samples : 2 * samples]) == list(range(samples))
        assert same(before + after, read(index, steps, world=1, microbatch=12, shuffle_shards=window, flip=True))


def test_images_and_labels_stay_together(numbered_shards: Make) -> None:
    for batch in read(numbered_shards([7, 5]), 3, world=1, microbatch=8):
        assert batch["label"].tolist() == [number % 5 for number in numbers_of(batch["image"])]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(numbered_shards: Make, workers: int) -> None:
    index = numbered_shards([9, 4, 6])
    given = {"world": 2, "microbatch": 6, "position": 18, "flip": True, "shuffle_shards": 2}
    assert same(read(index, 8, **given, workers=workers), read(index, 8, **given, workers=0))


def test_order_shuffles_within_windows_of_shards_and_nowhere_else() -> None:
    numbers = order([20] * 10, seed=1, epoch=0, shuffle_shards=3)
    windows = [set(numbers[begin : begin + 60] // 20) for begin in range(0, 200, 60)]
    assert [len(window) for window in windows] == [3, 3, 3, 1]
    assert windows != [{0, 1, 2}, {3, 4, 5}, {6, 7, 8}, {9}]
    neighbours = np.diff(numbers) == 1
    assert neighbours.mean() < 0.1


def test_order_is_new_in_every_epoch_and_for_every_seed() -> None:
    orders = {tuple(order([50, 50], seed, epoch, 2)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


def test_order_is_the_same_for_ever() -> None:
    """A change of the order breaks every run that is then resumed: this must not change by accident."""
    assert order([3, 2, 4], seed=0, epoch=0, shuffle_shards=2).tolist() == [0, 3, 4, 2, 1, 8, 5, 6, 7]
    assert np.flatnonzero(flips(0, 0, 16)).tolist() == [0, 1, 2, 3, 7, 8, 10, 11, 12]


def test_a_flip_belongs_to_its_position() -> None:
    count = 3 * FLIP_BLOCK
    whole = flips(5, 0, count)
    cuts = [0, 1, 700, FLIP_BLOCK - 1, FLIP_BLOCK, 2 * FLIP_BLOCK + 1, count]
    pieces = [flips(5, a, b - a) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.concatenate(pieces), whole)
    assert abs(whole.mean() - 0.5) < 4 * 0.5 / count**0.5
    assert not np.array_equal(whole, flips(6, 0, count))


def test_flips_are_off_unless_asked_for(numbered_shards: Make) -> None:
    index = numbered_shards([40])
    assert not read(index, 1, world=1, microbatch=40)[0].flips.any()
    assert read(index, 1, world=1, microbatch=40, flip=True)[0].flips.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_to_images_flips_and_normalises(dtype: torch.dtype) -> None:
    pixels = torch.arange(2 * 3 * 3 * 3, dtype=torch.uint8).reshape(2, 3, 3, 3)
    pixels[0, 0, 0] = torch.tensor([0, 255, 128], dtype=torch.uint8)
    images = to_images(pixels, torch.tensor([False, True]), "cpu", dtype)
    wanted = pixels.permute(0, 3, 1, 2).to(torch.float64) / 127.5 - 1
    wanted[1] = wanted[1].flip(2)
    assert images.dtype == dtype
    torch.testing.assert_close(images.double(), wanted, rtol=0, atol=1e-7 if dtype == torch.float32 else 0)
    assert images[0, :2, 0, 0].tolist() == [-1, 1]
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_to_images_takes_the_default_dtype() -> None:
    pixels = torch.zeros(1, 2, 2, 3, dtype=torch.uint8)
    torch.set_default_dtype(torch.float64)
    try:
        assert to_images(pixels, torch.tensor([False]), "cpu").dtype == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_stream_leaves_the_global_generator_alone(numbered_shards: Make) -> None:
    index = numbered_shards([4])
    before = torch.get_rng_state()
    read(index, 2, world=1, microbatch=2)
    assert torch.equal(torch.get_rng_state(), before)


# Damage


def damage(index: Index, number: int, change: Callable[[bytes], bytes]) -> None:
    """Changes the image of a sample in the file itself, its length kept."""
    (shard,) = index.shards
    offsets, sizes = shard.members["png"]
    path = index.folder / shard.name
    data = bytearray(path.read_bytes())
    begin, size = int(offsets[number]), int(sizes[number])
    data[begin : begin + size] = change(bytes(data[begin : begin + size]))[:size].ljust(size, b"\0")
    path.write_bytes(data)


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_undecodable_image_is_an_error_that_names_it(numbered_shards: Make, workers: int) -> None:
    index = numbered_shards([6])
    damage(index, 3, truncated)
    with pytest.raises(UserError, match=r"train-000000\.tar/00003: .*data\.undecodable=replace") as error:
        read(index, 6, world=1, microbatch=2, workers=workers)
    assert "Traceback" not in str(error.value)


@pytest.mark.parametrize("bad", [{3}, {2, 3}, {0, 1, 2, 3, 5}])
def test_an_undecodable_image_is_replaced_by_the_next_counted_and_named(numbered_shards: Make, bad: set[int]) -> None:
    index = numbered_shards([6])
    for number in bad:
        damage(index, number, truncated)
    numbers = order([6], 7, 0, 16).tolist()
    wanted = [next(n for n in numbers[start:] + numbers[:start] if n not in bad) for start in range(6)]
    one = read(index, 2, world=1, microbatch=3, undecodable="replace")
    assert [number for batch in one for number in numbers_of(batch["image"])] == wanted
    assert [label for batch in one for label in batch["label"].tolist()] == [number % 5 for number in wanted]
    named = [name.split(":")[0] for batch in one for name in batch.replaced]
    assert named == [f"train-000000.tar/{number:05d}" for number in numbers if number in bad]
    assert same(one, read(index, 2, world=3, microbatch=3, undecodable="replace", workers=1))


def test_replacing_ends_when_nothing_can_be_decoded(numbered_shards: Make) -> None:
    index = numbered_shards([2])
    for number in (0, 1):
        damage(index, number, truncated)
    with pytest.raises(UserError, match=r"train-000000\.tar/0000"):
        read(index, 1, world=1, microbatch=1, undecodable="replace")


def test_an_image_of_another_size_is_an_error_that_says_both(numbered_shards: Make) -> None:
    index = numbered_shards([3])
    wrong = replace(index, fields=plain_fields(index.classes, (8, 8)))
    with pytest.raises(UserError, match="it is 4 x 4, not 8 x 8"):
        read(wrong, 1, world=1, microbatch=1)


@pytest.mark.parametrize("undecodable", ["error", "replace"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_vanishes_or_shrinks_is_an_error_always(
    numbered_shards: Make, tmp_path: Path, undecodable: str, workers: int
) -> None:
    for change, words in ((Path.unlink, "cannot be read"), (shrink, "truncated")):
        index = numbered_shards([5, 5], tmp_path / words)
        change(index.folder / index.shards[1].name)
        with pytest.raises(UserError, match=rf"train-000001\.tar: .*{words}"):
            read(index, 5, world=1, microbatch=2, undecodable=undecodable, workers=workers)


def shrink(path: Path) -> None:
    os.truncate(path, 1024)


def test_find_index_says_what_is_wrong_and_what_to_do(numbered_shards: Make, tmp_path: Path) -> None:
    index = numbered_shards([3, 3])
    where = str(index.path)
    assert find_index(where, "train", 4).samples == 6
    with pytest.raises(UserError, match=r"data\.train: .*data\.image_size=4.*--size 8"):
        find_index(where, "train", 8)
    with pytest.raises(UserError, match=r"data\.validation: .*ftp:// cannot be read"):
        find_index("ftp://host/train.json", "validation", 4)
    with pytest.raises(UserError, match=r"data\.train: .*nowhere.json.*beside it are .*train\.json"):
        find_index(str(tmp_path / "nowhere.json"), "train", 4)
    with pytest.raises(UserError, match=r"data\.train: .*nowhere.json.*launch/shard\.py SOURCE OUT"):
        find_index(str(tmp_path / "empty" / "nowhere.json"), "train", 4)
    with pytest.raises(UserError, match=r"data\.train: .*is a folder.*train\.json"):
        find_index(str(tmp_path), "train", 4)
    shrink(tmp_path / "train-000001.tar")
    with pytest.raises(UserError, match=r"data\.train: .*train-000001\.tar.* 1024 bytes"):
        find_index(where, "train", 4)
    (tmp_path / "train-000001.tar").unlink()
    with pytest.raises(UserError, match=r"data\.train: .*train-000001\.tar.*No such file"):
        find_index(where, "train", 4)


def test_find_index_refuses_images_of_different_sizes(tmp_path: Path) -> None:
    samples = [{"__key__": f"{size}", "png": numbered_png(0, size), "cls": b"0"} for size in (4, 8)]
    write_tar(tmp_path / "train-0.tar", samples)
    (path,) = index_shards(tmp_path, workers=0, quiet=True)
    with pytest.raises(UserError, match="images of different sizes"):
        find_index(str(path), "train", 4)


class Trap:
    """Unpickling this writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_a_shard_is_never_executed(tmp_path: Path) -> None:
    poison = pickle.dumps(Trap(tmp_path / "executed"))
    extras = dict.fromkeys(["pickle", "pkl", "pyd", "pth", "npy"], poison)
    write_tar(tmp_path / "train-0.tar", [{"__key__": "0", "png": numbered_png(0), "cls": b"0", **extras}])
    index = find_index(str(index_shards(tmp_path, workers=0, quiet=True)[0]), "train", 4)
    read(index, 2, world=1, microbatch=1)
    list(SplitLoader(index, rank=0, world=1, batch=1, workers=0))
    assert not (tmp_path / "executed").exists()
    pickle.loads(poison)
    assert (tmp_path / "executed").exists()  # the trap does work


# Processes


def test_close_ends_the_workers_at_once(numbered_shards: Make) -> None:
    stream = Stream(numbered_shards([8]), options(workers=2), 0, rank=0, world=1, microbatch=4)
    next(stream)
    workers = list(stream._batches._iterator._workers)
    assert all(worker.is_alive() for worker in workers)
    begin = time.monotonic()
    stream.close()
    assert time.monotonic() - begin < 2
    assert not any(worker.is_alive() for worker in workers)
    with pytest.raises(StopIteration):
        next(stream)
    stream.close()


SIGNALLED = """
import os, signal, sys, time
import torch
from bigtrain.data.index import Index
from bigtrain.data.read.stream import DataOptions, Stream
got = []
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: got.append(number))
index = Index.read(sys.argv[1])
plain = torch.set_num_threads
torch.set_num_threads = lambda number: (time.sleep(0.5), plain(number))  # which a worker calls as it starts
stream = Stream(index, DataOptions(train="x", image_size=4, workers=2), 0, rank=0, world=1, microbatch=2)
if sys.argv[2] == "as they start":
    time.sleep(0.25)
else:
    next(stream)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    os.killpg(0, number)
for _ in range(50):
    next(stream)
stream.close()
assert len(got) == 3, got
print("done")
"""


@pytest.mark.parametrize("when", ["as they start", "as they read"])
def test_workers_outlive_the_signals_that_the_main_process_handles(when: str, numbered_shards: Make) -> None:
    """As they start a handler of torch's would end them."""
    index = numbered_shards([8])
    command = [sys.executable, "-c", SIGNALLED, str(index.path), when]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, start_new_session=True, env=environment, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


# SplitLoader


@pytest.mark.parametrize("limit", [None, 37])
@pytest.mark.parametrize(("world", "batch", "workers"), [(1, 4, 0), (3, 4, 0), (4, 100, 0), (2, 3, 2), (12, 2, 0)])
def test_a_sweep_sees_each_sample_once_over_all_ranks(
    numbered_shards: Make, world: int, batch: int, workers: int, limit: int | None
) -> None:
    index = numbered_shards([40, 13])
    seen = []
    for rank in range(world):
        sweep = SplitLoader(index, rank=rank, world=world, batch=batch, workers=workers, limit=limit)
        batches = list(sweep)
        assert len(batches) == len(sweep)
        for numbers, part in batches:
            assert 0 < len(numbers) <= batch
            assert numbers.dtype == np.int64
            assert numbers.tolist() == numbers_of(part["image"])
            assert part["label"].tolist() == [number % 5 for number in numbers]
            assert not part.flips.any()
            seen += numbers.tolist()
    assert len(seen) == len(set(seen)) == (limit or 53)
    assert set(seen) <= set(range(53))


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_ranks_share_samples_evenly(world: int) -> None:
    shares = [rank_share(np.arange(1000), rank, world) for rank in range(world)]
    assert np.array_equal(np.sort(np.concatenate(shares)), np.arange(1000))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_a_limited_sweep_is_a_fair_subset_that_grows(numbered_shards: Make) -> None:
    index = numbered_shards([100, 100, 100])

    def subset(limit: int, world: int) -> set[int]:
        return {
            number
            for rank in range(world)
            for numbers, _ in SplitLoader(index, rank=rank, world=world, batch=64, workers=0, limit=limit)
            for number in numbers.tolist()
        }

    sixty = subset(60, 1)
    assert len(sixty) == 60
    assert subset(60, 7) == sixty
    assert sixty < subset(90, 1)
    assert all(5 < sum(number // 100 == shard for number in sixty) < 35 for shard in range(3))
    assert subset(1000, 1) == set(range(300))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sweeps_that_are_over_hold_no_shard_open(numbered_shards: Make) -> None:
    index = numbered_shards([4, 4, 4])
    gc.collect()  # others' garbage
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert (
            sum(len(numbers) for numbers, _ in SplitLoader(index, rank=0, world=1, batch=4, workers=0)) == index.samples
        )
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_sweep_refuses_to_leave_an_image_out(numbered_shards: Make) -> None:
    index = numbered_shards([4])
    damage(index, 2, truncated)
    with pytest.raises(UserError, match=r"train-000000\.tar/00002"):
        list(SplitLoader(index, rank=0, world=1, batch=4, workers=1))


def test_mirrored_images_are_mirrored_and_the_others_are_not() -> None:
    pixels = torch.randint(0, 256, (5, 4, 6, 3), dtype=torch.uint8)
    flips = torch.tensor([True, False, True, True, False])
    expected = torch.where(flips[:, None, None, None], pixels.flip(2), pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
    assert torch.equal(to_images(pixels, flips, "cpu"), expected)
