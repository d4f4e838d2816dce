"""Folders and archives are listed by the same rules for shards and for evaluation, and what is doubtful is refused."""

import copy
import gzip
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigtrain.data.sources.collection import ImageCollection
from bigtrain.data.sources.image_files import open_collection
from bigtrain.data.sources.opening import open_source
from bigtrain.data.sources.samples import SampleSet
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.errors import UserError
from tests.data.conftest import numbered_png
from tests.data.sets import device, hard_link, link, listed, read, tarred, zip_of
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
    options = ShardOptions(size=(16, 16), format="jpg", samples_per_shard=6)
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


def names_of(found: SampleSet | ImageCollection) -> list[str]:
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
