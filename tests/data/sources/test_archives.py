"""Archives of pictures are read where they lie, and what is doubtful in them is refused."""

import contextlib
import copy
import gzip
import pickle
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtrain.data.sources import zip as zips
from bigtrain.data.sources.collection import ImageCollection
from bigtrain.data.sources.image_files import open_collection
from bigtrain.data.sources.opening import open_source
from bigtrain.data.sources.pictures import PictureSet
from bigtrain.data.sources.zip import zip_members
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.errors import UserError
from tests.data.conftest import numbered_png
from tests.data.sets import device, hard_link, link, listed, read, shard, tarred, zip_of
from tests.data.write.test_foreign_shards import tar_of

PICTURES = [("train/dog/b.png", 0), ("train/dog/a.png", 1), ("train/cat/c.png", 2), ("test/eel/d.png", 3)]


LISTINGS = pytest.mark.parametrize("list_images", [listed, open_collection], ids=["for shards", "for evaluation"])


EXPECTED = {
    "train": [("train/cat/c.png", 0, 2), ("train/dog/a.png", 1, 1), ("train/dog/b.png", 1, 0)],
    "test": [("test/eel/d.png", 2, 3)],
}


@pytest.mark.parametrize("top", ["", "./", "whole set/"])
@pytest.mark.parametrize("form", ["tar", "deflated", "stored"])
def test_an_archive_is_read_where_it_lies(tmp_path: Path, form: str, top: str) -> None:
    members = [(top + name, numbered_png(number, 16)) for name, number in PICTURES]
    members += [(top + "notes.txt", b"no picture"), (top + ".hidden/x/y.png", b"")]
    if form == "tar":
        path = tar_of(tmp_path / "set.tar", members)
    else:
        top = top.removeprefix("./")
        members = [(name.removeprefix("./"), data) for name, data in members]
        path = zip_of(tmp_path / "set.zip", members, zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED)
    prefix = "" if top == "./" else top
    source = listed(path)
    assert (source.classes, source.left_out) == (("cat", "dog", "eel"), 1)
    assert read(source) == {
        split: [(prefix + name, label, numbered_png(number, 16)) for name, label, number in rows]
        for split, rows in EXPECTED.items()
    }


def test_an_archive_becomes_the_shards_of_its_folder(pictures: Path, tmp_path: Path) -> None:
    options = ShardOptions(size=16, format="jpg", samples_per_shard=6)
    names = sorted(str(path.relative_to(pictures)) for path in pictures.rglob("*.*"))
    contents = [(name, (pictures / name).read_bytes()) for name in names]
    tar_of(tmp_path / "set.tar", contents)
    zip_of(tmp_path / "set.zip", contents)
    written = []
    for where in (pictures, tmp_path / "set.tar", tmp_path / "set.zip"):
        out = tmp_path / f"out-{where.name}"
        write_shards(listed(where), out, options, workers=1, quiet=True)
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("../a/x.png", None, "would lie outside of its folder"),
        ("a/../../x.png", None, "would lie outside of its folder"),
        ("/a/x.png", None, "would lie outside of its folder"),
        ("a/x.png", link, "is not a plain file"),
        ("a/x.png", hard_link, "is not a plain file"),
        ("a/x.png", device, "is not a plain file"),
    ],
)
@LISTINGS
def test_a_tars_tricks_with_paths_are_refused(
    tmp_path: Path,
    list_images: Callable[[Path], object],
    name: str,
    change: Callable[[tarfile.TarInfo], None] | None,
    words: str,
) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        header = tarfile.TarInfo(name)
        if change:
            change(header)
        tar.addfile(header)
    with pytest.raises(UserError, match=words):
        list_images(tmp_path / "set.tar")


def zip_member(name: str, **facts: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    for fact, value in facts.items():
        setattr(member, fact, value)
    return member


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (zip_member("../a/x.png"), "would lie outside of its folder"),
        (zip_member("/a/x.png"), "would lie outside of its folder"),
        (zip_member("a/x.png", external_attr=0o120777 << 16), "is a link"),
        (zip_member("a/x.png", compress_type=zipfile.ZIP_BZIP2), "is encrypted or packed in a rare way"),
        (zip_member("a/notes.txt", compress_type=zipfile.ZIP_LZMA), "is encrypted or packed in a rare way"),
    ],
)
@LISTINGS
def test_a_zips_tricks_are_refused(
    tmp_path: Path, list_images: Callable[[Path], object], member: zipfile.ZipInfo, words: str
) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr(copy.copy(member), b"x")
    with pytest.raises(UserError, match=rf"set.zip: member {member.filename} {words}"):
        list_images(tmp_path / "set.zip")


@LISTINGS
def test_an_encrypted_member_is_refused(tmp_path: Path, list_images: Callable[[Path], object]) -> None:
    path = zip_of(tmp_path / "set.zip", [("cat/a.png", b"x")])
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"member cat/a.png is encrypted"):
        list_images(path)


@LISTINGS
@pytest.mark.parametrize("form", ["folder", "tar", "zip"])
def test_hidden_files_and_what_macos_packs_beside_each_are_no_images(
    tmp_path: Path, list_images: Callable[[Path], Any], form: str
) -> None:
    names = ["./cat/a.png", "cat/.b.png", ".trash/c.png", "__MACOSX/cat/a.png", "cat/__MACOSX/._a.png"]
    members = [(name, numbered_png(1)) for name in names]
    if form == "folder":
        for name, data in members:
            (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "set" / name).write_bytes(data)
    path = {"folder": lambda path, _: path, "tar": tar_of, "zip": zip_of}[form](tmp_path / "set", members)
    if form == "tar":
        path = path.rename(tmp_path / "set.tar")
    found = list_images(path)
    assert names_of(found) == ["cat/a.png"]


def names_of(found: PictureSet | ImageCollection) -> list[str]:
    if isinstance(found, ImageCollection):
        return [found.name(number) for number in range(found.count)]
    return [name for split in found.splits.values() for name in split.members.names]


@LISTINGS
def test_a_circle_of_links_is_refused(tmp_path: Path, list_images: Callable[[Path], object]) -> None:
    (tmp_path / "set/cat").mkdir(parents=True)
    (tmp_path / "set/cat/1.jpg").touch()
    (tmp_path / "set/cat/again").symlink_to(tmp_path / "set")
    with pytest.raises(UserError, match="cat/again: this link leads back"):
        list_images(tmp_path / "set")


@pytest.mark.parametrize("form", ["folder", "tar", "deflated", "stored"])
def test_a_source_is_read_by_other_processes_and_after_it_was_closed(tmp_path: Path, form: str) -> None:
    content = numbered_png(7)
    if form == "folder":
        path = tmp_path / "set"
        (path / "cat").mkdir(parents=True)
        (path / "cat/a.png").write_bytes(content)
    elif form == "tar":
        path = tar_of(tmp_path / "set.tar", [("cat/a.png", content)])
    else:
        packing = zipfile.ZIP_STORED if form == "stored" else zipfile.ZIP_DEFLATED
        path = zip_of(tmp_path / "set.zip", [("cat/a.png", content)], packing)
    source = open_source(path)
    ((name, location),) = source.members()
    assert len(location) == source.columns
    for one in (source, pickle.loads(pickle.dumps(source)), source):
        assert one.read(name, location) == content
        one.close()


@pytest.mark.parametrize("length", [512, 1024, 1536, 2048, 2100, 3072])
@LISTINGS
def test_a_tar_that_ends_early_is_refused_even_between_two_members(
    tmp_path: Path, list_images: Callable[[Path], object], length: int
) -> None:
    data = tarred([(f"cat/{n}.png", b"x" * 100) for n in range(3)])
    (tmp_path / "set.tar").write_bytes(data[:length])
    with pytest.raises(UserError, match=r"set.tar: after .*truncated or damaged"):
        list_images(tmp_path / "set.tar")


def test_a_zip_bomb_is_refused_before_it_takes_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zip_of(tmp_path / "set.zip", [("cat/bomb.png", bytes(10**6))])
    assert path.stat().st_size < 2000
    with monkeypatch.context() as patch:
        patch.setattr(zips, "MOST_BYTES", 10**5)
        with pytest.raises(UserError, match=r"cat/bomb.png: the picture is broken: it unpacks to 1000000 bytes"):
            shard(path, tmp_path / "out")
    lying = path.read_bytes().replace((10**6).to_bytes(4, "little"), (10**3).to_bytes(4, "little"))
    path.write_bytes(lying)
    with pytest.raises(UserError, match=r"does not unpack to the 1000 bytes that the zip says"):
        shard(path, tmp_path / "out")


def test_a_zip_that_claims_more_packed_bytes_than_there_is_memory_is_refused(tmp_path: Path) -> None:
    path = zip_of(tmp_path / "set.zip", [("cat/a.png", bytes(1000))])
    data = bytearray(path.read_bytes())
    begin = data.index(b"PK\x01\x02")
    data[begin + 20 : begin + 24] = (2**32 - 2).to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"cat/a.png: the picture is broken: it unpacks to 1000 bytes from 4294967294"):
        shard(path, tmp_path / "out")


def test_damage_within_a_zip_is_named(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(1000)
    path = zip_of(tmp_path / "set.zip", [("cat/a.png", content)], zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(content) + 500] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"set.zip: cat/a.png: the picture is broken: its checksum in the archive"):
        shard(path, tmp_path / "out")
    path.write_bytes(data[:-10])
    with pytest.raises(UserError, match=r"set.zip"):
        shard(path, tmp_path / "out")


@LISTINGS
@pytest.mark.parametrize("pack", [tar_of, zip_of])
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_in_an_archive_is_refused(
    tmp_path: Path, list_images: Callable[[Path], object], pack: Callable[..., Path]
) -> None:
    path = pack(tmp_path / "set.tar", [("cat/a.png", b"1"), ("cat/a.png", b"2")])
    with pytest.raises(UserError, match=r"cat/a.png is there twice"):
        list_images(path)


@LISTINGS
def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path, list_images: Callable[[Path], object]) -> None:
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(tarred([("cat/a.png", b"1")])))
    with pytest.raises(UserError, match=r"unpack it to a plain .tar"):
        list_images(tmp_path / "set.tar.gz")


def test_deflated_members_are_those_of_zlib(tmp_path: Path) -> None:
    """The reader unpacks by itself, without a table of all members in each worker."""
    content = bytes(range(256)) * 50
    path = zip_of(tmp_path / "set.zip", [("cat/a.png", content)])
    (split,) = listed(path).splits.values()
    assert split.members.read(0) == content
    assert split.members.locations[0, 4] == zlib.crc32(content)


def as_zipfile_sees_them(path: Path) -> list[tuple[str, int, int, int, int, int]]:
    with zipfile.ZipFile(path) as archive:
        return [
            (one.filename, one.header_offset, one.file_size, one.compress_size, one.CRC, one.compress_type)
            for one in archive.infolist()
        ]


def members_of(path: Path) -> list[tuple[str, int, int, int, int, int]]:
    with path.open("rb") as file:
        return [member[:6] for member in zip_members(path, file)]


@pytest.mark.parametrize("zip64", [False, True])
@pytest.mark.parametrize("before", [b"", b"#!a program that unpacks what follows" + b"PK\x05\x06"])
@pytest.mark.parametrize("comment", [b"", b"c" * 65535])
def test_a_zips_members_are_those_that_zipfile_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zip64: bool, before: bytes, comment: bytes
) -> None:
    if zip64:
        monkeypatch.setattr(zipfile, "ZIP64_LIMIT", 50)
        monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 2)
    path = tmp_path / "set.zip"
    path.write_bytes(before)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = comment
        archive.mkdir("cat")
        for name, packing in (("cat/ä ü.png", zipfile.ZIP_DEFLATED), ("cat/b.png", zipfile.ZIP_STORED), ("c", 0)):
            member = zipfile.ZipInfo(name)
            member.extra, member.comment, member.compress_type = b"\xfe\xca\x04\x00more", b"said of it", packing
            archive.writestr(member, bytes(range(200)) * 3)
    assert (b"PK\x06\x06" in path.read_bytes()) == zip64
    assert members_of(path) == as_zipfile_sees_them(path)


def test_no_damage_to_a_zips_directory_is_more_than_one_sentence(tmp_path: Path) -> None:
    whole = zip_of(tmp_path / "whole.zip", [(f"cat/{number}.png", b"x") for number in range(3)]).read_bytes()
    begin = whole.index(b"PK\x01\x02")
    for place in range(begin, len(whole)):
        for value in (0x00, 0x7F, 0xFF):
            (tmp_path / "set.zip").write_bytes(whole[:place] + bytes([value]) + whole[place + 1 :])
            with contextlib.suppress(UserError):
                members_of(tmp_path / "set.zip")
    (tmp_path / "set.zip").write_bytes(whole[40:])
    with pytest.raises(UserError, match=r"set.zip: the zip is damaged \(its directory lies before its beginning"):
        members_of(tmp_path / "set.zip")
    large = struct.pack("<2H2Q", 1, 16, 2**64 - 1, 2**64 - 1)
    entry = bytearray(whole[begin : begin + 46 + len("cat/0.png")])
    entry[20:28], entry[30:32] = b"\xff" * 8, struct.pack("<H", len(large))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1, 1, len(entry) + len(large), 0, 0)
    (tmp_path / "set.zip").write_bytes(entry + large + end)
    with pytest.raises(UserError, match="a member of it is larger than any file"):
        members_of(tmp_path / "set.zip")


def test_listing_a_zip_takes_little_memory_for_each_member(tmp_path: Path) -> None:
    peaks = []
    for count in (1000, 3000):
        members = [(f"train/n{n % 100:08d}/n{n % 100:08d}_{n}.JPEG", b"") for n in range(count)]
        path = zip_of(tmp_path / f"{count}.zip", members, zipfile.ZIP_STORED)
        tracemalloc.start()
        listed(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 2000 < 400
