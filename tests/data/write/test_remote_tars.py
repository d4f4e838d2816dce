"""Tars at URLs are indexed where they lie: by braces, lists, and data sets of the Hub, of which only parts are fetched."""

import hashlib
import io
import json
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data import remote
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.data.read.verification import ShardVerification
from bigtrain.data.remote import Origin, RemoteOptions
from bigtrain.data.splits import open_index
from bigtrain.data.write import remote_tars
from bigtrain.data.write.remote_tars import RemoteSource, expanded
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import make_numbered_shards, write_tar
from tests.data.faulty_server import FaultyServer, now_and_then, serving

SAMPLES = 3


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("x-{00009..10}.tar", ["x-00009.tar", "x-00010.tar"]),
        ("x-{00000..3}.tar", [f"x-0000{n}.tar" for n in range(4)]),
        ("x-{0..10}.tar", [f"x-{n}.tar" for n in range(11)]),
        ("{a,b}-{1..2}.tar", ["a-1.tar", "a-2.tar", "b-1.tar", "b-2.tar"]),
        ("x.tar", ["x.tar"]),
    ],
)
def test_braces_are_expanded_as_a_shell_does(text: str, names: list[str]) -> None:
    assert expanded(text) == names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x-{3..1}.tar", r"\{3\.\.1\} counts 3 \.\. 1"),
        ("x-{0..99999999999}.tar", "counts 0"),
        ("x-{0..99999}-{0..99999}.tar", "names 10000000000 tars"),
        ("x-{a}.tar", "is neither a range"),
    ],
)
def test_braces_that_name_too_much_or_nothing_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        expanded(text)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """With time-outs of 0.3 s."""
    monkeypatch.setattr(remote_tars, "Origin", partial(Origin, options=RemoteOptions(timeout_s=0.3)))


def photograph(number: int) -> bytes:
    """A JPEG of noise, 300 x 200, much larger than what tells its size."""
    pixels = np.random.default_rng(number).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="JPEG", quality=95)
    return file.getvalue()


def tars(folder: Path, names: list[str], samples: int = SAMPLES) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        content = [
            {"__key__": f"{number}_{n}", "jpg": photograph(10 * number + n), "cls": str(n).encode()}
            for n in range(samples)
        ]
        write_tar(folder / name, content)
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return tars(tmp_path / "served", ["train-000000.tar", "train-000001.tar"])


@pytest.fixture
def here(shards: Path) -> Index:
    """The same tars as they are indexed on this machine."""
    main([str(shards), "--index-only", "--workers", "1"])
    return Index.read(shards / "train.json")


def indexed(out: Path, source: str, *words: str) -> Index:
    main([source, str(out), "--index-only", "--workers", "1", *words])
    return Index.read(out / "train.json")


def transferred(server: FaultyServer) -> float:
    """What part of all tars was fetched."""
    fetched = sum(count for path, count in server.bodies.items() if path.endswith(".tar"))
    return fetched / sum(path.stat().st_size for path in server.folder.rglob("*.tar"))


def contents(index: Index) -> tuple[list[int], list[str], list[dict[str, list[int]]]]:
    """Labels, keys and offsets of an index, whatever it knows the shards by."""
    offsets = [{name: columns[0].tolist() for name, columns in shard.members.items()} for shard in index.shards]
    return index.labels.tolist(), [key for shard in index.shards for key in shard.keys], offsets


def test_a_pattern_and_lists_give_the_samples_that_the_copies_here_would(
    shards: Path, here: Index, tmp_path: Path, impatient: None
) -> None:
    (shards / "list.txt").write_text("# shards\ntrain-{000000..000001}.tar\n\n")
    with serving(shards, now_and_then(3, share=0.2)) as server:
        (tmp_path / "here.txt").write_text(f"{server.url}/train-000001.tar\n{server.url}/train-000000.tar\n")
        for number, source in enumerate(
            (f"{server.url}/train-{{000000..1}}.tar", f"{server.url}/list.txt", str(tmp_path / "here.txt"))
        ):
            found = indexed(tmp_path / f"out{number}", source)
            assert contents(found) == contents(here)
            assert found.image_size == (200, 300)
            assert [shard.name for shard in found.shards] == [f"{server.url}/train-00000{n}.tar" for n in (0, 1)]


def test_a_small_part_of_photographs_is_fetched_and_all_of_small_pictures_in_few_requests(tmp_path: Path) -> None:
    tars(tmp_path / "large", ["train-000000.tar"], samples=20)
    make_numbered_shards([3000], tmp_path / "small")
    with serving(tmp_path / "large") as server:
        indexed(tmp_path / "out", f"{server.url}/train-000000.tar")
        assert transferred(server) < 0.35  # of photographs of 60 kB; of larger ones less
    with serving(tmp_path / "small") as server:
        indexed(tmp_path / "out2", f"{server.url}/train-000000.tar")
        assert 0.99 < transferred(server) < 1.01
        assert server.requests["train-000000.tar"] < 20


def large_png(exif_behind: bytes = b"") -> bytes:
    """Of noise, 600 x 400, 0.7 MB; `exif_behind`: a chunk between its pixels and its end."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)).save(file, format="PNG")
    content = file.getvalue()
    assert content[-12:-4] == bytes(4) + b"IEND"
    return content[:-12] + exif_behind + content[-12:]


def test_of_large_pngs_the_ends_are_fetched_and_all_where_they_may_be_turned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    body = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = len(body[4:]).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big")
    for name, content in (("upright", large_png()), ("turned", large_png(chunk))):
        (tmp_path / name).mkdir()
        write_tar(tmp_path / name / "train-000000.tar", [{"__key__": str(n), "png": content} for n in range(4)])
    with serving(tmp_path / "upright") as server:
        assert indexed(tmp_path / "out", f"{server.url}/train-000000.tar", "--labels", "none").image_size == (400, 600)
        assert transferred(server) < 0.3
    with serving(tmp_path / "turned") as server:
        assert indexed(tmp_path / "out2", f"{server.url}/train-000000.tar", "--labels", "none").image_size == (600, 400)
        assert transferred(server) > 0.99


def test_shards_without_a_sha256_are_held_to_their_outline(shards: Path, here: Index, tmp_path: Path) -> None:
    with serving(shards) as server:
        found = indexed(tmp_path / "out", f"{server.url}/train-{{000000..1}}.tar")
        assert all(shard.outlined for shard in found.shards)
        again = indexed(tmp_path / "again", f"{server.url}/train-{{000000..1}}.tar")
        assert found.fingerprint == again.fingerprint != here.fingerprint
        assert "sha256" not in json.loads((tmp_path / "out/train.json").read_text())["shards"][0]
        batch, failures = Reader(found).read(np.arange(2 * SAMPLES))
        assert not failures
        assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2]
        main([str(tmp_path / "out/train.json"), "--verify", "--workers", "1"])
        kept = [ShardCache(found).folder / shard.sha256 for shard in found.shards]
        assert [path.read_bytes() for path in kept] == [path.read_bytes() for path in sorted(shards.glob("*.tar"))]
        verification = ShardVerification(found)
        verification.begin([0, 1])
        verification.check([0, 1])
        kept[1].write_bytes(kept[1].read_bytes()[:-1] + b"x")
        with pytest.raises(UserError, match="was replaced while it was read"):
            verification.check([0, 1])


def test_a_tar_that_was_replaced_at_its_url_is_refused(shards: Path, tmp_path: Path) -> None:
    with serving(shards) as server:
        found = indexed(tmp_path / "out", f"{server.url}/train-000000.tar")
        data = bytearray((shards / "train-000000.tar").read_bytes())
        offset = int(found.shards[0].members["jpg"][0][1])
        data[offset + 700] ^= 1  # of the same size and headers, but another picture
        (shards / "train-000000.tar").write_bytes(data)
        with pytest.raises(
            UserError, match=r"train-000000.tar: the shard is not the one that .*train.json was made from"
        ):
            ShardCache(found).open(0)
        assert not [path for path in ShardCache(found).folder.iterdir() if path.name != "lock"]


def test_an_outline_is_no_hash_of_a_shard_on_this_machine(shards: Path, here: Index) -> None:
    value = json.loads(here.path.read_text())
    value["shards"][0]["outline"] = value["shards"][0].pop("sha256")
    here.path.write_text(json.dumps(value))
    with pytest.raises(UserError, match=r"train-000000.tar has no sha256, as all shards on this machine have"):
        Index.read(here.path)


@pytest.mark.parametrize("fault", ["", "all"])
def test_where_no_parts_are_given_all_is_fetched_and_said(
    fault: str, shards: Path, here: Index, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(shards, lambda path, before: fault, ranges=bool(fault)) as server:
        found = indexed(tmp_path / "out", f"{server.url}/train-{{000000..1}}.tar")
    assert found.fingerprint == here.fingerprint  # by their sha256, as all bytes were seen
    said = capsys.readouterr().err
    assert said.count("gives no parts of files: 2 tars are fetched whole, once, and not kept") == 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("absent", r"train-000001.tar: a part of the file cannot be fetched: HTTP 404 .*\(is the name right\?\)"),
        ("lie", "train-000001.tar: after .*the shard is truncated or damaged"),
        ("trickle", r"train-000001.tar: .* in 7 attempts; the last ended with: only \d+ bytes came in 0.3 s"),
        ("stall", r"train-000001.tar: .* in 7 attempts; the last ended with: .*timed out"),
        ("truncate", r"train-000001.tar: .* in 7 attempts; the last ended with: "),
    ],
)
def test_what_a_server_may_do_is_one_sentence(
    fault: str, words: str, shards: Path, tmp_path: Path, impatient: None
) -> None:

    def choose(path: str, before: int) -> str:
        return fault if path.endswith("1.tar") else ""

    with serving(shards, choose) as server, pytest.raises(UserError, match=words) as error:
        indexed(tmp_path / "out", f"{server.url}/train-{{000000..1}}.tar")
    assert str(error.value).count("\n") == 0
    assert not (tmp_path / "out/train.json").exists()


@pytest.mark.parametrize("ends_after", [700, 20_000, 150_000])
def test_a_truncated_tar_is_told_from_a_whole_one(ends_after: int, shards: Path, tmp_path: Path) -> None:
    path = shards / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:ends_after])
    damaged = pytest.raises(UserError, match=r"train-000001.tar: .*: the shard is truncated or damaged")
    with serving(shards) as server, damaged:
        indexed(tmp_path / "out", f"{server.url}/train-{{000000..1}}.tar")


def test_a_login_goes_where_the_user_said_and_not_where_a_list_points(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("default login ann password secret\n")
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with serving(shards) as there, serving(shards) as other:
        (shards / "list.txt").write_text(f"{there.url}/train-000000.tar\n{other.url}/train-000001.tar\n")
        indexed(tmp_path / "out", f"{there.url}/list.txt")
        assert there.logins == {"Basic YW5uOnNlY3JldA=="}
        assert other.logins == {None}
        monkeypatch.setenv("BIGTRAIN_LOGINS", other.url)
        indexed(tmp_path / "out2", f"{there.url}/list.txt")
        assert other.logins == {None, "Basic YW5uOnNlY3JldA=="}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FaultyServer]:
    """A Hub that has one data set, with the folders data/train and data/test."""
    commit, names = "c" * 40, ["data/train/00000.tar", "data/train/00001.tar", "data/test/00000.tar"]
    folder = tars(tmp_path / f"hub/datasets/owner/name/resolve/{commit}", names)
    siblings = [{"rfilename": "README.md", "size": 3}]
    for name in names:
        data = (folder / name).read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        siblings.append(
            {"rfilename": name, "size": len(data), "lfs": {"sha256": digest, "size": len(data), "pointerSize": 1}}
        )
    api = tmp_path / "hub/api/datasets/owner/name"
    api.parent.mkdir(parents=True)
    api.write_text(json.dumps({"id": "owner/name", "sha": commit, "siblings": siblings}))
    with serving(tmp_path / "hub") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


def test_a_data_set_of_the_hub_is_indexed_by_parts_of_its_tars(hub: FaultyServer, tmp_path: Path) -> None:
    folder = hub.folder / f"datasets/owner/name/resolve/{'c' * 40}/data/train"
    main([str(folder), "--index-only", "--workers", "1"])
    for source in ("hf://datasets/owner/name", "hf://owner/name/data"):
        hub.bodies.clear()
        found = indexed(tmp_path / source.rpartition("/")[2], source)
        assert transferred(hub) < 0.6
        assert found.fingerprint == Index.read(folder / "train.json").fingerprint
        assert found.shards[0].name == f"hf://datasets/owner/name@{'c' * 40}/data/train/00000.tar"
        assert Index.read(found.folder / "test.json").samples == SAMPLES
    batch, failures = Reader(found).read(np.arange(2 * SAMPLES))
    assert not failures
    assert batch["label"].tolist() == [0, 1, 2, 0, 1, 2]


def test_what_is_not_on_the_hub_is_one_sentence(hub: FaultyServer, tmp_path: Path) -> None:
    for source, words in (
        ("hf://datasets/owner/other", "the Hub does not list it"),
        ("hf://datasets/owner", "not of the form hf://datasets/OWNER/NAME"),
        ("hf://datasets/owner/name/photos", "no tars here"),
    ):
        with pytest.raises(UserError, match=words) as error:
            indexed(tmp_path / "out", source)
        assert "\n" not in str(error.value)


def test_mistakes_are_one_sentence(shards: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("notes.md\n")
    (tmp_path / "paths.txt").write_text("x.tar\n")
    for words, message in (
        (["https://host/x.tar", "--index-only"], "OUT, the folder of the index, is missing"),
        (["https://host/x.tar", str(tmp_path / "out")], "pictures at a URL are fetched first, .* --index-only"),
        ([str(tmp_path / "list.txt"), str(tmp_path / "out"), "--index-only"], "'notes.md' is not the name of a tar"),
        ([str(tmp_path / "paths.txt"), str(tmp_path / "out"), "--index-only"], "'x.tar' is not a URL"),
        (
            ["https://me:secret@host/x.tar", str(tmp_path / "out"), "--index-only"],
            "https://host/x.tar: give the login in",
        ),
        (["ftp://host/x.tar", str(tmp_path / "out"), "--index-only"], "ftp:// cannot be read"),
    ):
        with pytest.raises(UserError, match=message):
            main([*words, "--workers", "1"])


@pytest.mark.parametrize("where", ["x-{00000..3}.tar", "https://host/x-{00000..3}.tar"])
def test_a_pattern_where_an_index_is_wanted_says_how_to_make_one(where: str) -> None:
    with pytest.raises(UserError, match=r"data.train: .*x-.*: training reads an index of such tars: .*--index-only"):
        open_index(where, "train", "data.train")


def test_a_list_is_a_source_and_a_folder_is_none(tmp_path: Path) -> None:
    assert RemoteSource.parse(str(tmp_path)) is None
    assert RemoteSource.parse(str(tmp_path / "absent.txt")) is None


def test_a_server_that_never_answers_is_waited_for_audibly_and_not_for_long(
    shards: Path, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(remote, "SAY_AFTER_S", 0.05)
    monkeypatch.setattr(remote, "_said_at", {})
    with serving(shards, lambda path, before: "stall") as server:
        with pytest.raises(UserError, match=r"could not be fetched in 2 attempts.*timed out.*the address, or copy"):
            indexed(tmp_path / "out", f"{server.url}/train-{{000000..000001}}.tar")
        assert sum(server.requests.values()) == 2
        assert capsys.readouterr().err.count(f"waiting for {server.url}: no answer yet") == 1


def test_a_server_that_falls_silent_ends_the_indexing_at_the_first_tar(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(Origin, options=RemoteOptions(timeout_s=0.3, retries=2))
    monkeypatch.setattr(remote_tars, "Origin", few)
    with serving(shards, lambda path, before: "stall" if before or path.endswith("1.tar") else "") as server:
        with pytest.raises(
            UserError, match=r"train-000000\.tar: a part of the file could not be fetched in 3 attempts"
        ):
            indexed(tmp_path / "out", f"{server.url}/train-{{000000..000001}}.tar")
        assert server.requests["train-000001.tar"] == 0
