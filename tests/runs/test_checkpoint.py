import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.runs import atomic, checkpoint

PLAYERS = {"net": {"weights": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}, "optimizer": {}}}


def write(folder: Path, step: int) -> Path:
    return checkpoint.write(folder, step, PLAYERS, {"step": step})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    write(tmp_path, 5)
    saved = checkpoint.newest_whole(tmp_path)
    assert saved is not None
    assert saved.step == 5
    assert torch.equal(saved.tensors("net")["weights"]["w"], PLAYERS["net"]["weights"]["w"])
    assert saved.tensors("net")["optimizer"] == {}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_opening_a_checkpoint_takes_no_memory_of_its_size(tmp_path: Path) -> None:
    """Eight ranks of a node open it at once; each keeps what it copies of it, and no more."""

    def own_mib() -> float:
        """What this process holds beside pages of files, which ranks share and the system may take back."""
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0]) / 1024

    path = checkpoint.write(tmp_path, 1, {"net": {"optimizer": {"w": torch.ones(2**24)}}}, {"step": 1})
    before = own_mib()
    groups = checkpoint.Checkpoint(path).tensors("net")
    assert float(groups["optimizer"]["w"][-1]) == 1
    assert own_mib() - before < 16, "of 64 MiB"


def test_a_run_that_goes_on_may_delete_a_checkpoint_that_is_open(tmp_path: Path) -> None:
    saved = checkpoint.Checkpoint(write(tmp_path, 1))
    checkpoint.discard(saved.path)
    assert torch.equal(saved.tensors("net")["weights"]["w"], PLAYERS["net"]["weights"]["w"])


@pytest.mark.parametrize("name", ["net.optimizer.safetensors", "net.weights.safetensors", "state.json"])
def test_a_checkpoint_that_is_deleted_while_it_is_verified_is_not_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path, read = write(tmp_path, 1), atomic.sha256_of

    def deleted_after(file: Path) -> str:
        digest = read(file)
        if file.name == name:
            checkpoint.discard(path)
        return digest

    monkeypatch.setattr(atomic, "sha256_of", deleted_after)
    with pytest.raises(ValueError, match="No such file or directory"):
        checkpoint.Checkpoint(path)


def test_channels_last_tensors_keep_their_values(tmp_path: Path) -> None:
    tensor = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    checkpoint.write(tmp_path, 1, {"net": {"weights": {"w": tensor}}}, {"step": 1})
    assert torch.equal(checkpoint.Checkpoint(tmp_path / "step_00000001").tensors("net")["weights"]["w"], tensor)


@pytest.mark.parametrize("name", ["net.weights.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_part_is_noticed(name: str, damage: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write(tmp_path, 1)
    path = write(tmp_path, 2) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    saved = checkpoint.newest_whole(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert "step_00000002 is damaged" in capsys.readouterr().err


def test_a_disk_that_fails_in_the_middle_of_a_file_is_noticed_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Such an error names no file, other than one that comes of opening it."""
    write(tmp_path, 1)
    bad = write(tmp_path, 2) / "net.weights.safetensors"
    read = atomic.sha256_of

    def fail(path: Path) -> str:
        if path == bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(path)

    monkeypatch.setattr(atomic, "sha256_of", fail)
    saved = checkpoint.newest_whole(tmp_path)
    assert saved is not None
    assert saved.step == 1
    assert "step_00000002 is damaged (step_00000002: Input/output error)" in capsys.readouterr().err


def test_a_checkpoint_is_there_again_before_the_one_it_replaces_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    delete, whole = shutil.rmtree, []

    def note(path: Path, ignore_errors: bool = False) -> None:
        whole.append(checkpoint.newest_whole(tmp_path) is not None)
        delete(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", note)
    write(tmp_path, 1)
    assert whole == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 1)

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"step_00000002: cannot write the checkpoint \(No space left on device\)"):
        write(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]
    assert checkpoint.newest_whole(tmp_path).step == 1


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="mounting a small disk needs root")
def test_a_really_full_disk_loses_nothing(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs '{disk}' 2>/dev/null"):
        pytest.skip("this sandbox does not mount")
    try:
        write(disk, 1)
        big = {"net": {"weights": {"w": torch.zeros(2**19)}}}
        with pytest.raises(UserError, match="No space left on device"):
            checkpoint.write(disk, 2, big, {"step": 2})
        assert [path.name for path in disk.iterdir()] == ["step_00000001"]
        assert checkpoint.newest_whole(disk).step == 1
    finally:
        os.system(f"umount '{disk}'")


def test_only_the_newest_are_kept_and_half_written_ones_are_cleaned(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        write(tmp_path, step)
    half = atomic.aside(tmp_path / "step_00000004")
    half.mkdir()
    (tmp_path / "step_00000001.bak").mkdir()
    checkpoint.keep_newest(tmp_path, 3, 2)
    atomic.remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001.bak", "step_00000002", "step_00000003"]


def test_damaged_later_checkpoints_never_push_out_whole_ones(tmp_path: Path) -> None:
    """The run went on from step 4 because 8 and 12 are damaged; its next checkpoint is that of step 6."""
    for step in (4, 8, 12, 6):
        write(tmp_path, step)
    checkpoint.keep_newest(tmp_path, 6, 2)
    assert [path.name for path in checkpoint.listed(tmp_path)] == ["step_00000004", "step_00000006"]


def test_a_checkpoint_of_another_format_is_not_guessed_at(tmp_path: Path) -> None:
    manifest = write(tmp_path, 1) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    with pytest.raises(UserError, match="none of its checkpoints is whole"):
        checkpoint.newest_whole(tmp_path)


def test_nothing_in_a_checkpoint_is_a_pickle(tmp_path: Path) -> None:
    assert {path.suffix for path in write(tmp_path, 1).iterdir()} == {".safetensors", ".json"}
