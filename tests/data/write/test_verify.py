"""`launch/shard.py --verify INDEX` reads everything and says what is broken."""

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.index import Index
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import make_numbered_shards, numbered_png, write_tar
from tests.data.faulty_server import serving


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_numbered_shards([4, 3, 5], tmp_path / "shards")


def verify_output(index: Index, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What the command says of it: a line for each fault, and the error's text."""
    capsys.readouterr()
    with pytest.raises(UserError) as raised:
        main(["--verify", str(index.path), "--workers", "1"])
    lines = [line.rpartition("\r")[2] for line in capsys.readouterr().err.splitlines()]
    return [*(line for line in lines if ".tar" in line), str(raised.value)]


def test_a_whole_split_is_reported_complete(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    main(["--verify", str(index.path), "--workers", "1"])
    assert "train.json: complete: 12 samples in 3 shards" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_find_the_same(index: Index) -> None:
    os.truncate(index.folder / "train-000001.tar", 4000)
    found = verify(index, workers=2, quiet=True)
    assert found == verify(index, workers=1, quiet=True)
    assert "train-000001.tar: the shard has 4000 bytes, not the" in found[0]


def overwrite(index: Index, extension: str, number: int, change: Callable[[bytes], bytes]) -> None:
    """Changes a member of the second shard, in the file itself."""
    offsets, sizes = index.shards[1].members[extension]
    path, offset, size = index.folder / "train-000001.tar", int(offsets[number]), int(sizes[number])
    data = bytearray(path.read_bytes())
    data[offset : offset + size] = change(bytes(data[offset : offset + size]))
    path.write_bytes(data)


def renumbered(index: Index, change: Callable[[dict], object]) -> None:
    value = json.loads(index.path.read_text())
    change(value)
    index.path.write_text(json.dumps(value))


DAMAGE: dict[str, tuple[Callable[[Index], object], list[str]]] = {
    "wrong sha": (
        lambda index: overwrite(index, "png", 1, lambda data: data[:-1] + b"x"),
        ["train-000001.tar: the shard's sha256 is "],
    ),
    "another picture": (
        lambda index: overwrite(index, "png", 1, lambda data: numbered_png(77)),
        ["train-000001.tar: the shard's sha256 is "],
    ),
    "no picture": (
        lambda index: overwrite(index, "png", 2, lambda data: bytes(len(data))),
        ["sha256", "train-000001.tar: 00006: the content is not an image of a known format"],
    ),
    "another label": (
        lambda index: overwrite(index, "cls", 0, lambda data: b"3"),
        ["sha256", "train-000001.tar: 00004: its .cls says 3, but the index says 4 (4)"],
    ),
    "no label": (
        lambda index: overwrite(index, "cls", 0, lambda data: b"?"),
        ["sha256", "train-000001.tar: 00004: '?' is neither a decimal class number nor the name of a class"],
    ),
    "missing": (
        lambda index: (index.folder / "train-000001.tar").unlink(),
        ["train-000001.tar: the shard cannot be opened: No such file"],
    ),
    "zero bytes": (
        lambda index: os.truncate(index.folder / "train-000001.tar", 0),
        ["the shard has 0 bytes", *(f"0000{n}: the shard ends within its cls" for n in (4, 5, 6))],
    ),
    "another size": (
        lambda index: renumbered(index, lambda value: value["fields"]["image"].update(size=[8, 8])),
        [f"{n:05d}: it is 4 x 4, not 8 x 8" for n in range(12)],
    ),
    "grey": (
        lambda index: renumbered(index, lambda value: value["fields"]["image"].update(channels=1)),
        [f"{n:05d}: it has colours, but the index says that its images are grey" for n in range(12)],
    ),
    "duplicate key": (
        lambda index: renumbered(index, lambda value: value["shards"][0]["keys"].__setitem__(1, "00000")),
        ["train-000000.tar: 00000: the key occurs 2 times"],
    ),
}


@pytest.mark.parametrize(("damage", "lines"), DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_broken_is_named(
    index: Index, damage: Callable[[Index], object], lines: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    damage(index)
    *found, summary = verify_output(index, capsys)
    assert f"train.json: {len(lines)} error{'s' if len(lines) > 1 else ''};" in summary
    assert len(found) == len(lines)
    for line, wanted in zip(found, lines, strict=True):
        assert wanted in line


def test_a_member_that_is_said_to_be_huge_takes_no_memory(index: Index) -> None:
    value = json.loads(index.path.read_text())
    value["shards"][0]["size"] = 10**15
    value["shards"][0]["members"]["png"]["sizes"][1] = 10**14
    index.path.write_text(json.dumps(value))
    lines = verify(Index.read(index.path), workers=0, quiet=True)
    assert [line.partition("train-000000.tar: ")[2] for line in lines if "png" in line] == [
        f"{index.shards[0].keys[1]}: the shard ends within its png"
    ]


def test_a_shard_that_cannot_be_read_is_named(index: Index) -> None:
    (index.folder / "train-000001.tar").unlink()
    (index.folder / "train-000001.tar").mkdir()
    assert [line.partition("shards/")[2] for line in verify(index, workers=0, quiet=True)] == [
        "train-000001.tar: the shard cannot be read: Is a directory"
    ]


def test_a_sample_without_an_image_is_named(index: Index, capsys: pytest.CaptureFixture[str]) -> None:
    offsets, sizes = index.shards[2].members["png"]
    bare = {**index.shards[2].members, "png": (np.where(np.arange(5) == 3, -1, offsets), sizes)}
    shards = (*index.shards[:2], dataclasses.replace(index.shards[2], members=bare))
    dataclasses.replace(index, shards=shards).write()
    assert verify_output(index, capsys)[0].endswith(
        "train-000002.tar: 00010: it has no jpg, jpeg, png, webp, npy member"
    )


def test_features_beside_a_picture_are_not_taken_for_pixels(tmp_path: Path) -> None:
    write_tar(tmp_path / "train-0.tar", [{"__key__": "0", "png": numbered_png(0), "npy": np.zeros(7), "cls": b"0"}])
    index = Index.read(index_shards(tmp_path, workers=0, quiet=True)[0])
    assert verify(index, workers=0, quiet=True) == []


def test_labels_from_json_are_compared_too(tmp_path: Path) -> None:
    samples = [
        {"__key__": str(n), "png": numbered_png(n), "json": {"what": name}} for n, name in enumerate(("eel", "cat"))
    ]
    write_tar(tmp_path / "train-0.tar", samples)
    index = Index.read(index_shards(tmp_path, workers=0, quiet=True, labels="json:what")[0])
    assert verify(index, workers=0, quiet=True) == []
    renumbered(index, lambda value: value["fields"]["label"].update(classes=["eel", "dog"]))
    (line, other) = verify(Index.read(index.path), workers=0, quiet=True)
    assert line.endswith("train-0.tar: 0: its .json says eel, but the index says 1 (dog)")
    assert other.endswith("train-0.tar: 1: its .json says cat, but the index says 0 (eel)")


def test_shards_at_a_url_are_fetched_and_read(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    (index.folder / "train-000002.tar").write_bytes(b"")
    with serving(index.folder, lambda path, _: "absent" if "1.tar" in path else "") as server:
        monkeypatch.setattr("bigtrain.data.remote.FIRST_PAUSE_S", 0.001)
        with pytest.raises(UserError, match=r"2 errors;"):
            main(["--verify", f"{server.url}/train.json", "--workers", "1"])
        said = capsys.readouterr().err
        assert "train-000001.tar: the shard cannot be fetched: HTTP 404" in said
        assert "0 bytes came where the index says" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.json", "out", "--verify"], "--verify takes one index and nothing else"),
        (["x.json", "--verify", "--size", "8"], "--size does not go with --verify"),
        (["nowhere.json", "--verify"], "nowhere.json: there is no index here"),
    ],
)
def test_a_user_error_is_one_sentence(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        main(words)
