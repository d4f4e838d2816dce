"""What evaluations keep is whole, verified and never trusted blindly."""

import logging

import pytest
import torch

from bigtrain.features.cache import Cache, Entry

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
