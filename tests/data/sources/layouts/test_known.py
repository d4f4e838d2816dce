"""Sets as they are handed out: told by their look, listed with their classes, and read picture by picture."""

import gzip
import io
import pickle
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.decode import decode
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from launch.shard import main
from tests.data.conftest import numbered_png
from tests.data.sets import listed, read, shard
from tests.data.write.test_foreign_shards import tar_of


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


def lsun(folder: Path, name: str, numbers: Sequence[int]) -> None:
    lmdb = pytest.importorskip("lmdb")
    with lmdb.open(str(folder / name), map_size=2**24) as database, database.begin(write=True) as transaction:
        for number in numbers:
            transaction.put(b"\xff\x00key%d" % number, numbered_png(number))


def test_lsuns_databases_are_read(tmp_path: Path) -> None:
    for name, numbers in (("church_train_lmdb", [1, 2]), ("bedroom_train_lmdb", [3]), ("bedroom_val_lmdb", [4])):
        lsun(tmp_path, name, numbers)
    source = listed(tmp_path)
    assert source.classes == ("bedroom", "church")
    assert {split: [(label, data) for _, label, data in rows] for split, rows in read(source).items()} == {
        "train": [(0, numbered_png(3)), (1, numbered_png(1)), (1, numbered_png(2))],
        "val": [(0, numbered_png(4))],
    }
    one = listed(tmp_path / "church_train_lmdb")
    assert (one.classes, len(one.splits["train"])) == (("church",), 2)


def test_without_lmdb_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bedroom_train_lmdb").mkdir()
    (tmp_path / "bedroom_train_lmdb/data.mdb").write_bytes(b"x" * 5000)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lmdb", None)
        with pytest.raises(UserError, match=r"pip install 'bigtrain\[lmdb\]'"):
            listed(tmp_path)
    pytest.importorskip("lmdb")
    with pytest.raises(UserError, match=r"bedroom_train_lmdb: not an LMDB database"):
        listed(tmp_path)


def test_a_layout_that_the_source_does_not_have_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat/1.png").write_bytes(numbered_png(1))
    with pytest.raises(UserError, match=r"does not look like --layout idx: it wants files train-images-idx3-ubyte"):
        listed(tmp_path, "idx")
    assert listed(tmp_path, "folder").classes == ("cat",)


def test_pictures_of_a_set_keep_their_modes(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(file, format="JPEG")
    tar_of(tmp_path / "set.tar", [("a/cmyk.jpg", file.getvalue())])
    (path,) = shard(tmp_path / "set.tar", tmp_path / "out")
    assert Index.read(path).samples == 1


def test_the_door_shards_a_set_as_it_is_handed_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "set").mkdir()
    images, labels = idx(np.zeros((3, 28, 28), dtype=np.uint8), [0, 1, 1])
    (tmp_path / "set/train-images-idx3-ubyte").write_bytes(images)
    (tmp_path / "set/train-labels-idx1-ubyte").write_bytes(labels)
    main([str(tmp_path / "set"), str(tmp_path / "out"), "--layout", "idx", "--format", "png", "--workers", "1"])
    assert "data.image_size=28" in capsys.readouterr().err.splitlines()[-1]
    index = Index.read(tmp_path / "out/train.json")
    assert (index.class_counts, index.image_size) == ((1, 2), 28)
