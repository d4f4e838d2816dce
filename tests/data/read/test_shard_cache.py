"""The cache of far-away shards: bounded, shared, checked, and never missed when it is deleted."""

import fcntl
import multiprocessing
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from bigtrain.data.digits import write_digits
from bigtrain.data.index import Index
from bigtrain.data.options import DataOptions
from bigtrain.data.read import reader
from bigtrain.data.read.order import order
from bigtrain.data.read.prefetch import Prefetch, first_uses
from bigtrain.data.read.shard_cache import GIB, ShardCache
from bigtrain.data.read.stream import Stream, read_chunks
from bigtrain.data.remote import RemoteOptions
from bigtrain.data.splits import find_index
from bigtrain.data.write.shards import ShardOptions
from bigtrain.errors import UserError
from tests.data.conftest import make_numbered_shards
from tests.data.faulty_server import FaultyServer, serving
from tests.data.read.test_stream import numbers_of
from tests.runs_of import FAMILIES, final_tensors, largest_difference, train, write_recipe

SHARDS = 6


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(reader, "RESIDENT_BYTES", 0)  # else a small set is read from shards once only
    return make_numbered_shards([3] * SHARDS, tmp_path / "served")


@pytest.fixture
def server(here: Index) -> Iterator[FaultyServer]:
    with serving(here.folder) as server:
        yield server


Open = Callable[..., Index]


@pytest.fixture
def there(server: FaultyServer, tmp_path: Path) -> Open:
    """The index from the server; `shards`: how many the cache may hold."""

    def make(*, shards: float | None = None, **given: object) -> Index:
        size = make_size(server.folder)
        limit = {} if shards is None else {"cache_gib": (shards + 0.5) * size / GIB}
        wanted = {"cache": str(tmp_path / "kept"), "timeout_s": 5, "prefetch_shards": 0, **limit, **given}
        return find_index(f"{server.url}/train.json", "train", 4, remote=RemoteOptions.model_validate(wanted))

    return make


def make_size(folder: Path) -> int:
    (size,) = {path.stat().st_size for path in folder.glob("*.tar")}
    return size


def whole(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if len(path.name) == 64}


def stream(index: Index, **given: object) -> Stream:
    wanted = {"train": index.where, "image_size": 4, "workers": 0, "shuffle_shards": 1, **given}
    return Stream(index, DataOptions.model_validate(wanted), 3, rank=0, world=1, microbatch=3)


def numbers(index: Index, steps: int, **given: object) -> list[int]:
    batches = stream(index, **given)
    try:
        return [number for _ in range(steps) for number in numbers_of(next(batches)["image"])]
    finally:
        batches.close()


def tars(server: FaultyServer) -> list[int]:
    """How often each shard was asked for."""
    return [server.requests[f"train-{number:06d}.tar"] for number in range(SHARDS)]


def test_a_shard_is_fetched_once_and_named_by_its_content(there: Open, server: FaultyServer, tmp_path: Path) -> None:
    index = there()
    assert numbers(index, 12) == numbers(index, 12)
    assert tars(server) == [1] * SHARDS
    assert whole(tmp_path / "kept") == {shard.sha256 for shard in index.shards}


def test_a_cache_smaller_than_an_epoch_works_and_keeps_its_bound(
    there: Open, here: Index, server: FaultyServer, tmp_path: Path
) -> None:
    index = there(shards=3, prefetch_shards=1)
    batches, got = stream(index), []
    for _ in range(3 * SHARDS):
        got += numbers_of(next(batches)["image"])
        assert len(whole(tmp_path / "kept")) <= 3
    assert got == numbers(here, 3 * SHARDS)
    assert max(tars(server)) > 1


def test_the_least_recently_used_goes_first(there: Open, tmp_path: Path) -> None:
    index = there(shards=3)
    cache = ShardCache(index)
    for number in (0, 1, 2, 0, 3):
        os.close(cache.open(number))
        time.sleep(0.01)
    assert whole(tmp_path / "kept") == {index.shards[number].sha256 for number in (0, 2, 3)}
    cache.fetch(2)  # wanted soon, though not read yet
    time.sleep(0.01)
    os.close(cache.open(4))
    assert whole(tmp_path / "kept") == {index.shards[number].sha256 for number in (2, 3, 4)}


def test_an_evicted_shard_is_read_on_by_who_has_it_open_and_then_let_go(there: Open, tmp_path: Path) -> None:
    index = there(shards=1)
    first, second = ShardCache(index), ShardCache(index)
    descriptor = first.open(0)
    os.close(second.open(1))
    assert whole(tmp_path / "kept") == {index.shards[1].sha256}
    assert len(os.pread(descriptor, index.shards[0].size, 0)) == index.shards[0].size
    os.close(descriptor)
    batches = stream(there(shards=3, prefetch_shards=1))
    for _ in range(2 * SHARDS):
        next(batches)
        assert len(held_but_deleted(tmp_path / "kept")) <= 2  # what was evicted since the last opening


def held_but_deleted(folder: Path) -> list[str]:
    """This process's open files that were deleted from the folder: their space is not free."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{descriptor}")
        except OSError:
            continue
        if name.startswith(str(folder)) and name.endswith("(deleted)"):
            found.append(name)
    return found


def test_a_window_that_the_cache_cannot_hold_is_refused_before_anything_is_fetched(
    there: Open, server: FaultyServer
) -> None:
    with pytest.raises(UserError, match=r"data.remote.cache_gib: .* do not hold the 5 shards .*data.shuffle_shards"):
        stream(there(shards=4, prefetch_shards=1), shuffle_shards=2)
    stream(there(shards=5, prefetch_shards=1), shuffle_shards=2)
    assert sum(tars(server)) == 0


def test_a_shard_larger_than_the_cache_is_refused(there: Open, server: FaultyServer) -> None:
    with pytest.raises(UserError, match=r"data.remote.cache_gib: .* do not hold http://.*/train-000002.tar .*raise it"):
        ShardCache(there(shards=0)).open(2)
    assert sum(tars(server)) == 0


def test_a_download_that_failed_leaves_nothing_that_is_counted(there: Open, tmp_path: Path) -> None:
    index = there(retries=0)
    (tmp_path / "served/train-000000.tar").unlink()
    with pytest.raises(UserError, match="HTTP 404"):
        ShardCache(index).open(0)
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {"lock"}


@pytest.mark.parametrize("damage", ["truncated", "longer", "empty"])
def test_a_file_of_another_size_in_the_cache_is_fetched_anew(
    there: Open, server: FaultyServer, tmp_path: Path, damage: str
) -> None:
    index = there()
    wanted = numbers(index, 6)
    for path in (tmp_path / "kept").iterdir():
        if path.name in whole(tmp_path / "kept"):
            size = path.stat().st_size
            os.truncate(path, {"truncated": size - 1, "longer": size + 1, "empty": 0}[damage])
    assert numbers(there(), 6) == wanted
    assert tars(server) == [2] * SHARDS


def test_a_cache_deleted_under_a_stream_is_filled_again(there: Open, here: Index, tmp_path: Path) -> None:
    batches, got = stream(there(prefetch_shards=2)), []
    for _ in range(4 * SHARDS):
        shutil.rmtree(tmp_path / "kept", ignore_errors=True)
        got += numbers_of(next(batches)["image"])
    assert got == numbers(here, 4 * SHARDS)


def test_who_waits_for_a_part_that_is_deleted_or_finished_by_another_gets_the_whole_shard(
    there: Open, server: FaultyServer, tmp_path: Path
) -> None:
    index = there()
    cache = ShardCache(index)
    part = tmp_path / "kept" / f"{index.shards[0].sha256}.{index.shards[0].size}.part"
    part.parent.mkdir()
    for deleted in (True, False):
        with part.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            assert not cache.fetch(0, wait=False)
            opened: list[int] = []
            waiting = threading.Thread(target=lambda: opened.append(cache.open(0)))  # noqa: B023
            waiting.start()
            time.sleep(0.05)
            assert not opened
            if deleted:
                part.unlink()
            else:
                held.write((server.folder / "train-000000.tar").read_bytes())
                held.flush()
                part.rename(part.parent / index.shards[0].sha256)
        waiting.join(10)
        assert os.fstat(opened[0]).st_size == index.shards[0].size
        os.close(opened[0])
        (part.parent / index.shards[0].sha256).unlink()
    assert tars(server)[0] == 1


def test_a_process_forked_during_a_fetch_that_fails_does_not_keep_the_lock(
    there: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []

    def fork_and_fail(url: str, file: IO[bytes], *given: object, **named: object) -> None:
        file.write(b"half")
        kept.append(os.dup(file.fileno()))  # shares the lock, as a forked process's descriptor does
        raise UserError("the server is gone")

    cache = ShardCache(there())
    with monkeypatch.context() as patch:
        patch.setattr("bigtrain.data.read.shard_cache.receive", fork_and_fail)
        with pytest.raises(UserError, match="gone"):
            cache.fetch(0)
    assert cache.fetch(0, wait=False)
    os.close(kept[0])


def test_what_a_killed_run_left_half_is_completed_or_deleted(there: Open, server: FaultyServer, tmp_path: Path) -> None:
    index = there(shards=2)
    (tmp_path / "kept").mkdir()
    half = (server.folder / "train-000000.tar").read_bytes()[: index.shards[0].size // 2]
    parts = [tmp_path / "kept" / f"{index.shards[n].sha256}.{index.shards[n].size}.part" for n in (0, 1)]
    for part in parts:
        part.write_bytes(half)
    os.utime(parts[1], (0, 0))
    cache = ShardCache(index)
    os.close(cache.open(0))
    assert server.bodies["train-000000.tar"] == index.shards[0].size - len(half)
    os.close(cache.open(2))
    assert not any(part.exists() for part in parts)
    assert whole(tmp_path / "kept") == {index.shards[number].sha256 for number in (0, 2)}


def _read_epochs(url: str, options: RemoteOptions, answers: "multiprocessing.Queue[list[int]]") -> None:
    answers.put(numbers(find_index(url, "train", 4, remote=options), 2 * SHARDS))


@pytest.mark.parametrize("shards", [SHARDS, 3])
def test_processes_share_a_cache_and_fetch_nothing_twice_that_fits(
    there: Open, here: Index, server: FaultyServer, shards: int
) -> None:
    index = there(shards=shards, prefetch_shards=1)
    context = multiprocessing.get_context("fork")
    answers: multiprocessing.Queue[list[int]] = context.Queue()
    arguments = (f"{server.url}/train.json", index.origin.options, answers)
    processes = [context.Process(target=_read_epochs, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    wanted = numbers(here, 2 * SHARDS)
    assert [answers.get(timeout=60) for _ in processes] == [wanted] * 3
    for process in processes:
        process.join(10)
    if shards == SHARDS:
        assert tars(server) == [1] * SHARDS


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_read_the_same_and_fetch_each_shard_once(there: Open, here: Index, server: FaultyServer) -> None:
    assert numbers(there(prefetch_shards=2), 2 * SHARDS, workers=3) == numbers(here, 2 * SHARDS)
    assert tars(server) == [1] * SHARDS


def test_a_folder_that_cannot_be_written_is_named(there: Open, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file/kept: the cache of shards cannot be written: .*data.remote.cache=PATH"):
        numbers(there(cache=str(tmp_path / "file/kept")), 1)


def test_a_variable_that_is_not_set_does_not_become_a_folder(
    there: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"data\.remote\.cache: \$NO_SUCH/kept: this variable is not set here"):
        numbers(there(cache="$NO_SUCH/kept"), 1)
    assert not (tmp_path / "$NO_SUCH").exists()


def test_variables_in_the_folders_name_are_replaced(
    there: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path / "disk"))
    assert ShardCache(there(cache="$NODE_DISK/shards")).folder == tmp_path / "disk/shards"


def test_the_next_shards_are_fetched_in_the_order_of_their_first_use(there: Open, server: FaultyServer) -> None:
    index = there(prefetch_shards=3)
    prefetch = Prefetch(index, lambda epoch: order([3] * SHARDS, 3, epoch, 1), epochs=True)
    fetched: list[int] = []
    prefetch._cache.fetch = lambda number, *, wait: fetched.append(number) or True  # type: ignore[method-assign]
    uses = [int(number) // 3 for epoch in (0, 1) for number in order([3] * SHARDS, 3, epoch, 1)[::3]]
    for shard in range(SHARDS):
        prefetch.reach(0, 3 * shard)
        wait_until(lambda: fetched[-3:] == uses[shard : shard + 3])  # noqa: B023
    prefetch.reach(0, 3 * SHARDS - 1)
    wait_until(lambda: fetched[-3:] == uses[SHARDS : SHARDS + 3])


def test_a_run_that_starts_within_an_epoch_prefetches_what_the_rest_of_it_needs(there: Open) -> None:
    index = there(prefetch_shards=2)
    numbers_of_epoch = np.array([0, 3, 6, 1, 4, 7, 2, 5, 8, *range(9, 18)])
    prefetch = Prefetch(index, lambda _: numbers_of_epoch, epochs=False)
    fetched: list[int] = []
    prefetch._cache.fetch = lambda number, *, wait: fetched.append(number) or True  # type: ignore[method-assign]
    prefetch.reach(0, 4)
    wait_until(lambda: fetched == [1, 2])


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_rank_that_reads_some_shards_fetches_no_others(there: Open, server: FaultyServer, workers: int) -> None:
    index = there(prefetch_shards=4)
    chunks = [np.arange(3 * shard, 3 * shard + 3) for shard in (1, 4)]
    seen = [numbers.tolist() for numbers, _ in read_chunks(index, chunks, workers=workers)]
    wait_until(lambda: not prefetching())
    assert (seen, tars(server)) == ([[3, 4, 5], [12, 13, 14]], [0, 1, 0, 0, 1, *[0] * (SHARDS - 5)])


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_no_thread_stays_when_all_that_is_wanted_is_here(there: Open) -> None:
    numbers(there(prefetch_shards=3), 2 * SHARDS)
    wait_until(lambda: not prefetching())


def prefetching() -> bool:
    return any(thread.name == "prefetch of shards" for thread in threading.enumerate())


def test_first_uses_are_the_first_and_in_order() -> None:
    positions, shards = first_uses(np.array([4, 4, 2, 4, 0, 2, 9]))
    assert (positions.tolist(), shards.tolist()) == ([0, 2, 4, 6], [4, 2, 0, 9])


def test_prefetching_hides_the_fetching(there: Open, server: FaultyServer) -> None:
    """Once the first shard is here, no later one is fetched by the reader itself."""
    index = there(prefetch_shards=2)
    batches = stream(index)
    next(batches)
    by_reader: list[int] = []
    cache = batches._batches._iterator._dataset_fetcher.dataset._batches._parts[0].reader._shards._cache
    honest = cache.fetch
    cache.fetch = lambda number, **given: by_reader.append(number) or honest(number, **given)
    for _ in range(2 * SHARDS):
        wait_until(lambda: not prefetching())
        next(batches)
    assert not by_reader
    assert Counter(tars(server)) == {1: SHARDS}


@pytest.mark.slow
def test_a_run_of_two_ranks_whose_cache_is_deleted_under_it_continues_and_learns_the_same(tmp_path: Path) -> None:
    shard_options = ShardOptions(size=(16, 16), format="png", samples_per_shard=64)
    write_digits(tmp_path / "served", shard_options, workers=0, quiet=True)
    kept, over, deleted = tmp_path / "kept", threading.Event(), 0
    finals = []
    for where in ("here", "there"):
        recipe = write_recipe(tmp_path / where, FAMILIES["toy"], steps=40, batch_size=32)
        with serving(tmp_path / "served") as server:
            base = server.url if where == "there" else str(tmp_path / "served")
            words = [f"data.{split}={base}/{split}.json" for split in ("train", "validation")]
            deleting = threading.Thread(target=delete_again_and_again, args=(kept, over), daemon=True)
            deleting.start()
            train(recipe, *words, f"data.remote.cache={kept}", "data.workers=1", "data.shuffle_shards=2", processes=2)
            deleted = max(tars_of(server).values(), default=0)
            over.set()
            deleting.join()
            over.clear()
        finals.append(final_tensors(tmp_path / where / "run"))
    assert largest_difference(*finals) == 0
    assert deleted > 1


def tars_of(server: FaultyServer) -> dict[str, int]:
    return {path: times for path, times in server.requests.items() if path.endswith(".tar")}


def delete_again_and_again(folder: Path, over: threading.Event) -> None:
    while not over.wait(0.05):
        shutil.rmtree(folder, ignore_errors=True)


def test_cached_shards_are_those_of_a_group_where_the_umask_says_so(there: Open, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        os.close(ShardCache(there(shards=3)).open(0))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "kept").rglob("*") if path.is_file()} == {0o664}
