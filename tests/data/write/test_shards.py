"""The shard writer: the same input gives the same bytes, whatever stopped, ran beside or ran before."""

import errno
import fcntl
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from bigtrain.data.decode import decode
from bigtrain.data.index import Index
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write import records
from bigtrain.data.write import shards as module
from bigtrain.data.write.convert import convert
from bigtrain.data.write.encoders import pictures as pictures_encoder
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.data.write.tar_writer import TarWriter
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from bigtrain.runs import atomic

OPTIONS = ShardOptions(size=(16, 16), format="jpg", samples_per_shard=6)


def write(pictures: Path, out: Path, options: ShardOptions = OPTIONS, workers: int = 1) -> list[Path]:
    return write_shards(list_by_class(pictures), out, options, workers=workers, quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def states(folder: Path) -> dict[str, tuple[int, int]]:
    """Changes if a file is written anew, with the same bytes even."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.fixture
def whole(pictures: Path, tmp_path: Path) -> dict[str, bytes]:
    """The files of an undisturbed run."""
    write(pictures, tmp_path / "whole")
    return contents(tmp_path / "whole")


def test_every_picture_lands_in_a_shard_with_its_label(pictures: Path, tmp_path: Path) -> None:
    test, train = write(pictures, tmp_path / "out", ShardOptions(size=None, format="png", samples_per_shard=6))
    index = Index.read(train)
    assert (index.classes, index.samples, index.class_counts, index.image_size) == (("cat", "dog"), 26, (13, 13), None)
    assert [shard.samples for shard in index.shards] == [6, 6, 6, 6, 2]
    assert Index.read(test).samples == 8
    found = sorted((label, decode(data).tobytes()) for label, data in members(index))
    assert found == sorted(
        (number, decode(path.read_bytes()).tobytes())
        for number, name in enumerate(index.classes)
        for path in (pictures / "train" / name).iterdir()
    )


def members(index: Index) -> list[tuple[int, bytes]]:
    """(label, picture) of every sample, read by the index's own offsets."""
    found = []
    for shard in index.shards:
        data = (index.folder / shard.name).read_bytes()
        for number, label in enumerate(shard.labels.tolist()):
            (offset, size), (label_offset, label_size) = (
                [int(column[number]) for column in shard.members[extension]] for extension in ("png", "cls")
            )
            assert data[label_offset : label_offset + label_size] == str(label).encode()
            found.append((label, data[offset : offset + size]))
    return found


def test_shards_mix_classes(pictures: Path, tmp_path: Path) -> None:
    train = Index.read(write(pictures, tmp_path / "out", ShardOptions((16, 16), "jpg", 13))[1])
    assert all(0 < shard.labels.sum() < 13 for shard in train.shards)


def test_webdataset_reads_the_shards(pictures: Path, tmp_path: Path) -> None:
    index = Index.read(write(pictures, tmp_path / "out")[1])
    urls = [str(index.folder / shard.name) for shard in index.shards]
    samples = list(wds.WebDataset(urls, shardshuffle=False).decode("pil"))
    assert [sample["__key__"] for sample in samples] == [key for shard in index.shards for key in shard.keys]
    assert [sample["cls"] for sample in samples] == index.labels.tolist()
    assert all(sample["jpg"].size == (16, 16) for sample in samples)


def test_tar_reads_the_shards(pictures: Path, tmp_path: Path) -> None:
    write(pictures, tmp_path / "out")
    listed = subprocess.run(
        ["tar", "-tf", str(tmp_path / "out/train-000000.tar")], capture_output=True, text=True, check=True
    )
    assert listed.stdout.splitlines()[:2] == ["00000000.jpg", "00000000.cls"]
    assert listed.stderr == ""


def test_workers_and_runs_give_the_same_bytes(pictures: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    write(pictures, tmp_path / "again", workers=3)
    assert contents(tmp_path / "again") == whole
    assert sorted(whole) == sorted(
        [*(f"train-{n:06d}.tar" for n in range(5)), "train.json", "test-000000.tar", "test-000001.tar", "test.json"]
    )


def test_a_second_run_completes_what_is_missing_and_touches_nothing_else(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    out = tmp_path / "whole"
    (out / "train-000001.tar").unlink()
    damaged = bytearray(whole["train-000003.tar"])
    damaged[700] ^= 1
    (out / "train-000003.tar").write_bytes(damaged)
    os.truncate(out / "test-000000.tar", 1024)
    before = states(out)
    write(pictures, out, workers=2)
    assert contents(out) == whole
    after = states(out)
    assert {name for name in after if after[name] != before.get(name)} == {
        "train-000001.tar",
        "train-000003.tar",
        "test-000000.tar",
    }


def test_a_second_run_on_whole_shards_changes_no_shard(pictures: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    before = states(tmp_path / "whole")
    write(pictures, tmp_path / "whole")
    assert states(tmp_path / "whole") == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ShardOptions((8, 8), "jpg", 6), "--size 16, not 8"),
        (ShardOptions((16, 16), "png", 6), "--format jpg, not png"),
        (ShardOptions((16, 16), "jpg", 7), "--samples-per-shard 6, not 7"),
    ],
)
@pytest.mark.parametrize("stopped", [False, True])
def test_other_options_over_existing_shards_are_refused(
    pictures: Path, tmp_path: Path, options: ShardOptions, words: str, stopped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    if stopped:
        stop_before_indexes(pictures, out, monkeypatch)
    else:
        write(pictures, out)
    before = states(out)
    with pytest.raises(UserError, match=f"{words}; .*choose another folder"):
        write(pictures, out, options)
    assert states(out) == before


def stop_before_indexes(pictures: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_write_index", stop)
        with pytest.raises(KeyboardInterrupt):
            write(pictures, out)


def test_other_pictures_over_existing_shards_are_refused(pictures: Path, tmp_path: Path) -> None:
    write(pictures, tmp_path / "out")
    (pictures / "train/dog/000.jpg").rename(pictures / "train/dog/new.jpg")
    with pytest.raises(UserError, match="its train shards were made from other files"):
        write(pictures, tmp_path / "out")


@pytest.mark.parametrize("indexed", [False, True])
def test_shards_of_others_are_never_overwritten(pictures: Path, tmp_path: Path, indexed: bool) -> None:
    out = tmp_path / "out"
    write(pictures, out)
    for path in out.glob("*.json"):
        path.unlink()
    if indexed:
        index_shards(out, workers=1, quiet=True)
    before = states(out)
    with pytest.raises(
        UserError, match=r"launch/shard\.py did not make" if indexed else r"not made by launch/shard\.py"
    ):
        write(pictures, out)
    assert states(out) == before


def test_a_split_may_be_added_later(pictures: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    (pictures / "test").rename(tmp_path / "later")
    write(pictures, tmp_path / "out")
    (tmp_path / "later").rename(pictures / "test")
    write(pictures, tmp_path / "out")
    assert contents(tmp_path / "out") == whole


def test_a_stopped_run_keeps_what_it_had(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    stop_before_indexes(pictures, out, monkeypatch)
    (out / "train-000002.tar").unlink()
    before = states(out)
    write(pictures, out)
    assert contents(out) == whole
    after = states(out)
    kept = {name for name in whole if name.endswith(".tar")} - {"train-000002.tar"}
    assert all(after[name] == before[name] for name in kept)


def slowly(seconds: float) -> Callable[..., object]:
    def slow(*given: object) -> object:
        time.sleep(seconds)
        return convert(*given)  # type: ignore[arg-type]

    return slow


@pytest.mark.parametrize("shards_before_the_kill", [0, 1, 3])
def test_a_killed_run_is_continued(
    pictures: Path,
    tmp_path: Path,
    whole: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
    shards_before_the_kill: int,
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pictures_encoder, "convert", slowly(0.02))
        process = multiprocessing.get_context("fork").Process(target=write, args=(pictures, out))
        process.start()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (
        out.exists() and len(list(out.glob("*.tar"))) >= shards_before_the_kill and list(out.glob(".*.tmp"))
    ):
        time.sleep(0.005)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    assert all(whole[name] == (out / name).read_bytes() for name in finished)
    assert len(finished) < 7
    write(pictures, out)
    assert contents(out) == whole  # and so nothing hidden is left behind
    assert all((out / name).stat().st_mtime_ns == written for name, written in finished.items())


def test_a_run_takes_no_living_run_for_dead(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with atomic.opened_aside(out / "train-000000.tar") as (living, _):
        write(pictures, out)
        assert living.exists()


@pytest.mark.parametrize("name", [".train-000000.json", "train.json"], ids=["record", "index"])
def test_json_that_was_being_written_is_removed_unless_its_writer_lives(
    pictures: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    dead = out / f".{name}.0123456789ab.tmp"
    dead.touch()
    with atomic.opened_aside(out / name) as (living, _):
        write(pictures, out)
        assert (living.exists(), dead.exists()) == (True, False)


def test_a_file_that_was_taken_for_a_leftover_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = fcntl.flock
    calls: list[int] = []

    def cleaned_up_first(file: IO[bytes], operation: int) -> None:
        if not calls:
            Path(file.name).unlink()
        calls.append(operation)
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", cleaned_up_first)
    with atomic.opened_aside(tmp_path / "train-000000.tar") as (path, _):
        assert path.exists()
    assert len(calls) == 2


def test_two_runs_at_once_do_not_harm_each_other(pictures: Path, tmp_path: Path, whole: dict[str, bytes]) -> None:
    out = tmp_path / "out"
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=write, args=(pictures, out)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0, 0]
    assert contents(out) == whole


OTHER = ShardOptions(size=(8, 8), format="jpg", samples_per_shard=6)


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_finds_another_with_other_options_has_written_nothing(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    out, run = tmp_path / "out", module.run

    def after_the_other(*given: Any) -> Any:
        """Both have seen an empty folder; this one is the slower."""
        monkeypatch.setattr(module, "run", run)
        stop_before_indexes(pictures, out, monkeypatch) if stopped else write(pictures, out)
        before.update(states(out))
        return run(*given)

    before: dict[str, tuple[int, int]] = {}
    monkeypatch.setattr(module, "run", after_the_other)
    with pytest.raises(UserError, match=r"out: another run makes its test shards, .* choose another folder"):
        write(pictures, out, OTHER)
    assert states(out) == before
    write(pictures, out)
    assert contents(out) == whole


def test_of_two_runs_at_once_with_other_options_one_is_refused(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes]
) -> None:
    write(pictures, tmp_path / "other", OTHER)
    out, fork = tmp_path / "out", multiprocessing.get_context("fork")
    given = [(pictures, out, options) for options in (OPTIONS, OTHER, OPTIONS, OTHER)]
    processes = [fork.Process(target=write, args=words) for words in given]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    ended = [process.exitcode for process in processes]
    assert ended in ([0, 1, 0, 1], [1, 0, 1, 0])
    assert contents(out) == (whole if ended[0] == 0 else contents(tmp_path / "other"))


def test_the_claim_of_a_run_that_was_killed_before_its_first_record_can_be_removed(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    out, claim = tmp_path / "out", tmp_path / "out/.test.claim"
    with monkeypatch.context() as patch:
        patch.setattr(records, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            write(pictures, out, OTHER)
    with pytest.raises(UserError, match=f"or remove {claim} if that run was killed"):
        write(pictures, out)
    claim.unlink()
    write(pictures, out)
    assert contents(out) == whole


def test_a_folder_that_is_removed_while_shards_are_written_ends_the_run(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, attempts = tmp_path / "out", iter(range(10))

    def claim(tar: Path, made: Any) -> None:
        shutil.rmtree(out)
        monkeypatch.setattr(records, "aside", lambda path: path.with_name(f"{next(attempts)}.tmp"))
        own_claim(tar, made)

    own_claim = records._claim
    monkeypatch.setattr(records, "_claim", claim)
    with pytest.raises(UserError, match=r"out/test-000000\.tar: cannot be written: No such file or directory"):
        write(pictures, out)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_picture_is_named_and_nothing_half_written_stays(
    pictures: Path, tmp_path: Path, workers: int, whole: dict[str, bytes]
) -> None:
    broken, out = pictures / "train/cat/005.jpg", tmp_path / "out"
    data = broken.read_bytes()
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"train/cat/005\.jpg: the picture is broken") as error:
        write(pictures, out, workers=workers)
    assert "Traceback" not in str(error.value)
    assert all(path.read_bytes() == whole[path.name] for path in out.glob("*.tar"))
    assert not list(out.glob("t*.json"))
    broken.write_bytes(data)
    write(pictures, out)
    assert contents(out) == whole


def test_the_command_prints_each_broken_picture_on_a_line_of_its_own(pictures: Path, tmp_path: Path) -> None:
    broken = [pictures / "train/cat" / name for name in ("a.jpg", "with\nbreak.jpg")]
    for path in broken:
        path.write_bytes(b"\xff\xd8 no picture")
    command = [sys.executable, "launch/shard.py", str(pictures), str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    lines = [line for line in done.stderr.splitlines() if "the picture is broken" in line]
    assert done.returncode == 2
    assert sorted(line.partition(": ")[0] for line in lines) == [str(broken[0]), str(broken[1]).replace("\n", "\\n")]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_broken_pictures_are_listed_and_may_be_skipped(
    pictures: Path, tmp_path: Path, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = [pictures / f"train/{name}.jpg" for name in ("cat/005", "dog/001", "dog/002")]
    for path in broken:
        path.write_bytes(b"\xff\xd8 no picture")
    with pytest.raises(UserError, match=r"3 samples are broken; mend or remove them .* --skip-broken") as error:
        write(pictures, tmp_path / "out", workers=workers)
    lines = error.value.printed[1:]
    assert sorted(line.partition(": the picture is broken")[0] for line in lines) == sorted(map(str, broken))
    skipping = replace(OPTIONS, skip_broken=True)
    paths = write(pictures, tmp_path / "out", skipping, workers)
    said = capsys.readouterr().err
    assert all(f"{path}: the picture is broken" in said for path in broken)
    assert "3 broken samples are left out" in said
    assert "run again" not in said
    train = next(Index.read(path) for path in paths if path.stem == "train")
    assert (train.samples, train.class_counts) == (23, (12, 11))
    assert verify(train, workers=0, quiet=True) == []
    kept = contents(tmp_path / "out")
    write(pictures, tmp_path / "out")
    assert contents(tmp_path / "out") == kept, "whole shards stay as they are"
    assert "3 broken samples are left out" in capsys.readouterr().err, "a rerun says so too"


def test_a_set_of_which_nothing_is_whole_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"in/cat/{number}.png").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"in/cat/{number}.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"is broken: .* \(and so it is with all 3 samples\)"):
        write(tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError, match="no sample of the split train is whole"):
        write(tmp_path / "in", tmp_path / "out", replace(OPTIONS, skip_broken=True))


def test_a_class_of_which_nothing_is_whole_is_named(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in pictures.glob("*/dog/*"):
        path.write_bytes(b"no picture")
    write(pictures, tmp_path / "out", replace(OPTIONS, skip_broken=True))
    assert "1 of 2 classes have no sample, such as 'dog'" in capsys.readouterr().err


def test_a_mended_picture_is_named(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = pictures / "train/cat/005.jpg"
    data = picture.read_bytes()
    picture.write_bytes(data[:20] + b"\x00\x00\x00" + data[20:])
    write(pictures, tmp_path / "out")
    assert "train/cat/005.jpg: this picture is damaged" in capsys.readouterr().err


def test_a_full_disk_is_a_clear_error_and_a_second_run_continues(
    pictures: Path, tmp_path: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, left = tmp_path / "out", [60_000]
    write_bytes = TarWriter._write

    def limited(tar: TarWriter, data: bytes) -> None:
        left[0] -= len(data)
        if left[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_bytes(tar, data)

    with monkeypatch.context() as patch:
        patch.setattr(TarWriter, "_write", limited)
        with pytest.raises(UserError, match=r"\.tar: cannot be written: No space left .*run again, which continues"):
            write(pictures, out)
    tars = list(out.glob("*.tar"))
    assert 0 < len(tars) < 7
    assert all(path.read_bytes() == whole[path.name] for path in tars)
    assert not list(out.glob(".*.tmp"))
    write(pictures, out)
    assert contents(out) == whole


def test_an_out_that_cannot_be_made_is_named(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/out: cannot be written"):
        write(pictures, tmp_path / "file" / "out")


def test_keys_count_through_the_shards(pictures: Path, tmp_path: Path) -> None:
    index = Index.read(write(pictures, tmp_path / "out")[1])
    assert [key for shard in index.shards for key in shard.keys] == [f"{number:08d}" for number in range(26)]


ORPHANED = """
import sys, time
from pathlib import Path
from typing import IO, Any
from bigtrain.data.write.parallel import run
def work(task, progress):
    for _ in range(600):
        time.sleep(0.05)
        progress(1)
        Path(sys.argv[1], str(task)).write_text(str(time.time()))
if __name__ == "__main__":
    run(work, [0, 1], 2, lambda count: None)
"""


def test_no_worker_outlives_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "orphaned.py"
    script.write_text(ORPHANED)
    marks = [tmp_path / "0", tmp_path / "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=environment)
    deadline = time.monotonic() + 30
    while not all(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    time.sleep(0.5)
    before = [mark.read_text() for mark in marks]
    time.sleep(0.5)
    assert [mark.read_text() for mark in marks] == before


def test_pictures_smaller_than_the_size_are_enlarged(tmp_path: Path) -> None:
    (tmp_path / "in/cat").mkdir(parents=True)
    Image.fromarray(np.full((5, 9, 3), 77, dtype=np.uint8)).save(tmp_path / "in/cat/a.png")
    index = Index.read(write(tmp_path / "in", tmp_path / "out", ShardOptions((16, 16), "png", 6))[0])
    assert index.image_size == (16, 16)
    ((_, data),) = members(index)
    assert (decode(data) == 77).all()
