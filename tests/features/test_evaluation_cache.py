"""What evaluations keep is whole, verified and never trusted blindly."""

import logging
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bigtrain.features.cache import Cache, Entry, fingerprint

KEY = {"index": "abc", "limit": 7}


@pytest.fixture
def kept(digits):
    """A cache with one entry, and the file that holds it."""
    cache = Cache(digits[0])
    cache.write("moments", KEY, Entry({"total": torch.arange(6.0)[::2], "count": torch.tensor(3)}, {"accuracy": 0.5}))
    (path,) = (digits[0].folder / ".bigtrain").iterdir()
    return cache, path


def test_an_entry_comes_back_as_it_was(kept):
    entry = kept[0].read("moments", KEY)
    assert torch.equal(entry.tensors["total"], torch.tensor([0.0, 2.0, 4.0]))
    assert entry.tensors["count"] == 3
    assert entry.facts == {"accuracy": 0.5}


@pytest.mark.parametrize(
    ("kind", "key"), [("features", KEY), ("moments", {**KEY, "limit": 8}), ("moments", {"index": "abc"})]
)
def test_another_key_finds_nothing(kept, kind, key):
    assert kept[0].read(kind, key) is None


def test_a_file_under_another_keys_name_is_not_believed(kept):
    cache, path = kept
    cache.write("moments", {**KEY, "limit": 8}, Entry({"total": torch.zeros(1)}, {}))
    (other,) = (file for file in path.parent.iterdir() if file != path)
    path.write_bytes(other.read_bytes())
    assert cache.read("moments", KEY) is None


@pytest.mark.parametrize("harm", ["flip", "truncate", "empty", "foreign"])
def test_a_damaged_entry_is_reported_and_not_used(kept, caplog, harm):
    cache, path = kept
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(
        {"flip": bytes(data), "truncate": path.read_bytes()[:-3], "empty": b"", "foreign": b"x" * 99}[harm]
    )
    with caplog.at_level(logging.WARNING):
        assert cache.read("moments", KEY) is None
    assert str(path) in caplog.text


def test_where_the_shards_cannot_be_written_the_users_cache_folder_is_used(digits, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "elsewhere"))
    (digits[0].folder / ".bigtrain").write_text("in the way")
    Cache(digits[0]).write("moments", KEY, Entry({"total": torch.ones(2)}, {}))
    assert torch.equal(Cache(digits[0]).read("moments", KEY).tensors["total"], torch.ones(2))
    assert len(list((tmp_path / "elsewhere" / "evaluation").iterdir())) == 1


def test_where_nothing_can_be_written_the_result_is_not_lost(digits, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "file"))
    (digits[0].folder / ".bigtrain").write_text("in the way")
    Cache(digits[0]).write("moments", KEY, Entry({"total": torch.ones(2)}, {}))
    assert "could not be kept" in caplog.text


def forged(path: Path) -> bytes:
    """The file with other numbers in it, under the right key and hash, as anybody can write it who knows this program."""
    with safe_open(path, "pt") as file:
        text = dict(file.metadata())
    tensors = {name: torch.zeros_like(tensor) for name, tensor in load_file(path).items()}
    save_file(tensors, path, metadata=text | {"sha256": fingerprint(tensors, text["key"] + text["facts"])})
    return path.read_bytes()


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "own"))
    return tmp_path / "own"


def test_an_entry_that_this_user_did_not_sign_is_not_believed_and_is_made_anew_elsewhere(
    own_cache, kept, digits, caplog
):
    cache, path = kept
    content = forged(path)
    assert cache.read("moments", KEY) is None
    assert f"{path}: a damaged or foreign cache file" in caplog.text
    caplog.clear()
    cache.write("moments", KEY, Entry({"total": torch.ones(2)}, {}))
    assert torch.equal(Cache(digits[0]).read("moments", KEY).tensors["total"], torch.ones(2))
    assert path.read_bytes() == content, "what others wrote beside the data is left alone"
    assert caplog.text == ""


def test_an_entry_of_another_user_is_not_believed(own_cache, kept, monkeypatch, caplog):
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert kept[0].read("moments", KEY) is None
    assert "another user wrote it" in caplog.text


def test_the_key_is_private_and_one_that_is_not_is_made_anew(own_cache, kept):
    (key,) = own_cache.glob("signing-*.key")
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    assert len(before) == 32
    key.chmod(0o640)
    assert kept[0].read("moments", KEY) is None
    assert key.read_bytes() != before
    assert key.stat().st_mode & 0o777 == 0o600


def test_a_link_beside_the_data_is_not_followed(own_cache, digits, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (digits[0].folder / ".bigtrain").symlink_to(tmp_path / "elsewhere")
    Cache(digits[0]).write("moments", KEY, Entry({"total": torch.ones(2)}, {}))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert Cache(digits[0]).read("moments", KEY) is not None


def test_a_fifo_beside_the_data_is_not_waited_for(own_cache, kept):
    cache, path = kept
    path.unlink()
    os.mkfifo(path)
    assert cache.read("moments", KEY) is None
