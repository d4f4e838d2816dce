"""Files that somebody else made: each is a sentence within seconds, whatever it is, and none leads outside."""

import dataclasses
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from bigtrain.data.fields.text import open_tokenizer
from bigtrain.data.index import Index
from bigtrain.data.remote import Origin, RemoteOptions, beside, check_url, may_log_in
from bigtrain.data.sources.image_files import open_collection
from bigtrain.data.splits import find_index
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from launch.shard import main as shard
from tests.data.conftest import make_numbered_shards
from tests.data.faulty_server import serving


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return make_numbered_shards([3, 3], tmp_path / "shards")


def fifo(path: Path) -> Path:
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


# -- what never ends ------------------------------------------------------------------------------------------------


def test_a_fifo_in_the_place_of_an_index_or_of_a_shard_is_refused(index: Index, tmp_path: Path) -> None:
    fifo(index.folder / "train-000001.tar")
    with pytest.raises(UserError, match=r"000001\.tar: the shard cannot be opened \(is a FIFO, not a plain file\)"):
        find_index(str(index.path), "train", None)
    assert "is a FIFO" in verify(index, workers=0, quiet=True)[0]
    with pytest.raises(UserError, match="is a FIFO"):
        index_shards(index.folder, workers=0, quiet=True)
    with pytest.raises(UserError, match="the index cannot be read: is a FIFO"):
        Index.read(fifo(tmp_path / "train.json"))


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.npz", "a"])
def test_a_fifo_in_the_place_of_images_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is a FIFO|is none of a folder"):
        open_collection(fifo(tmp_path / name))
    with pytest.raises(UserError, match=r"FIFO"):
        shard([str(tmp_path / name), str(tmp_path / "out"), "--workers", "1"])


@pytest.mark.parametrize("name", ["texts.csv", "rows.npy", "list.txt"])
def test_a_fifo_in_the_place_of_a_table_is_refused(tmp_path: Path, name: str) -> None:
    pictures = tmp_path / "pictures"
    (pictures / "cats").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(pictures / "cats" / "a.png")
    kind = {"texts.csv": "text", "rows.npy": "array", "list.txt": "attributes"}[name]
    with pytest.raises(UserError, match=r"FIFO|neither|no file"):
        shard([str(pictures), str(tmp_path / "out"), "--field", f"x={fifo(tmp_path / name)}:{kind}", "--workers", "1"])


def test_a_device_in_the_place_of_a_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such file"):
        open_tokenizer("/dev/zero")
    deep = tmp_path / "deep.json"
    deep.write_bytes(b"[" * 10**6)
    with pytest.raises(UserError, match="not a JSON of the library"):
        open_tokenizer(str(deep))


# -- what leads outside ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["/etc/passwd", "a\0b.tar"])
def test_an_index_names_shards_relative_to_itself(index: Index, name: str) -> None:
    dataclasses.replace(index, shards=(dataclasses.replace(index.shards[0], name=name), index.shards[1])).write()
    with pytest.raises(UserError, match="is not the name of a shard beside its index"):
        Index.read(index.path)
    with serving(index.folder) as server, pytest.raises(UserError, match="is not the name of a shard beside its index"):
        find_index(f"{server.url}/train.json", "train", None)


@pytest.mark.parametrize("path", ["../../other/name/x.json", "a/../../x.json", "a/%2e%2e/%2E%2E/x.json", "..", "a\0b"])
def test_an_address_on_the_hub_stays_within_its_data_set(path: str) -> None:
    with pytest.raises(UserError, match="not of the form"):
        check_url(f"hf://datasets/owner/name/{path}", Origin(key="data.train"))


def test_a_shard_beside_an_index_on_the_hub_stays_within_its_data_set() -> None:
    with pytest.raises(ValueError, match="is not the name of a shard"):
        beside("hf://datasets/owner/name/sub/train.json", "../../../other/secret.tar")
    assert beside("hf://datasets/owner/name/sub/train.json", "a.tar") == "hf://datasets/owner/name/sub/a.tar"


# -- logins ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("index", "url", "logins", "may"),
    [
        ("hf://datasets/me/mine/train.json", "hf://datasets/me/mine/a.tar", (), True),
        ("hf://datasets/me/mine@v1/train.json", "hf://datasets/me/mine@v2/a.tar", (), True),
        ("hf://datasets/me/mine/train.json", "hf://datasets/me/other/a.tar", (), False),
        ("hf://datasets/me/mine/train.json", "hf://datasets/me/other/a.tar", ("hf://datasets/me/other",), True),
        ("https://one.org/train.json", "https://ONE.org/a.tar", (), True),
        ("https://one.org/train.json", "http://one.org/a.tar", (), False),
        ("https://one.org/train.json", "https://one.org.evil.net/a.tar", (), False),
        ("https://one.org/train.json", "https://one.org@evil.net/a.tar", (), False),
        ("https://one.org/train.json", "https://two.org:8443/a.tar", ("https://two.org:8443",), True),
        ("s3://bucket/train.json", "s3://other/a.tar", (), False),
        (None, "hf://datasets/me/mine/a.tar", (), False),
        (None, "hf://datasets/me/mine/a.tar", ("hf://datasets/me/mine",), True),
    ],
)
def test_a_login_is_sent_to_the_place_of_the_index_and_to_those_that_are_named(
    index: str | None, url: str, logins: tuple[str, ...], may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert may_log_in(url, Origin(url=index, options=RemoteOptions(logins=logins))) == may
    monkeypatch.setenv("BIGTRAIN_LOGINS", ", ".join(logins))
    assert may_log_in(url, Origin(url=index)) == may


def test_no_token_is_sent_to_a_data_set_that_an_index_names(
    index: Index, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = tmp_path / "hub/datasets/owner/name/resolve/main"
    shutil.copytree(index.folder, served)
    shards = [dataclasses.replace(one, name=f"hf://datasets/owner/name/{one.name}") for one in index.shards]
    dataclasses.replace(index, shards=tuple(shards)).write()
    with serving(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        for logins, sent in (((), {None}), (("hf://datasets/owner/name",), {"Bearer hf_secret"})):
            remote = RemoteOptions(cache=str(tmp_path / f"kept{len(logins)}"), logins=logins, retries=0)
            there = find_index(str(index.path), "train", None, remote=remote)
            server.logins.clear()
            assert verify(there, workers=0, quiet=True) == []
            assert server.logins == sent


# -- what is damaged ------------------------------------------------------------------------------------------------


def database(folder: Path) -> Path:
    lmdb = pytest.importorskip("lmdb")
    path = folder / "kitchen_train_lmdb"
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for number in range(64):
            transaction.put(f"{number:04d}".encode(), os.urandom(5000))
    return path


@pytest.mark.parametrize("left", [0.9, 0.5, 0.05])
def test_a_truncated_database_ends_in_a_sentence_and_not_by_a_signal(tmp_path: Path, left: float) -> None:
    file = database(tmp_path) / "data.mdb"
    os.truncate(file, int(file.stat().st_size * left))
    with pytest.raises(UserError, match=r"truncated; copy it here again|not an LMDB database"):
        shard([str(tmp_path), str(tmp_path / "out"), "--workers", "1"])


@pytest.mark.parametrize("content", [b"", b"\0\0", b"\0\0\x08", b"\0\0\x08\x03\0\0\0"])
def test_an_idx_file_of_a_few_bytes_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 0))
    with pytest.raises(UserError, match="not an idx file of unsigned bytes in 3 dimensions"):
        shard([str(tmp_path), str(tmp_path / "out"), "--workers", "1"])


Change = Callable[[dict[str, object]], object]
DAMAGE: dict[str, Change] = {
    "deep": lambda value: value.update(made=json.loads("[" * 900 + "]" * 900)),
    "no fields": lambda value: value.pop("fields"),
    "fields of text": lambda value: value.update(fields="image"),
    "shards of text": lambda value: value.update(shards="x"),
    "a huge size": lambda value: value["shards"][0].update(size=10**400),  # type: ignore[index]
    "a huge count": lambda value: value["shards"][0].update(samples=10**18),  # type: ignore[index]
    "a class of 10^30": lambda value: value["shards"][0].update(labels=[10**30] * 3),  # type: ignore[index]
    "a version of true": lambda value: value.update(version=True),
    "a split outside": lambda value: value.update(split="../x"),
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_one_sentence(index: Index, change: Change) -> None:
    value = json.loads(index.path.read_bytes())
    change(value)
    index.path.write_text(json.dumps(value))
    with pytest.raises(UserError, match="index"):
        Index.read(index.path)


def test_a_deep_line_of_an_index_is_one_sentence(index: Index) -> None:
    lines = index.path.read_bytes().splitlines()
    index.path.write_bytes(b"\n".join([lines[0], b"[" * 10**6, *lines[2:], b""]))
    with pytest.raises(UserError, match=r"levels"):
        Index.read(index.path)
