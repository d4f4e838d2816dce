"""Shards that were begun when indexes had version 1 are completed as they were begun: their runs go on."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.decode import header_shape
from bigtrain.data.index import Index
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write import shards as module
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.errors import UserError
from tests.data.sets import OLD_FOLDERS

OLD = OLD_FOLDERS / "images"
OPTIONS = ShardOptions((8, 8), "png", 16)
COUNTS = {"train": 10, "validation": 4}
"""Pictures of each class of the fixture."""


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The folder that tests/fixtures/make.py made the fixture's shards from: their members, under the files' old names."""
    for split, count in COUNTS.items():
        index = Index.read(OLD / f"{split}.json")
        names = [f"{split}/{label}/{number:02d}.png" for label in index.classes for number in range(count)]
        numbers = iter(sorted(names, key=module._order_key))
        for shard in index.shards:
            data = (OLD / shard.name).read_bytes()
            for offset, size in zip(*(column.tolist() for column in shard.members["png"]), strict=True):
                path = tmp_path / "pictures" / next(numbers)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data[offset : offset + size])
    return tmp_path / "pictures"


def write(pictures: Path, out: Path, options: ShardOptions = OPTIONS) -> list[Index]:
    return [Index.read(path) for path in write_shards(list_by_class(pictures), out, options, workers=1, quiet=True)]


@pytest.mark.parametrize("indexed", [True, False])
def test_what_is_missing_is_made_as_it_was(pictures: Path, tmp_path: Path, indexed: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    old = contents(OLD)
    for name, data in old.items():
        if name.endswith(".tar") or indexed:
            (out / name).write_bytes(data)
        else:  # a run that was killed before its index was written
            leave_records(out, json.loads(data))
    (out / "train-000001.tar").unlink()
    (out / "validation-000000.tar").unlink()
    expected = json.loads((OLD_FOLDERS / "expected" / "fingerprints.json").read_text())
    for index in write(pictures, out):
        assert index.fingerprint == expected[f"images/{index.split}.json"]
    assert contents(out) == old


def leave_records(out: Path, index: dict) -> None:
    """The records that version 1 wrote beside shards without an index."""
    for shard in index["shards"]:
        record = {"version": 1, "image_size": index["size"], "made": index["made"], "mended": [], "shard": shard}
        (out / f".{Path(shard['url']).stem}.json").write_text(json.dumps(record))


def test_a_whole_set_is_left_as_it_is(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, data in contents(OLD).items():
        (out / name).write_bytes(data)
    before = {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()}
    write(pictures, out)
    assert {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in out.iterdir()} == before


def test_a_new_set_of_the_same_pictures_has_the_same_shards_and_another_fingerprint(
    pictures: Path, tmp_path: Path
) -> None:
    train, _ = write(pictures, tmp_path / "new")
    old = Index.read(OLD / "train.json")
    assert train.version == 2
    assert [shard.to_json() for shard in train.shards] == [shard.to_json() for shard in old.shards]
    assert train.fingerprint != old.fingerprint


def grey_folder(folder: Path, sides: tuple[int, int] = (6, 6)) -> Path:
    (folder / "cat").mkdir(parents=True)
    noise = np.random.default_rng(0)
    for number in range(5):
        Image.fromarray(noise.integers(0, 256, sides, dtype=np.uint8)).save(folder / f"cat/{number}.png")
    return folder


def images_of(index: Index) -> list[bytes]:
    found = []
    for shard in index.shards:
        data = (index.folder / shard.name).read_bytes()
        found += [data[offset : offset + size] for offset, size in zip(*shard.members["png"], strict=True)]
    return found


def test_grey_pictures_are_rgb_in_version_1_and_grey_in_a_new_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, options = grey_folder(tmp_path / "pictures"), ShardOptions((4, 4), "png", 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT_VERSION", 1)
        (old,) = write(pictures, tmp_path / "old", options)
    whole = contents(tmp_path / "old")
    (tmp_path / "old/train-000001.tar").unlink()
    (again,) = write(pictures, tmp_path / "old", options)
    assert contents(tmp_path / "old") == whole
    assert (again.version, again.channels, again.fingerprint) == (1, 3, old.fingerprint)
    assert {header_shape(data) for data in images_of(again)} == {(4, 4, 3)}
    (new,) = write(pictures, tmp_path / "new", options)
    assert (new.version, new.channels) == (2, 1)
    assert {header_shape(data) for data in images_of(new)} == {(4, 4, 1)}


def test_version_1_says_no_size_of_pictures_that_are_no_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures, options = grey_folder(tmp_path / "pictures", (4, 6)), ShardOptions(None, None, 2)
    with monkeypatch.context() as patch:
        patch.setattr(module, "FORMAT_VERSION", 1)
        (old,) = write(pictures, tmp_path / "old", options)
    (new,) = write(pictures, tmp_path / "new", options)
    assert (old.image_size, new.image_size) == (None, (4, 6))


def test_an_option_that_version_1_did_not_know_is_refused(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name, data in contents(OLD).items():
        (out / name).write_bytes(data)
    with pytest.raises(UserError, match=r"were made with --range None, not 0,4095; .* or choose another folder"):
        write(pictures, out, ShardOptions((8, 8), "png", 16, (0, 4095)))
