"""MNIST's idx files are read with their labels, and what does not fit together is named."""

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.decode import decode
from bigtrain.errors import UserError
from tests.data.sets import listed, read, shard


def idx(images: np.ndarray, labels: Sequence[int]) -> tuple[bytes, bytes]:
    head = np.array([0x803, *images.shape], dtype=">u4").tobytes()
    return head + images.tobytes(), np.array([0x801, len(labels)], dtype=">u4").tobytes() + bytes(labels)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("between", ["-", "."])
def test_idx_files_are_read(tmp_path: Path, packed: bool, between: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    for split, count in (("train", 5), ("t10k", 2)):
        for kind, data in zip(
            (f"images{between}idx3", f"labels{between}idx1"), idx(noise[:count], range(count)), strict=True
        ):
            name = f"{split}-{kind}-ubyte"
            (tmp_path / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    source = listed(tmp_path)
    assert source.classes == ("0", "1", "2", "3", "4")
    found = read(source)
    assert {split: len(rows) for split, rows in found.items()} == {"test": 2, "train": 5}
    for number, (_, label, data) in enumerate(found["train"]):
        assert label == number
        assert (decode(data) == noise[number][:, :, None]).all()
    (tmp_path / "classes.txt").write_text("shirt\nboot\nbag\ncoat\ndress\n")
    assert listed(tmp_path).classes[1] == "boot"


def test_idx_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    images, labels = idx(np.zeros((3, 4, 4), dtype=np.uint8), [0, 1, 2])
    (tmp_path / "train-images-idx3-ubyte").write_bytes(images)
    with pytest.raises(UserError, match=r"train-labels-idx1-ubyte: missing"):
        listed(tmp_path)
    for wrong, words in (
        (labels[:-1], "has 10 bytes, not the 11"),
        (idx(np.zeros((3, 4, 4), dtype=np.uint8), [0, 1])[1], "has 2 labels for the 3 images"),
        (images, "not an idx file of unsigned bytes in 1 dimensions"),
        (b"", "not an idx file"),
    ):
        (tmp_path / "train-labels-idx1-ubyte").write_bytes(wrong)
        with pytest.raises(UserError, match=words):
            listed(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte").unlink()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(images)[:-9])
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte.gz: .*download it again"):
        listed(tmp_path)


def test_a_split_without_pictures_is_one_sentence(tmp_path: Path) -> None:
    images, labels = idx(np.zeros((0, 4, 4), dtype=np.uint8), [])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(UserError, match=r"it has no pictures for the split test"):
        shard(tmp_path, tmp_path / "out")


def test_labels_that_begin_at_one_are_told_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind, data in zip(("images-idx3", "labels-idx1"), idx(np.zeros((2, 4, 4), np.uint8), [1, 2]), strict=True):
        (tmp_path / f"emnist-letters-{kind}-ubyte").write_bytes(data)
    shard(tmp_path, tmp_path / "out")
    assert "labels begin at 1: the class 0 (0) has no sample" in capsys.readouterr().err
