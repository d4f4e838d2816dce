"""Shards that others made: whole ones are indexed as webdataset reads them, doubtful ones are refused by name."""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from bigtrain.data.decode import decode
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write.foreign_shards import index_shards
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.data.write.verify import verify
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import make_numbered_shards, numbered_png, write_tar
from tests.data.field_shards import png
from tests.data.sets import OLD_FOLDERS

IMAGE = numbered_png(0)


def index(folder: Path, workers: int = 0) -> Index:
    (path,) = index_shards(folder, workers=workers, quiet=True)
    return Index.read(path)


def tar_of(path: Path, members: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return path


def refused(folder: Path, words: str) -> None:
    with pytest.raises(UserError, match=words):
        index_shards(folder, workers=0, quiet=True)
    assert not list(folder.glob("*.json"))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_samples_are_those_that_webdataset_reads(tmp_path: Path, form: int) -> None:
    long = "folder/" + "n" * 180
    members = [
        ("./b/0.JPG", b""),
        ("./b/0.cls", b"2\n"),
        ("__notes__", b"not a sample"),
        (f"{long}.png", IMAGE),
        (f"{long}.cls", b"0"),
        (f"{long}.caption.txt", b"words"),
    ]
    if form == tarfile.USTAR_FORMAT:
        members = [(name.replace(long, "short"), data) for name, data in members]
    path = tar_of(tmp_path / "train-0.tar", members, form)
    found = index(tmp_path)
    theirs = list(wds.WebDataset(str(path), shardshuffle=False))
    (shard,) = found.shards
    assert list(shard.keys) == [sample["__key__"] for sample in theirs]
    data = path.read_bytes()
    for number, sample in enumerate(theirs):
        ours = {
            extension: data[offsets[number] : offsets[number] + sizes[number]]
            for extension, (offsets, sizes) in shard.members.items()
            if offsets[number] >= 0
        }
        assert ours == {name: value for name, value in sample.items() if not name.startswith("__")}
    assert found.labels.tolist() == [2, 0]
    assert found.classes == ("0", "1", "2")


def test_workers_and_runs_give_the_same_bytes(tmp_path: Path) -> None:
    make_numbered_shards([3, 0, 5, 1], tmp_path)
    first = (tmp_path / "train.json").read_bytes()
    (tmp_path / "train.json").unlink()
    assert index(tmp_path, workers=3).samples == 9
    assert (tmp_path / "train.json").read_bytes() == first


def test_our_own_shards_get_the_index_that_the_writer_gave(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_shards(list_by_class(pictures), out, ShardOptions((16, 16), "jpg", 7), workers=1, quiet=True)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.glob("*.json")}
    assert len(before) == 2
    index_shards(out, workers=0, quiet=True)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in before} == before
    written = Index.read(out / "train.json")
    (out / "train.json").unlink()
    index_shards(out, workers=0, quiet=True)  # the class names come from test.json, which is still there
    found = Index.read(out / "train.json")
    assert found.fingerprint == written.fingerprint
    assert [shard.to_json() for shard in found.shards] == [shard.to_json() for shard in written.shards]
    assert found.image_size == written.image_size == (16, 16)


def test_an_index_may_lie_elsewhere(tmp_path: Path) -> None:
    make_numbered_shards([3], tmp_path / "shards")
    (path,) = index_shards(tmp_path / "shards", tmp_path / "indexes", workers=0, quiet=True)
    assert path == tmp_path / "indexes/train.json"
    Index.read(path).check_files()


def test_splits_are_told_by_the_names(tmp_path: Path) -> None:
    for name in ("my-train-000.tar", "my-train-001.tar", "val-0.tar"):
        tar_of(tmp_path / name, [("0.png", IMAGE), ("0.cls", b"1")])
    paths = index_shards(tmp_path, workers=0, quiet=True)
    assert [path.name for path in paths] == ["my-train.json", "val.json"]
    assert Index.read(paths[0]).samples == 2


def test_class_names_come_from_classes_txt(tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", [("0.png", IMAGE), ("0.cls", b"1")])
    (tmp_path / "classes.txt").write_text("cat\ndog\neel\n")
    found = index(tmp_path)
    assert found.classes == ("cat", "dog", "eel")
    assert found.class_counts == (0, 1, 0)


def test_classes_are_numbered_over_all_splits(tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", [("0.png", IMAGE), ("0.cls", b"1")])
    tar_of(tmp_path / "val-0.tar", [("0.png", IMAGE), ("0.cls", b"3")])
    for path in index_shards(tmp_path, workers=0, quiet=True):
        assert Index.read(path).classes == ("0", "1", "2", "3")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    """Also where one member ends and the next would begin, where Python's tarfile sees a shorter, whole archive."""
    make_numbered_shards([4], tmp_path / "whole")
    data = (tmp_path / "whole/train-000000.tar").read_bytes()
    archive = len(data.rstrip(b"\0"))
    end = -(-archive // 512) * 512
    (tmp_path / "cut").mkdir()
    path = tmp_path / "cut/train-000000.tar"
    for length in [*range(0, end + 1024, 512), *range(100, end, 700), end + 1023]:
        path.write_bytes(data[:length])
        refused(tmp_path / "cut", r"train-000000\.tar: .*truncated")
    path.write_bytes(data[: end + 1024])
    assert index(tmp_path / "cut").samples == 4


def test_a_damaged_header_is_refused(tmp_path: Path) -> None:
    found = make_numbered_shards([4], tmp_path)
    (tmp_path / "train.json").unlink()
    offsets, _ = found.shards[0].members["png"]
    path = tmp_path / "train-000000.tar"
    data = bytearray(path.read_bytes())
    data[int(offsets[2]) - 400] ^= 1
    path.write_bytes(data)
    refused(tmp_path, r"train-000000\.tar: after member 0000\d\.\w+: .*damaged")


def test_joined_tars_are_refused(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "train-0.tar", [("0.png", IMAGE), ("0.cls", b"1")])
    path.write_bytes(path.read_bytes() * 2)
    refused(tmp_path, r"train-0\.tar: there is more after the archive's end")


@pytest.mark.parametrize("name", ["train-0.tar.gz", "train-0.tgz", "train-0.tar", "train-0.tar.zst"])
def test_compressed_tars_are_refused(tmp_path: Path, name: str) -> None:
    path = tar_of(tmp_path / "plain", [("0.png", IMAGE * 3), ("0.cls", b"1")])
    (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()) + bytes(1024))
    refused(tmp_path, rf"{name}: .*compressed tars")


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("0.png", IMAGE)], r"sample 0 has the members 0\.png, but needs"),
        ([("0.cls", b"1")], r"sample 0 has the members 0\.cls, but needs one image"),
        (
            [("0.png", IMAGE), ("0.jpg", IMAGE), ("0.cls", b"1")],
            r"0\.jpg and 0\.png could both be the image of sample 0, .*--image-member jpg",
        ),
        (
            [("0.a.png", IMAGE), ("0.b.png", IMAGE), ("0.cls", b"1")],
            r"0\.a\.png and 0\.b\.png could both be the image of sample 0, .* up to the first dot, .*--image-member a\.png",
        ),
        ([("0.gif", IMAGE), ("0.cls", b"1")], "needs one image"),
        ([("0.png", IMAGE), ("0.cls", b"1"), ("0.PNG", IMAGE)], r"member 0\.PNG: the key 0 occurs twice"),
        (
            [("README.md", b"hello"), ("LICENSE", b"words")],
            "sample README has the members README.md, but needs one image",
        ),
        (
            [*((f"0.{number}.jpg", IMAGE) for number in range(4000)), ("1.jpg", IMAGE)],
            r"0\.0\.jpg and 0\.1\.jpg could both be",
        ),
        (
            [(f"0.{number}.txt", b"") for number in range(4000)] + [("0.cls", b"1")],
            r"has the members 0\.0\.txt, 0\.1\.txt, 0\.2\.txt and 3998 more, but",
        ),
        (
            [("0.png", IMAGE), ("0.cls", b"1"), ("1.png", IMAGE), ("1.cls", b"1"), ("0.png", IMAGE)],
            r"member 0\.png: the key 0 occurs twice",
        ),
        ([("7.png", IMAGE), ("7.cls", b"-1")], r"member 7\.cls: '-1' is neither a decimal class number nor the name"),
        (
            [("6.png", IMAGE), ("6.cls", b"3"), ("7.png", IMAGE), ("7.cls", b"cat")],
            r"some of its labels are names \('cat'\) and others numbers",
        ),
        ([("7.png", IMAGE), ("7.cls", b"1000000")], r"member 7\.cls: label 1000000 is out of range"),
        ([], "the train shards hold no samples"),
    ],
)
def test_doubtful_members_are_refused(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    tar_of(tmp_path / "train-0.tar", members)
    refused(tmp_path, words)


def test_a_label_beyond_the_class_names_is_refused(tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", [("0.png", IMAGE), ("0.cls", b"1"), ("1.png", IMAGE), ("1.cls", b"2")])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    refused(tmp_path, r"train-0\.tar: member 1\.cls: label 2 is out of range: .*classes\.txt has 2 classes")


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "train-0.tar"
    with tarfile.open(path, "w") as tar:
        link = tarfile.TarInfo("0.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    refused(tmp_path, r"member 0\.png is not a plain file")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda folder: folder.rmdir(), "there is no such folder"),
        (lambda folder: None, "no tars here"),
        (lambda folder: (folder / "pictures.tar").touch(), r"pictures\.tar: the name does not say its split"),
    ],
)
def test_a_folder_without_named_tars_is_refused(tmp_path: Path, prepare: Callable[[Path], object], words: str) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    prepare(folder)
    with pytest.raises(UserError, match=words):
        index_shards(folder, workers=0, quiet=True)


def test_a_broken_image_is_indexed_and_left_to_the_stream(tmp_path: Path) -> None:
    samples = [{"__key__": f"{n}", "png": data, "cls": b"0"} for n, data in enumerate([IMAGE, b"no image", IMAGE])]
    write_tar(tmp_path / "train-0.tar", samples)
    assert (index(tmp_path).samples, index(tmp_path).image_size) == (3, (4, 4))


@pytest.mark.parametrize("before", ["", "{}", '{"format": "bigtrain-index", "version": 0}'])
def test_an_index_that_cannot_be_read_is_replaced(tmp_path: Path, before: str) -> None:
    make_numbered_shards([4], tmp_path)
    (tmp_path / "train.json").write_text(before)
    assert index(tmp_path).samples == 4


def test_an_index_is_renewed_when_its_shards_changed(tmp_path: Path) -> None:
    before = make_numbered_shards([4], tmp_path)
    make_numbered_shards([5], tmp_path)
    after = index(tmp_path)
    assert (before.samples, after.samples) == (4, 5)
    assert before.fingerprint != after.fingerprint
    assert after.shards[0].size == (tmp_path / "train-000000.tar").stat().st_size
    assert np.array_equal(after.labels, np.arange(5) % 5)


# Labels from elsewhere


def with_json(folder: Path, **contents: list[object]) -> Path:
    """Tars of a split each, whose samples' json members are `contents`."""
    folder.mkdir(exist_ok=True)
    for split, values in contents.items():
        samples = [
            {
                "__key__": f"{n}",
                "png": numbered_png(n),
                "json": value if isinstance(value, bytes) else json.dumps(value).encode(),
            }
            for n, value in enumerate(values)
        ]
        write_tar(folder / f"{split}-0.tar", samples)
    return folder


def test_labels_are_read_from_a_field_of_json(tmp_path: Path) -> None:
    folder = with_json(tmp_path, train=[{"kind": 2}, {"kind": 0}], test=[{"kind": 1, "other": "x"}])
    indices = {path.stem: Index.read(path) for path in index_shards(folder, workers=0, quiet=True, labels="json:kind")}
    assert indices["train"].classes == indices["test"].classes == ("0", "1", "2")
    assert (indices["train"].labels.tolist(), indices["test"].labels.tolist()) == ([2, 0], [1])


def test_names_for_labels_have_one_number_in_all_splits(tmp_path: Path) -> None:
    folder = with_json(tmp_path, train=[{"kind": "dog"}, {"kind": "cat"}], test=[{"kind": "eel"}, {"kind": "dog"}])
    test, train = (Index.read(path) for path in index_shards(folder, workers=2, quiet=True, labels="json:kind"))
    assert train.classes == test.classes == ("cat", "dog", "eel")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 0], [2, 1])
    (folder / "classes.txt").write_text("eel\ndog\ncat\n")
    test, train = (Index.read(path) for path in index_shards(folder, workers=0, quiet=True, labels="json:kind"))
    assert (train.classes, train.labels.tolist(), test.labels.tolist()) == (("eel", "dog", "cat"), [1, 2], [0, 1])
    (folder / "classes.txt").write_text("eel\ndog\ncat\neel\n")
    with pytest.raises(UserError, match=r"classes\.txt: the class 'eel' stands in it twice"):
        index_shards(folder, workers=0, quiet=True, labels="json:kind")
    (folder / "classes.txt").write_text("eel\ndog\n")
    with pytest.raises(UserError, match=r"classes\.txt: does not list the class 'cat'"):
        index_shards(folder, workers=0, quiet=True, labels="json:kind")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([{"kind": 1}, {"sort": 1}], r"1\.json: its field 'kind' is None"),
        ([{"kind": True}], r"0\.json: its field 'kind' is True"),
        ([{"kind": -1}], r"0\.json: its field 'kind' is -1, which is not the number"),
        ([b"{"], r"0\.json: it is not JSON"),
        ([b"[" * 100_000], r"0\.json: it is not JSON"),
        ([{"kind": "cat"}, {"kind": 1}], r"some of its labels are names \('cat'\) and others numbers"),
    ],
)
def test_a_json_without_a_label_is_named(tmp_path: Path, values: list[object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        index_shards(with_json(tmp_path, train=values), workers=0, quiet=True, labels="json:kind")


def test_a_number_in_json_beyond_the_class_names_is_named_there(tmp_path: Path) -> None:
    folder = with_json(tmp_path, train=[{"kind": 0}, {"kind": 2}])
    (folder / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(UserError, match=r"train-0\.tar: member 1\.json: label 2 is out of range: .* has 2 classes"):
        index_shards(folder, workers=0, quiet=True, labels="json:kind")


def test_shards_without_labels_are_one_class_with_labels_none(tmp_path: Path) -> None:
    folder = with_json(tmp_path, train=[{"kind": 2}, {"kind": 0}])
    with pytest.raises(UserError, match=r"needs one image .* and one \.cls \(--labels says"):
        index_shards(folder, workers=0, quiet=True)
    (path,) = index_shards(folder, workers=0, quiet=True, labels="none")
    index = Index.read(path)
    assert (index.classes, index.labels.tolist(), index.label_field.members) == (("unlabelled",), [0, 0], ())


def test_classes_keep_their_numbers_when_more_shards_arrive(tmp_path: Path) -> None:
    folder = with_json(tmp_path, train=[{"kind": "dog"}, {"kind": "eel"}])
    (path,) = index_shards(folder, workers=0, quiet=True, labels="json:kind")
    assert Index.read(path).classes == ("dog", "eel")
    with_json(folder, validation=[{"kind": "cat"}, {"kind": "bee"}, {"kind": "dog"}])
    train, validation = (Index.read(path) for path in index_shards(folder, workers=0, quiet=True, labels="json:kind"))
    assert train.classes == validation.classes == ("dog", "eel", "bee", "cat")
    assert (train.labels.tolist(), validation.labels.tolist()) == ([0, 1], [3, 2, 0])


def test_names_of_numbers_are_kept_when_larger_numbers_arrive(tmp_path: Path) -> None:
    tar_of(tmp_path / "train-0.tar", [("0.png", IMAGE), ("0.cls", b"1")])
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    index(tmp_path)
    (tmp_path / "classes.txt").unlink()
    tar_of(tmp_path / "train-1.tar", [("1.png", IMAGE), ("1.cls", b"3")])
    assert index(tmp_path).classes == ("cat", "dog", "2", "3")


def test_channels_and_sizes_are_what_the_headers_say(tmp_path: Path) -> None:
    grey = png(np.zeros((4, 6), dtype=np.uint8))
    tar_of(tmp_path / "train-0.tar", [("0.png", grey), ("0.cls", b"0")])
    assert (index(tmp_path).image_size, index(tmp_path).channels) == ((4, 6), 1)
    tar_of(tmp_path / "train-1.tar", [("1.png", IMAGE), ("1.cls", b"0")])
    assert (index(tmp_path).image_size, index(tmp_path).channels) == (None, 3)


def test_an_index_of_version_1_is_renewed_as_one(tmp_path: Path) -> None:
    """So that what was trained with it goes on."""
    folder = tmp_path / "shards"
    shutil.copytree(OLD_FOLDERS / "images", folder)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    paths = index_shards(folder, workers=0, quiet=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    grey = png(np.zeros((8, 8), dtype=np.uint8))
    tar_of(folder / "train-000003.tar", [("0.png", grey), ("0.cls", b"0")])
    index_shards(folder, workers=0, quiet=True)
    index = Index.read(paths[0])
    assert (index.version, index.samples, index.channels, index.image_size) == (1, 41, 3, (8, 8))


def test_class_names_are_of_the_labels_that_were_asked_for(tmp_path: Path) -> None:
    samples = [
        {"__key__": f"{n}", "png": numbered_png(n), "cls": b"%d" % n, "json": b'{"a": "x%d"}' % n} for n in (0, 1)
    ]
    write_tar(tmp_path / "train-0.tar", samples)

    def classes(labels: str) -> tuple[str, ...]:
        return Index.read(index_shards(tmp_path, workers=0, quiet=True, labels=labels)[0]).classes

    assert (classes("json:a"), classes("none"), classes("cls")) == (("x0", "x1"), ("unlabelled",), ("0", "1"))
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert (classes("cls"), classes("none")) == (("cat", "dog"), ("unlabelled",))


def test_other_labels_are_other_data(tmp_path: Path) -> None:
    folder = with_json(tmp_path, train=[{"a": 0, "b": 1}, {"a": 1, "b": 0}])
    fingerprints = {
        Index.read(index_shards(folder, workers=0, quiet=True, labels=f"json:{field}")[0]).fingerprint for field in "ab"
    }
    assert len(fingerprints) == 2


def test_npy_is_pixels_only_where_there_is_no_picture(tmp_path: Path) -> None:
    pixels, features = np.zeros((4, 6, 3), dtype=np.uint8), np.zeros(7)
    write_tar(tmp_path / "raw-0.tar", [{"__key__": "0", "npy": pixels, "cls": b"0"}])
    write_tar(tmp_path / "train-0.tar", [{"__key__": "0", "png": numbered_png(0), "npy": features, "cls": b"0"}])
    raw, train = (Index.read(path) for path in index_shards(tmp_path, workers=0, quiet=True))
    assert (raw.image_size, train.image_size) == ((4, 6), (4, 4))
    assert Reader(train).read(np.array([0]))[0]["image"][0].tolist() == decode(numbered_png(0)).tolist()


def test_members_may_come_in_any_order(tmp_path: Path) -> None:
    pictures = [(f"{number}.png", numbered_png(number)) for number in (2, 0, 1)]
    tar_of(tmp_path / "train-0.tar", [*pictures, *((f"{number}.cls", str(number).encode()) for number in range(3))])
    found = index(tmp_path)
    assert (found.shards[0].keys, found.labels.tolist()) == (("2", "0", "1"), [2, 0, 1])
    batch, _ = Reader(found).read(np.arange(3))
    assert batch["image"][:, 0, 1, 0].tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("keys", "labels"),
    [
        ((f"{animal}.{number}" for animal in ("cat", "dog") for number in range(3)), [0, 0, 0, 1, 1, 1]),
        ((f"2020.{month:02d}.01" for month in range(1, 5)), [0, 1, 0, 1]),
        (("a.b",), [0]),
    ],
)
def test_dots_may_be_parts_of_names(tmp_path: Path, keys: Iterable[str], labels: Sequence[int]) -> None:
    names = list(keys)
    members = [(f"{name}.png", IMAGE) for name in names]
    members += [(f"{name}.cls", str(label).encode()) for name, label in zip(names, labels, strict=True)]
    tar_of(tmp_path / "train-0.tar", members)
    found = index(tmp_path)
    assert (found.shards[0].keys, found.labels.tolist()) == (tuple(names), labels)
    assert set(found.shards[0].members) == {"png", "cls"}


def test_the_only_picture_of_a_sample_may_have_a_name_and_one_of_several_is_said(tmp_path: Path) -> None:
    for folder, extensions in (("one", ["image.png"]), ("two", ["input.png", "target.png"])):
        (tmp_path / folder).mkdir()
        members = [(f"{n}.{one}", numbered_png(n)) for n in range(3) for one in extensions]
        tar_of(tmp_path / folder / "train-0.tar", [*members, *((f"{n}.cls", b"0") for n in range(3))])
    batch, failures = Reader(index(tmp_path / "one")).read(np.arange(3))
    assert (batch["image"][:, 0, 1, 0].tolist(), failures) == ([0, 1, 2], {})
    refused(tmp_path / "two", "0.input.png and 0.target.png could both be the image .* by --image-member input.png")
    main([str(tmp_path / "two"), "--index-only", "--image-member", "target.png", "--workers", "1"])
    found = Index.read(tmp_path / "two/train.json")
    assert found.fields["image"].members == ("target.png",)
    assert index(tmp_path / "two").fingerprint == found.fingerprint, "the index knows what its members are"


def test_what_belongs_to_no_sample_is_left_out_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    strange = ["README", "LICENSE.txt", "./._0.png", "__worker__.json", "folder/.DS_Store", "stats.json"]
    members = [*((name, b"x") for name in strange), ("0.png", IMAGE), ("0.cls", b"0")]
    tar_of(tmp_path / "train-0.tar", members)
    assert index(tmp_path).shards[0].keys == ("0",)
    assert "6 members belong to no sample and are left out (train-0.tar: README, " in capsys.readouterr().err


def test_names_in_cls_are_classes_as_in_json(tmp_path: Path) -> None:
    labels = ["dog", "cat", "dog"]
    write_tar(
        tmp_path / "train-0.tar",
        [{"__key__": str(n), "png": IMAGE, "cls": label.encode()} for n, label in enumerate(labels)],
    )
    found = index(tmp_path)
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert verify(found, workers=0, quiet=True) == []


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2, 3], "labels begin at 1: the class 0 (0) has no sample"),
        ([0, 3], "2 of 4 classes have no sample, such as '1'"),
        ([0, 1], ""),
    ],
)
def test_classes_without_samples_are_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], labels: Sequence[int], words: str
) -> None:
    write_tar(tmp_path / "train-0.tar", [{"__key__": str(n), "png": IMAGE, "cls": str(n).encode()} for n in labels])
    index(tmp_path)
    said = capsys.readouterr().err
    assert words in said
    assert bool(words) == ("no sample" in said)


def test_all_tars_that_are_damaged_are_named_at_once(tmp_path: Path) -> None:
    make_numbered_shards([2, 2, 2], tmp_path)
    (tmp_path / "train.json").unlink()
    for number in (0, 2):
        path = tmp_path / f"train-{number:06d}.tar"
        path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(UserError) as error:
        index_shards(tmp_path, workers=0, quiet=True)
    first, second = str(error.value).splitlines()
    assert "train-000000.tar" in first
    assert "train-000002.tar" in second
