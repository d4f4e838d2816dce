"""LSUN's databases are read by their names."""

import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from tests.data.conftest import numbered_png
from tests.data.sets import listed, read


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
        with pytest.raises(UserError, match=r"pip install lmdb"):
            listed(tmp_path)
    pytest.importorskip("lmdb")
    with pytest.raises(UserError, match=r"bedroom_train_lmdb: not an LMDB database"):
        listed(tmp_path)
