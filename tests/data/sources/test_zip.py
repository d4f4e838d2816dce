"""A zip's members are those that zipfile finds, in little memory, and no damage or bomb in one does harm."""

import contextlib
import struct
import tracemalloc
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.sources import zip as zips
from bigtrain.data.sources.zip import zip_members
from bigtrain.errors import UserError
from tests.data.sets import listed, shard, zip_of

PICTURES = [("train/dog/b.png", 0), ("train/dog/a.png", 1), ("train/cat/c.png", 2), ("test/eel/d.png", 3)]


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
            member.extra, member.comment, member.compress_type = b"\xfe\xca\x04\x00more", b"a comment", packing
            archive.writestr(member, bytes(range(200)) * 3)
    assert (b"PK\x06\x06" in path.read_bytes()) == zip64
    assert members_of(path) == as_zipfile_sees_them(path)


def test_no_damage_to_a_zips_directory_is_more_than_one_sentence(tmp_path: Path) -> None:
    whole = zip_of(tmp_path / "whole.zip", [(f"cat/{number}.png", b"x") for number in range(3)]).read_bytes()
    begin = whole.index(b"PK\x01\x02")
    for position in range(begin, len(whole)):
        for value in (0x00, 0x7F, 0xFF):
            (tmp_path / "set.zip").write_bytes(whole[:position] + bytes([value]) + whole[position + 1 :])
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
