"""An atomic write replaces plain files and nothing else."""

import fcntl
import os
from pathlib import Path

import pytest

from bigtrain.runs import atomic


def test_a_plain_file_is_replaced(tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        atomic.write_bytes(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_plain_file_stays_as_it_is(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"kept")
    path = tmp_path / "path"
    {"link": lambda: path.symlink_to(target), "folder": path.mkdir, "fifo": lambda: os.mkfifo(path)}[kind]()
    before = os.lstat(path)
    with pytest.raises(OSError, match="not replaced"):
        atomic.write_bytes(path, b"new")
    assert os.path.samestat(os.lstat(path), before)
    assert target.read_bytes() == b"kept"
    assert sorted(os.listdir(tmp_path)) == ["path", "target"]


def test_a_signal_before_the_file_is_locked_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        assert len(os.listdir(tmp_path)) == 1
        raise KeyboardInterrupt

    monkeypatch.setattr(fcntl, "flock", interrupted)
    with pytest.raises(KeyboardInterrupt):
        atomic.write_bytes(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []
