"""StyleGAN's and EDM's folders and zips: labels are those of dataset.json, and chunks are no classes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bigtrain.data.sources.image_files import open_collection
from bigtrain.data.sources.layouts.by_class import list_unlabelled
from bigtrain.errors import UserError
from tests.data.sets import listed, zip_of
from tests.data.sources.test_image_files import encoded, pictures

NAMES = ("00000/img00000000.png", "00000/img00000001.png", "00001/img00000002.png")


def made(path: Path, content: Any) -> Path:
    """A zip of three pictures, or a folder where the path has no ending."""
    files = [(name, encoded(image, "png")) for name, image in zip(NAMES, pictures(3), strict=True)]
    files.append(("dataset.json", json.dumps(content).encode()))
    if path.suffix:
        return zip_of(path, files)
    for name, data in files:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_labels_are_read_and_chunks_are_no_classes(tmp_path: Path, name: str) -> None:
    labels = [[f"./{NAMES[2]}", 0], [NAMES[0], 2], [NAMES[1].replace("/", "\\"), 0.0]]
    path = made(tmp_path / name, {"labels": labels})
    source = listed(path)
    assert source.classes == ("0", "1", "2")
    assert list(source.splits["train"]) == list(zip(NAMES, [2, 0, 0], strict=True))
    assert source.left_out == 0
    collection = open_collection(path)
    assert (collection.classes, np.array(collection.labels).tolist()) == (None, [2, 0, 0])


def test_vectors_with_a_single_one_are_labels_and_classes_may_have_names(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    path = made(tmp_path / "set.zip", {"labels": [[name, [0.0, 1.0]] for name in NAMES]})
    source = listed(path)
    assert (source.classes, [label for _, label in source.splits["train"]]) == (("cat", "dog"), [1, 1, 1])


def test_null_says_that_there_are_no_labels(tmp_path: Path) -> None:
    path = made(tmp_path / "set.zip", {"labels": None})
    assert not listed(path).is_labelled
    assert open_collection(path).labels is None


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([[NAMES[0], 1]], r"dataset.json: has no label for 00000/img00000001.png; add it, or .* --labels none"),
        (
            [[name, [0.3, 0.7]] for name in NAMES],
            r"label of 00000/img00000000.png is \[0.3, 0.7\], which is not the number",
        ),
        ([[name, -1] for name in NAMES], "is -1, which is not the number of a class"),
        ([[name, "cat"] for name in NAMES], "is cat, which is not the number of a class"),
        ([NAMES[0]], r"its label 00000/img00000000.png is not \[name, label\]"),
        ("x", "are no list"),
    ],
)
def test_labels_that_are_no_classes_are_refused_and_may_be_left_out(tmp_path: Path, labels: Any, words: str) -> None:
    path = made(tmp_path / "set.zip", {"labels": labels})
    with pytest.raises(UserError, match=words):
        listed(path)
    assert len(list_unlabelled(path).splits["train"]) == 3


@pytest.mark.parametrize("name", ["set.zip", "set"])
def test_labels_are_read_where_all_lies_in_a_folder(tmp_path: Path, name: str) -> None:
    below = [f"ffhq/{picture}" for picture in NAMES]
    files = [(name, encoded(image, "png")) for name, image in zip(below, pictures(3), strict=True)]
    files.append(("ffhq/dataset.json", json.dumps({"labels": [*zip(NAMES, [2, 0, 1], strict=True)]}).encode()))
    path = tmp_path / name
    if path.suffix:
        zip_of(path, files)
    for member, data in files if not path.suffix else []:
        (path / member).parent.mkdir(parents=True, exist_ok=True)
        (path / member).write_bytes(data)
    source = listed(path)
    assert (source.classes, list(source.splits["train"])) == (("0", "1", "2"), list(zip(below, [2, 0, 1], strict=True)))
    assert np.array(open_collection(path).labels).tolist() == [2, 0, 1]


def test_another_file_of_that_name_means_nothing(tmp_path: Path) -> None:
    assert listed(made(tmp_path / "set.zip", {"name": "mine"})).classes == ("00000", "00001")


def test_labels_of_several_splits_in_one_source_are_named_as_unread(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = {"labels": [[name, 1] for name in NAMES]}
    for split in ("train", "val"):
        made(tmp_path / f"set/{split}", labels)
    assert set(listed(tmp_path / "set").splits) == {"train", "val"}
    said = capsys.readouterr().err
    assert f"{tmp_path}/set/train/dataset.json: its labels are not read" in said
    assert "make shards of the folder that it lies in by itself, with --split NAME" in said
