"""Tables whose rows are fields of samples: read where they lie, as the csv module and numpy read them."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import savemat

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.layouts.known import list_source
from bigtrain.data.sources.tables.attribute_list import AttributeList
from bigtrain.data.sources.tables.csv_file import CsvFile, CsvNumbers, table_of_numbers
from bigtrain.data.sources.tables.npy_rows import NpyRows
from bigtrain.errors import UserError

CELL = st.text(alphabet=st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), max_size=8)


def npy_of(data: bytes) -> np.ndarray:
    return np.load(io.BytesIO(data), allow_pickle=False)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(CELL.filter(str.strip), CELL, CELL), max_size=8), ending=st.sampled_from(["csv", "tsv"]))
def test_cells_are_those_that_were_written(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str, str]], ending: str
) -> None:
    path = tmp_path_factory.mktemp("table") / f"captions.{ending}"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t" if ending == "tsv" else ",")
        writer.writerows([("file", "text", "more"), *rows])
    table = CsvFile(path, "text")
    found = list(table.members())
    assert [name for name, _ in found] == [name for name, _, _ in rows]
    for (name, location), (_, text, _) in reversed(list(zip(found, rows, strict=True))):
        assert table.read(name, location).decode() == text
    table.close()


def test_a_byte_order_mark_and_blank_lines_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbffile,text\r\n\r\n1.png,one\r\n\r\n2.png,two")
    table = CsvFile(tmp_path / "a.csv", "text")
    assert [(name, table.read(name, location)) for name, location in table.members()] == [
        ("1.png", b"one"),
        ("2.png", b"two"),
    ]
    (tmp_path / "b.csv").write_bytes(b"\xef\xbb\xbf1,2\n3,4\n")
    numbers = CsvNumbers(tmp_path / "b.csv")
    assert [npy_of(numbers.read(name, location)).tolist() for name, location in numbers.members()] == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("text", "column", "words"),
    [
        ("", "text", "is empty; its first line names its columns"),
        ("file,text\n", "words", "has no column 'words'; it has file, text"),
        ("file,text,text\n", "text", "two of its columns have one name"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path: Path, text: str, column: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=words):
        list(CsvFile(tmp_path / "a.csv", column).members())


def test_a_row_of_numbers_of_other_length_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2\n3,4,5\n")
    numbers = CsvNumbers(tmp_path / "a.csv")
    (first, second) = numbers.members()
    numbers.read(*first)
    with pytest.raises(Undecodable, match="its row has 3 cells where the first line has 2"):
        numbers.read(*second)


def test_a_row_of_other_length_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,text\n1.png,one,more\n")
    table = CsvFile(tmp_path / "a.csv", "text")
    ((name, location),) = table.members()
    with pytest.raises(Undecodable, match="its row has 3 cells where the first line has 2"):
        table.read(name, location)


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.lists(st.floats(-1e6, 1e6, width=32), min_size=2, max_size=2), min_size=1, max_size=9),
    header=st.booleans(),
)
def test_numbers_of_a_csv_are_exact(
    tmp_path_factory: pytest.TempPathFactory, values: list[list[float]], header: bool
) -> None:
    lines = [",".join(map(repr, row)) for row in values]
    text = "\n".join(["x,y", *lines] if header else lines)
    path = tmp_path_factory.mktemp("numbers") / "a.csv"
    path.write_text(text)
    table = CsvNumbers(path)
    assert table.axes == (("x", "y") if header else ())
    rows = [npy_of(table.read(name, location)) for name, location in table.members()]
    np.testing.assert_array_equal(np.array(rows), np.array(values, dtype=np.float32))
    whole, axes = table_of_numbers(text.encode())
    np.testing.assert_array_equal(whole, np.array(values, dtype=np.float32))
    assert axes == table.axes


@pytest.mark.parametrize("data", [b"", b"x,y\n", b"1,2\n3\n", b"1,2\n3,four\n", b"\xff\xfe"])
def test_what_is_no_table_of_numbers_is_refused(data: bytes) -> None:
    with pytest.raises(Undecodable):
        table_of_numbers(data)


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<i2", "|u1"])
@pytest.mark.parametrize("shape", [(3,), (3, 2), (3, 4, 2)])
def test_rows_of_an_npy_are_its_rows(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    np.save(tmp_path / "a.npy", values)
    source = NpyRows(tmp_path / "a.npy")
    rows = [npy_of(source.read(name, location)) for name, location in source.members()]
    np.testing.assert_array_equal(np.stack(rows), values.reshape(3, *(shape[1:] or (1,))))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.array([{}, {}]), "is not npy|object|pickled|holds"),
        (np.zeros((0, 2)), r"holds float64 \(0, 2\), not numbers"),
        (np.array(["a"]), "not numbers"),
        (np.zeros((3, 2), order="F"), r"Fortran order, .*numpy\.ascontiguousarray"),
    ],
)
def test_an_npy_of_something_else_is_refused_and_never_unpickled(
    tmp_path: Path, values: np.ndarray, words: str
) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=words):
        NpyRows(tmp_path / "a.npy")


def test_a_truncated_npy_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 2)))
    data = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(data[:-1])
    with pytest.raises(UserError, match=r"a\.npy: has 175 bytes, not the 176 that its header says"):
        NpyRows(tmp_path / "a.npy")


def test_a_list_of_attributes_is_that_of_celeba(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("2\nA B \n000001.jpg -1  1 \n000002.jpg  1 -1 \n")
    source = AttributeList(tmp_path / "list.txt")
    assert source.names == ("A", "B")
    assert {name: npy_of(source.read(name, location)).tolist() for name, location in source.members()} == {
        "000001.jpg": [-1, 1],
        "000002.jpg": [1, -1],
    }


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"y": np.ones((2, 1))}, r"no images X and labels y"),
        (
            {"X": np.zeros((4, 4, 3, 3), np.uint8), "y": np.ones((2, 1))},
            r"X is uint8 \(4, 4, 3, 3\) and y has 2 labels",
        ),
        ({"X": np.zeros((4, 4, 3, 2), np.uint8), "y": np.array([[1], [11]])}, r"labels run from 1 to 11"),
        (None, r"no images X and labels y"),
    ],
)
def test_a_mat_that_is_not_svhns_is_one_sentence(tmp_path: Path, content: dict | None, words: str) -> None:
    path = tmp_path / "train_32x32.mat"
    path.write_bytes(b"no mat") if content is None else savemat(path, content)
    with pytest.raises(UserError, match=words):
        list_source(tmp_path, None, quiet=True)
