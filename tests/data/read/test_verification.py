"""Shards that do not hold what their index says are noticed though their sizes are right, before anything is made of them."""

import errno
import json
import os
import platform
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.index import Index
from bigtrain.data.read import file_hashes, verification
from bigtrain.data.read.file_hashes import FileHashes, identity_of
from bigtrain.data.read.order import Epochs
from bigtrain.data.read.stream import read_chunks
from bigtrain.data.read.verification import ShardVerification, StreamVerification, shards_of
from bigtrain.data.remote import RemoteOptions
from bigtrain.data.splits import find_index
from bigtrain.errors import UserError
from tests.data.conftest import make_numbered_shards
from tests.data.faulty_server import serving
from tests.runs_of import FAMILIES, train, write_recipe

SHARDS = 4
ALL = range(SHARDS)
Reads = list[Path]


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    return make_numbered_shards([3] * SHARDS, tmp_path / "shards")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """The files that are read to their end."""
    reads: Reads = []
    measure = FileHashes.measure

    def noted(self: FileHashes, path: str | Path, *given: object, **named: object) -> object:
        reads.append(Path(path))
        return measure(self, path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(FileHashes, "measure", noted)
    return reads


def shard(index: Index, number: int) -> Path:
    return index.folder / index.shards[number].name


def changed(path: Path) -> None:
    """One bit of the middle, in place."""
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def changed_with_its_times_set_back(path: Path) -> None:
    status = path.stat()
    changed(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy2(path, copy)
    changed(copy)
    copy.replace(path)


def swapped(path: Path) -> None:
    other = path.with_name(path.name.replace("000000", "000001"))
    aside = path.with_suffix(".aside")
    path.rename(aside)
    other.rename(path)
    aside.rename(other)


DAMAGE: list[Callable[[Path], object]] = [changed, changed_with_its_times_set_back, replaced, swapped]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_changed_shard_of_the_same_size_is_named_whether_it_was_known_or_not(
    index: Index, damage: Callable[[Path], object]
) -> None:
    known = ShardVerification(index)
    known.check(ALL)
    damage(shard(index, 0))
    index.check_files()  # the sizes tell nothing
    for one in (known, ShardVerification(index)):
        with pytest.raises(UserError, match=r"000000\.tar: the shard does not hold what .*train\.json says"):
            one.check(ALL)


def test_a_shard_is_read_once_on_a_node_and_again_when_it_was_touched(index: Index, measured: Reads) -> None:
    for _ in range(3):
        ShardVerification(index).check(ALL)
    assert len(measured) == SHARDS
    os.utime(shard(index, 2))
    ShardVerification(index).check(ALL)
    assert measured[SHARDS:] == [shard(index, 2)]


def test_a_shard_that_was_whole_again_before_it_was_known_is_no_whole_one(index: Index) -> None:
    """What was read of it meanwhile is not known."""
    path, kept = shard(index, 0), index.folder / "kept"
    shutil.copy(path, kept)
    changed(path)
    verified = ShardVerification(index)
    verified.begin(ALL)
    kept.replace(path)
    with pytest.raises(UserError, match="replaced while it was read"):
        verified.check(ALL)
    verified.check(ALL)


def test_a_deleted_shard_is_named(index: Index) -> None:
    shard(index, 1).unlink()
    with pytest.raises(UserError, match=r"000001\.tar: the shard cannot be read: No such file"):
        ShardVerification(index).check(ALL)


def test_a_stream_waits_for_what_it_has_read_and_no_more(index: Index, measured: Reads) -> None:
    epochs = Epochs(index, 0, 1)
    order = shards_of(index, epochs.numbers(0, epochs.length))
    stream = StreamVerification([(ShardVerification(index), epochs)], 0)
    for position, wanted in ((0, 0), (3, 1), (4, 2), (6, 2), (12, 4), (40, 4)):
        stream.check(position, everything=False)
        assert measured == [shard(index, number) for number in order[:wanted]]
    damaged = order[1]
    changed(shard(index, damaged))
    stream.check(40, everything=False)
    with pytest.raises(UserError, match=index.shards[damaged].name):
        stream.check(52, everything=False)


def test_a_process_measures_ahead_in_the_order_of_use_and_ends_when_it_is_closed(
    index: Index, measured: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verification, "AHEAD_BYTES", 0)
    verified = ShardVerification(index)
    verified.begin(ALL)
    process = verified._ahead
    assert process is not None
    assert process.wait(60) == 0
    verified.check(ALL)
    assert not measured, "all was measured by the other process"
    verified.close()
    changed(shard(index, 0))
    with pytest.raises(UserError, match="does not hold"):
        verified.check(ALL)


def test_a_killed_process_costs_nothing_but_time(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verification, "AHEAD_BYTES", 0)
    verified = ShardVerification(index)
    verified.begin(ALL)
    assert verified._ahead is not None
    verified._ahead.kill()
    verified.check(ALL)
    verified.close()


def test_a_record_that_others_damaged_or_cut_makes_nothing_known(index: Index, measured: Reads) -> None:
    ShardVerification(index).check(ALL)
    (record,) = (Path(os.environ["BIGTRAIN_CACHE"]) / "verified").glob("*.txt")
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(b"\xff\n1 2 3\nx x x x x x\n" + lines[0] + lines[1][:-5])
    ShardVerification(index).check(ALL)
    assert len(measured) == 2 * SHARDS - 1


@pytest.mark.parametrize("broken", ["a folder that is a file", "a record that is a folder", "no locks", "a full disk"])
def test_where_nothing_can_be_recorded_shards_are_verified_all_the_same(
    index: Index, measured: Reads, broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = Path(os.environ["BIGTRAIN_CACHE"])
    if broken == "a folder that is a file":
        cache.write_bytes(b"")
    elif broken == "a record that is a folder":
        (cache / "verified" / f"{platform.node()}.txt").mkdir(parents=True)
    else:
        name, number = ("flock", errno.ENOSYS) if broken == "no locks" else ("write", errno.ENOSPC)

        def refuse(*_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(f"bigtrain.data.read.file_hashes.{'fcntl' if name == 'flock' else 'os'}.{name}", refuse)
    verified = ShardVerification(index)
    for _ in range(2):
        verified.check(ALL)
    assert len(measured) == SHARDS, "once in this process"
    assert [record.getMessage().count("set BIGTRAIN_CACHE") for record in caplog.records] == [1]
    changed(shard(index, 0))
    with pytest.raises(UserError, match="does not hold"):
        verified.check(ALL)


def test_a_fifo_in_the_place_of_a_shard_is_refused(index: Index) -> None:
    shard(index, 1).unlink()
    os.mkfifo(shard(index, 1))
    with pytest.raises(UserError, match="is a FIFO, not a plain file"):
        ShardVerification(index).check(ALL)


def test_a_long_record_is_begun_anew(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_hashes, "LARGEST_RECORD", 150)
    hashes = FileHashes()
    for number in ALL:
        hashes.remember((number, 0, 0, 0, 0), "0" * 64)
    fresh = FileHashes()
    assert fresh.known((0, 0, 0, 0, 0)) is None
    assert fresh.known((3, 0, 0, 0, 0)) == "0" * 64
    assert hashes.known((9, 0, 0, 0, 0)) is None


def test_a_fetched_shard_is_known_when_it_comes_and_a_changed_one_in_the_cache_is_named(
    index: Index, tmp_path: Path, measured: Reads
) -> None:
    with serving(index.folder) as server:
        there = find_index(
            f"{server.url}/train.json", "train", None, remote=RemoteOptions(cache=str(tmp_path / "kept"))
        )
        for _ in range(2):  # the second time from the cache
            for _ in read_chunks(there, [np.arange(there.samples)], workers=0):
                pass
        assert not measured
        path = tmp_path / "kept" / there.shards[2].sha256
        changed(path)
        with pytest.raises(UserError, match=rf"{path}: the shard does not hold .*; remove .*, and it is fetched again"):
            for _ in read_chunks(there, [np.arange(there.samples)], workers=0):
                pass


def test_a_pass_over_a_split_ends_with_an_error_if_a_shard_was_changed(index: Index) -> None:
    changed(shard(index, 3))
    for chunks, is_read in (([np.arange(9)], False), ([np.arange(5), np.arange(9, 10)], True)):
        passes = read_chunks(index, chunks, workers=0)
        if not is_read:
            assert len(list(passes)) == 1
            continue
        with pytest.raises(UserError, match=r"000003\.tar: the shard does not hold"):
            list(passes)


def test_the_identity_of_a_file_is_that_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    before = identity_of(path.stat()), identity_of(path.stat(), is_cached=True)
    time.sleep(0.02)
    os.utime(path, ns=(0, path.stat().st_mtime_ns))
    after = identity_of(path.stat()), identity_of(path.stat(), is_cached=True)
    assert before[0] != after[0]
    assert before[1] == after[1], "the cache notes a use so"


# -- training -------------------------------------------------------------------------------------------------------


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Of a training on shards of the digits of its own."""
    from bigtrain.data.digits import digits_index

    shutil.copytree(digits_index("train", (16, 16)).parent, tmp_path / "digits", ignore=shutil.ignore_patterns(".*"))
    path = write_recipe(tmp_path, FAMILIES["toy"], steps=4, save_every=2)
    data = f"{tmp_path}/digits/train.json"
    path.write_text(path.read_text().replace("train: digits", f"train: {data}"))
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_no_checkpoint_is_made_of_a_shard_that_was_changed(recipe: Path, processes: int) -> None:
    first = sorted((recipe.parent / "digits").glob("train-*.tar"))
    for path in first:
        changed_last_byte(path)
    result = train(recipe, processes=processes, expect=2 if processes == 1 else None)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "the shard does not hold what" in said[0]
    assert not list((recipe.parent / "run" / "checkpoints").glob("step_*"))
    train(recipe, "data.verify=size")
    assert list((recipe.parent / "run" / "checkpoints").glob("step_*"))


def test_a_shard_that_was_changed_between_two_resumes_ends_the_run_at_its_last_checkpoint(recipe: Path) -> None:
    train(recipe)
    for path in (recipe.parent / "digits").glob("train-*.tar"):
        changed_last_byte(path)
    result = train(recipe, "train.steps=8", expect=2)
    assert "the shard does not hold what" in result.stderr
    assert "run the same command again" not in json.dumps(result.stderr.partition("error: ")[2])
    kept = sorted(path.name for path in (recipe.parent / "run" / "checkpoints").glob("step_*"))
    assert kept[-1] == "step_00000004"


def changed_last_byte(path: Path) -> None:
    """In the padding of the tar, so that every sample is still read as it was."""
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
