"""Folders of pictures: two layouts are understood, everything else is explained."""

import zipfile
from pathlib import Path

import pytest

from bigtrain.data.sources.layouts.by_class import Choice, is_domains, list_by_class, list_domains, list_unlabelled
from bigtrain.errors import UserError
from tests.data.sets import zip_of


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def test_class_folders_are_the_training_split(tmp_path: Path) -> None:
    source = list_by_class(touch(tmp_path, "dog/b.JPG", "dog/a.png", "cat/z.webp", "cat/notes.txt", ".hidden/x.jpg"))
    assert source.classes == ("cat", "dog")
    assert list(source.splits) == ["train"]
    assert list(source.splits["train"]) == [("cat/z.webp", 0), ("dog/a.png", 1), ("dog/b.JPG", 1)]
    assert source.left_out == 1


def test_a_class_has_one_number_in_all_splits(tmp_path: Path) -> None:
    source = list_by_class(touch(tmp_path, "train/cat/1.jpg", "train/eel/1.jpeg", "test/dog/1.bmp", "test/eel/2.jpg"))
    assert source.classes == ("cat", "dog", "eel")
    assert list(source.splits["train"]) == [("train/cat/1.jpg", 0), ("train/eel/1.jpeg", 2)]
    assert list(source.splits["test"]) == [("test/dog/1.bmp", 1), ("test/eel/2.jpg", 2)]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "no pictures here"),
        (["cat/notes.txt"], "no pictures here"),
        (["1.jpg", "cat/1.jpg"], r"1\.jpg lies outside a class folder"),
        (
            ["a/b/c/1.jpg", "a/d/c/1.jpg"],
            r"a/b/c/1\.jpg lies deeper than SPLIT/CLASS; give \S*/a as SOURCE, or lay it out",
        ),
        (["a/b/c/1.jpg", "b/b/c/1.jpg"], r"lies deeper than SPLIT/CLASS; lay it out"),
        (["a/b/c/d/e/f/1.jpg", "a/b/c/1.jpg"], "lies deeper than SPLIT/CLASS"),
        (["cat/1.jpg", "cat/a/b/c/2.jpg"], r"cat/a/b/c/2\.jpg lies deeper than SPLIT/CLASS"),
        (["in/trainA/1.jpg", "in/trainB/1.jpg"], "trainA, trainB look like domains.*; give the folder in which"),
        (["cat/1.jpg", "train/dog/1.jpg"], r"cat/1\.jpg .* but train/dog/1\.jpg"),
    ],
)
def test_other_layouts_are_refused(tmp_path: Path, names: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        list_by_class(touch(tmp_path, *names))


def packed(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"")
    return path


def test_a_folder_of_files_of_a_kind_that_is_not_read_says_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "train.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    with pytest.raises(
        UserError, match=r"no pictures here .*; train\.h5 is an HDF5 file, which is not read here: write"
    ):
        list_by_class(tmp_path)


@pytest.mark.parametrize("around", ["", "horse2zebra/"])
def test_domains_in_an_archive_are_not_taken_for_classes(tmp_path: Path, around: str) -> None:
    archive = packed(tmp_path / "a.zip", *(f"{around}{name}/1.jpg" for name in ("trainA", "trainB", "testA", "testB")))
    with pytest.raises(UserError, match="look like domains, and not like classes; unpack it"):
        list_by_class(archive)


@pytest.mark.parametrize("around", ["", "photos/"])
def test_an_archive_without_classes_has_the_splits_of_a_folder(tmp_path: Path, around: str) -> None:
    archive = packed(tmp_path / "a.zip", f"{around}train/a/1.jpg", f"{around}train/2.jpg", f"{around}val/1.jpg")
    found = list_unlabelled(archive)
    assert {split: len(samples) for split, samples in found.splits.items()} == {"train": 2, "val": 1}
    assert {split: len(one) for split, one in list_unlabelled(packed(tmp_path / "b.zip", "1.jpg")).splits.items()} == {
        "train": 1
    }


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: there is no such folder"):
        list_by_class(tmp_path / "nowhere")


def test_the_fingerprint_is_of_names_and_classes(tmp_path: Path) -> None:
    first = list_by_class(touch(tmp_path / "a", "cat/1.jpg", "dog/1.jpg")).fingerprint("train")
    assert list_by_class(touch(tmp_path / "b", "cat/1.jpg", "dog/1.jpg")).fingerprint("train") == first
    others = [["cat/1.jpg", "dog/2.jpg"], ["cat/1.jpg", "eel/1.jpg"], ["cat/1.jpg", "dog/1.jpg", "dog/2.jpg"]]
    for number, names in enumerate(others):
        assert list_by_class(touch(tmp_path / str(number), *names)).fingerprint("train") != first


def test_pictures_without_classes_are_taken_from_any_folders(tmp_path: Path) -> None:
    source = list_unlabelled(touch(tmp_path / "a", "1.jpg", "b/2.png", "b/c/3.jpg", "notes.txt"))
    assert source.classes == ("unlabelled",)
    assert {split: list(found) for split, found in source.splits.items()} == {
        "train": [("1.jpg", 0), ("b/2.png", 0), ("b/c/3.jpg", 0)]
    }
    assert source.left_out == 1
    source = list_unlabelled(touch(tmp_path / "b", "train/1.jpg", "val/x/2.png"))
    assert {split: list(found) for split, found in source.splits.items()} == {
        "train": [("train/1.jpg", 0)],
        "val": [("val/x/2.png", 0)],
    }
    with pytest.raises(UserError, match="no pictures here"):
        list_unlabelled(touch(tmp_path / "c", "notes.txt"))


def test_pictures_without_classes_are_taken_from_an_archive(tmp_path: Path) -> None:
    source = list_unlabelled(zip_of(tmp_path / "a.zip", [("train/b/1.jpg", b""), ("val/2.jpg", b"")]))
    assert {split: list(found) for split, found in source.splits.items()} == {
        "train": [("train/b/1.jpg", 0)],
        "val": [("val/2.jpg", 0)],
    }


def test_domains_are_splits_of_their_own_where_nothing_else_is_there(tmp_path: Path) -> None:
    folder = touch(tmp_path / "a", "trainA/1.jpg", "trainB/1.jpg", "testB/x/2.png", "notes.txt")
    assert is_domains(folder)
    assert {split: list(found) for split, found in list_domains(folder).splits.items()} == {
        "testB": [("testB/x/2.png", 0)],
        "trainA": [("trainA/1.jpg", 0)],
        "trainB": [("trainB/1.jpg", 0)],
    }
    for names in (["trainA/1.jpg"], ["trainA/1.jpg", "cat/1.jpg"], ["train/1.jpg", "testB/1.jpg"], ["1.jpg"]):
        assert not is_domains(touch(tmp_path / names[-1].replace("/", "_"), *names))


def test_files_of_other_fields_are_no_pictures_of_their_own(tmp_path: Path) -> None:
    folder = touch(tmp_path, "cat/1.jpg", "cat/1.mask.png", "cat/2.JPG", "cat/2.MASK.PNG")
    source = list_by_class(folder, choice=Choice(without=(".mask.png",)))
    assert (list(source.splits["train"]), source.left_out) == ([("cat/1.jpg", 0), ("cat/2.JPG", 0)], 0)


def test_pictures_without_classes_are_taken_however_deep_they_lie(tmp_path: Path) -> None:
    source = list_unlabelled(touch(tmp_path, "a/b/c/d/e/1.jpg", "2.jpg"))
    assert list(source.splits["train"].members.names) == ["2.jpg", "a/b/c/d/e/1.jpg"]
