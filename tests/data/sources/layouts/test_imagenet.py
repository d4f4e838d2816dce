"""ImageNet as it is handed out: its tars or folders, its classes in their order, its validation pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from bigtrain.data.index import Index
from bigtrain.data.sources.samples import SampleSet
from bigtrain.errors import UserError
from tests.data.conftest import numbered_png
from tests.data.sets import listed, read, shard, tarred
from tests.data.write.test_foreign_shards import tar_of

WNIDS = ("n01440764", "n01443537", "n02012849")


WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane")


def imagenet_tars(folder: Path) -> Path:
    """Three classes of two training pictures, four of validation; picture n is `numbered_png(n)`."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = [
        (f"{wnid}.tar", tarred([(f"{wnid}_{n}.JPEG", numbered_png(2 * number + n)) for n in (1, 0)]))
        for number, wnid in enumerate(WNIDS)
    ]
    tar_of(folder / "ILSVRC2012_img_train.tar", inner)
    tar_of(folder / "ILSVRC2012_img_val.tar", [(f"ILSVRC2012_val_{n:08d}.JPEG", numbered_png(n)) for n in (1, 2, 3, 4)])
    return folder


def devkit(folder: Path, numbers: Sequence[int] = (3, 1, 2, 3)) -> None:
    """The devkit numbers the classes its own way: here from the last to the first, and a class above them."""
    data = folder / "ILSVRC2012_devkit_t12/data"
    data.mkdir(parents=True)
    rows = [(3 - n, wnid, words) for n, (wnid, words) in enumerate(zip(WNIDS, WORDS, strict=True))]
    table = np.array(
        [*rows, (1001, "n00001740", "entity")], dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")]
    )
    savemat(data / "meta.mat", {"synsets": table})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{n}\n" for n in numbers))


NAMED = tuple(f"{wnid} {words}" for wnid, words in zip(WNIDS, WORDS, strict=True))


TRAIN = [(f"{wnid}/{wnid}_{n}.JPEG", number, 2 * number + n) for number, wnid in enumerate(WNIDS) for n in (0, 1)]


def check_imagenet(source: SampleSet, classes: Sequence[str], val: Sequence[int]) -> None:
    assert source.classes == tuple(classes)
    found = read(source)
    assert found["train"] == [(name, label, numbered_png(number)) for name, label, number in TRAIN]
    assert [(label, data) for _, label, data in found["val"]] == [
        (label, numbered_png(number)) for number, label in enumerate(val, start=1)
    ]


def test_imagenets_tars_are_read_within_a_tar_and_the_devkit_says_the_classes(tmp_path: Path) -> None:
    devkit(imagenet_tars(tmp_path))
    check_imagenet(listed(tmp_path), NAMED, val=[0, 2, 1, 0])
    (index,) = [Index.read(path) for path in shard(tmp_path, tmp_path / "out") if path.stem == "val"]
    assert index.classes == NAMED
    assert sorted(index.labels.tolist()) == [0, 0, 1, 2]
    one_tar = listed(tmp_path / "ILSVRC2012_img_train.tar")
    assert (one_tar.classes, list(one_tar.splits)) == (NAMED, ["train"])


def test_what_is_no_picture_in_imagenets_tars_and_folders_is_counted(tmp_path: Path) -> None:
    devkit(tmp_path / "tars")
    inner = tarred([(f"{WNIDS[0]}_1.JPEG", numbered_png(1)), ("notes.txt", b""), (f"{WNIDS[0]}_2.xml", b"")])
    tar_of(tmp_path / "tars/ILSVRC2012_img_train.tar", [(f"{WNIDS[0]}.tar", inner)])
    val = [("ILSVRC2012_val_00000001.JPEG", numbered_png(1)), ("README", b"")]
    tar_of(tmp_path / "tars/ILSVRC2012_img_val.tar", val)
    assert listed(tmp_path / "tars").left_out == 3
    unpack_imagenet(tmp_path / "folders", tmp_path / "folders/Data/CLS-LOC")
    devkit(tmp_path / "folders")
    (tmp_path / "folders/Data/CLS-LOC/train" / WNIDS[1] / "notes.txt").touch()
    (tmp_path / "folders/Data/CLS-LOC/val/notes.txt").touch()
    assert listed(tmp_path / "folders").left_out == 2


def unpack_imagenet(folder: Path, into: Path) -> None:
    for name, _, number in TRAIN:
        (into / "train" / name).parent.mkdir(parents=True, exist_ok=True)
        (into / "train" / name).write_bytes(numbered_png(number))
    (into / "val").mkdir()
    for number in (1, 2, 3, 4):
        (into / "val" / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(numbered_png(number))


def test_kaggles_folder_is_read_with_its_solution(tmp_path: Path) -> None:
    unpack_imagenet(tmp_path, tmp_path / "ILSVRC/Data/CLS-LOC")
    solution = [f"ILSVRC2012_val_{n:08d},{WNIDS[label]} 1 2 3 4 " for n, label in ((2, 1), (1, 0), (4, 2), (3, 2))]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *solution]))
    check_imagenet(listed(tmp_path), WNIDS, val=[0, 1, 2, 2])
    (tmp_path / "LOC_synset_mapping.txt").write_text("".join(f"{name}\n" for name in NAMED))
    check_imagenet(listed(tmp_path), NAMED, val=[0, 1, 2, 2])


@pytest.mark.parametrize(
    "text", ["", "id,classes\na,b", "ImageId\nILSVRC2012_val_00000001", "ImageId,PredictionString\na,"]
)
def test_a_solution_of_other_columns_is_one_sentence(tmp_path: Path, text: str) -> None:
    unpack_imagenet(tmp_path, tmp_path / "ILSVRC/Data/CLS-LOC")
    (tmp_path / "LOC_val_solution.csv").write_text(text)
    with pytest.raises(UserError, match=r"is not a WNID|the list of true classes does not have it"):
        listed(tmp_path)


def test_imagenets_folders_are_a_plain_folder_until_something_tells_more(tmp_path: Path) -> None:
    unpack_imagenet(tmp_path, tmp_path)
    with pytest.raises(
        UserError, match=r"no list has their classes; put ILSVRC2012_devkit_t12 .* LOC_val_solution.csv"
    ):
        listed(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "val").iterdir())):
        (tmp_path / "val" / WNIDS[number % 3]).mkdir(exist_ok=True)
        path.rename(tmp_path / "val" / WNIDS[number % 3] / path.name)
    plain = listed(tmp_path)
    assert (plain.classes, plain.splits["val"].members.names[0]) == (
        WNIDS,
        "val/n01440764/ILSVRC2012_val_00000001.JPEG",
    )
    (tmp_path / "synset_words.txt").write_text("".join(f"{name}\n" for name in NAMED))
    assert listed(tmp_path).classes == NAMED
    assert listed(tmp_path, "folder").classes == WNIDS


def without_meta(folder: Path) -> None:
    (folder / "ILSVRC2012_devkit_t12/data/meta.mat").unlink()


def damaged_meta(folder: Path) -> None:
    (folder / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"no table")


def label_out_of_range(folder: Path) -> None:
    (folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n7\n3\n")


def label_missing(folder: Path) -> None:
    (folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text("3\n1\n2\n")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (without_meta, "put its meta.mat beside it"),
        (damaged_meta, "meta.mat: not the devkit's table of classes"),
        (label_out_of_range, "'7' is not the number of a class"),
        (label_missing, "ILSVRC2012_val_00000004.JPEG: the list of true classes does not have it"),
    ],
)
def test_doubts_about_imagenets_classes_are_errors(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    devkit(imagenet_tars(tmp_path))
    damage(tmp_path)
    with pytest.raises(UserError, match=words):
        listed(tmp_path)


def test_a_file_of_a_set_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "ILSVRC2012_img_train.tar").mkdir()
    with pytest.raises(UserError, match=r"ILSVRC2012_img_train.tar: cannot be read: Is a directory"):
        listed(tmp_path)
