"""CIFAR's binary versions are read, and its pickles are not opened."""

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bigtrain.data.decode import decode
from bigtrain.errors import UserError
from tests.data.sets import listed, read


def cifar_records(count: int, head: Callable[[int], bytes]) -> tuple[bytes, np.ndarray]:
    """Records of random pictures, and the pictures, uint8 [count, 32, 32, 3]."""
    planes = np.random.default_rng(count).integers(0, 256, (count, 3, 32, 32), dtype=np.uint8)
    return b"".join(head(n) + planes[n].tobytes() for n in range(count)), planes.transpose(0, 2, 3, 1)


def write_cifar_10(folder: Path) -> list[tuple[int, np.ndarray]]:
    """The six files; returns (label, picture) of those to train with."""
    every = []
    for number, count in enumerate((3, 4, 1, 2, 3), start=1):
        data, pictures = cifar_records(count, lambda n: bytes([n]))
        (folder / f"data_batch_{number}.bin").write_bytes(data)
        every += list(zip(range(count), pictures, strict=True))
    (folder / "test_batch.bin").write_bytes(cifar_records(2, lambda n: bytes([9]))[0])
    return every


def test_cifar_10s_binary_files_are_read(tmp_path: Path) -> None:
    every = write_cifar_10(tmp_path)
    (tmp_path / "batches.meta.txt").write_text(
        "airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n"
    )
    source = listed(tmp_path)
    assert (source.classes[0], source.classes[9], len(source.classes)) == ("airplane", "truck", 10)
    found = read(source)
    assert [label for _, label, _ in found["test"]] == [9, 9]
    assert [label for _, label, _ in found["train"]] == [label for label, _ in every]
    assert all(
        (decode(data) == picture).all() for (_, _, data), (_, picture) in zip(found["train"], every, strict=True)
    )


def test_cifar_100s_fine_labels_are_read(tmp_path: Path) -> None:
    data, pictures = cifar_records(3, lambda n: bytes([n + 7, 90 + n]))
    (tmp_path / "train.bin").write_bytes(data)
    (tmp_path / "test.bin").write_bytes(cifar_records(1, lambda n: bytes([0, 99]))[0])
    (tmp_path / "fine_label_names.txt").write_text("".join(f"class {n}\n" for n in range(100)))
    source = listed(tmp_path)
    found = read(source)
    assert source.classes[92] == "class 92"
    assert [label for _, label, _ in found["train"]] == [90, 91, 92]
    assert all((decode(data) == pictures[n]).all() for n, (_, _, data) in enumerate(found["train"]))
    assert [label for _, label, _ in found["test"]] == [99]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (cifar_records(2, lambda n: bytes([n]))[0][:-1], "are not records of 3073 bytes: truncated"),
        (b"", "are not records of 3073 bytes: truncated"),
        (cifar_records(2, lambda n: bytes([9 + n]))[0], "label 10 of record 1 is out of range: 10 classes"),
    ],
)
def test_damaged_cifar_files_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    write_cifar_10(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(data)
    with pytest.raises(UserError, match=rf"data_batch_1.bin: .*{words}"):
        listed(tmp_path)


@pytest.mark.parametrize("name", ["data_batch_1.bin", "data_batch_4.bin", "data_batch_5.bin"])
def test_a_batch_of_cifar_10_that_is_missing_is_named(tmp_path: Path, name: str) -> None:
    write_cifar_10(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    assert list(listed(tmp_path).splits) == ["train"]
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=rf"{name}: missing, .*; unpack cifar-10-binary.tar.gz again"):
        listed(tmp_path)


class Harm:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("names", [("data_batch_1", "test_batch", "batches.meta"), ("train", "test", "meta")])
def test_cifars_pickles_are_refused_unopened_and_the_binary_version_is_named(
    tmp_path: Path, names: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).write_bytes(pickle.dumps(Harm(tmp_path / "ran")))
    with pytest.raises(UserError, match=r"are pickles, which can run code .*cifar-10-binary.tar.gz"):
        listed(tmp_path)
    assert not (tmp_path / "ran").exists()
