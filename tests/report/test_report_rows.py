"""Rows of metrics.jsonl become columns, whatever else is in the file, and few points of many rows lose no extreme."""

import json
import time
from pathlib import Path

import numpy as np
import pytest

from bigtrain.errors import UserError
from bigtrain.report import rows as reading
from bigtrain.report.rows import LONGEST_NAME, MOST_NAMES, read_rows, shown
from bigtrain.report.thinning import POINTS, Bins


def written(folder: Path, *lines: str) -> Path:
    path = folder / "metrics.jsonl"
    path.write_text("\n".join(lines))
    return path


def test_rows_with_other_keys_are_columns_of_the_same_length(tmp_path: Path) -> None:
    rows = read_rows(
        written(
            tmp_path,
            '{"step": 10, "images": 80, "wall": 1.5, "loss/a": 2.0}',
            '{"step": 20, "images": 160, "wall": 2.5, "loss/a": 1.0, "data/replaced": 3}',
            '{"step": 15, "warning": "a jump"}',
            '{"step": 30, "loss/a": 0}\n',
        )
    )
    assert rows.names == ["loss/a", "data/replaced"]
    assert rows.axes["step"].tolist() == [10, 20, 30]
    np.testing.assert_array_equal(rows.axes["wall"], [1.5, 2.5, np.nan])
    assert rows.column("loss/a").tolist() == [2, 1, 0]
    np.testing.assert_array_equal(rows.column("data/replaced"), [np.nan, 3, np.nan])
    assert [(warned.step, warned.text) for warned in rows.warnings] == [(15, "a jump")]
    assert rows.broken == 0


def test_rows_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, '{"step": 30, "a/b": 3}', '{"step": 10, "a/b": 1}', '{"step": 20, "a/b": 2}'))
    assert rows.axes["step"].tolist() == [10, 20, 30]
    assert rows.column("a/b").tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        '{"step": 20, "loss/a": 1.',
        "[1, 2]",
        '{"loss/a": 1.0}',
        '{"step": "20", "loss/a": 1.0}',
        '{"step": -1, "loss/a": 1.0}',
        '{"step": 1e300, "loss/a": 1.0}',
        '{"step": true, "loss/a": 1.0}',
        "[" * 100_000,
        "\x00\x1b[31m",
    ],
)
def test_lines_that_are_no_rows_are_counted_and_left_out(line: str, tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, '{"step": 10, "loss/a": 2.0}', line, '{"step": 30, "loss/a": 1.0}'))
    assert rows.broken == 1
    assert rows.column("loss/a").tolist() == [2, 1]


def test_values_that_are_no_numbers_are_told_with_their_step(tmp_path: Path) -> None:
    values = ("NaN", "Infinity", '"word"', "[1]", "1" + "0" * 400, "2.5")
    rows = read_rows(
        written(tmp_path, *(f'{{"step": {at}, "a/b": {each}}}' for at, each in enumerate(values, start=1)))
    )
    assert rows.column("a/b")[-1] == 2.5
    assert np.isnan(rows.column("a/b")[:-1]).all()
    assert rows.not_finite == {"a/b": (5, 1)}


def test_more_names_than_a_page_has_are_counted(tmp_path: Path) -> None:
    many = {"step": 1} | {f"a/{number}": 1.0 for number in range(MOST_NAMES + 50)}
    rows = read_rows(written(tmp_path, json.dumps(many)))
    assert 0 < rows.left_out <= 50
    assert len(rows.names) + rows.left_out == MOST_NAMES + 50


def test_files_and_lines_without_end_are_refused_or_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BLOCK", 2**10)
    monkeypatch.setattr(reading, "_LONGEST_LINE", 2**10)
    path = written(tmp_path, '{"step": 1, "a/b": 1}', "x" * 2**14, '{"step": 2, "a/b": 2}')
    assert read_rows(path).column("a/b").tolist() == [1, 2]
    monkeypatch.setattr(reading, "MOST_BYTES", 2**12)
    with pytest.raises(UserError, match="more than a page can show"):
        read_rows(path)
    monkeypatch.setattr(reading, "MOST_BYTES", 2**20)
    monkeypatch.setattr(reading, "MOST_ROWS", 1)
    with pytest.raises(UserError, match="more than 1 rows"):
        read_rows(path)


def test_names_are_shown_on_one_line_and_short() -> None:
    assert shown("a\n\x1b[1mb") == "a\\n\\x1b[1mb"
    assert len(shown("x" * 1000)) == LONGEST_NAME


def test_every_minimum_and_maximum_of_many_rows_is_a_points() -> None:
    values = np.sin(np.arange(100_000) / 5000)
    values[[12_345, 77_777]] = 50, -40
    values[500:900] = np.nan
    bins = Bins.of(len(values))
    low, high, mean = bins.minimum(values), bins.maximum(values), bins.mean(values)
    assert len(low) == len(high) == len(mean) == POINTS
    assert np.nanmax(high) == 50
    assert np.nanmin(low) == -40
    number = int(np.nanargmax(high))
    assert bins.first(np.arange(100_000))[number] <= 12_345 <= bins.last(np.arange(100_000))[number]
    assert np.all((low <= mean) & (mean <= high) | np.isnan(mean))
    pieces = np.split(values, bins.edges[1:-1])
    np.testing.assert_allclose(mean[50:60], [np.nanmean(piece) for piece in pieces[50:60]])


@pytest.mark.parametrize("count", [0, 1, 2, POINTS - 1, POINTS])
def test_few_rows_are_points_of_their_own(count: int) -> None:
    values = np.arange(count, dtype=np.float64)
    bins = Bins.of(count)
    assert bins.are_rows
    for reduced in (
        bins.minimum(values),
        bins.maximum(values),
        bins.mean(values),
        bins.first(values),
        bins.last(values),
    ):
        assert reduced.tolist() == values.tolist()


@pytest.mark.slow
def test_a_hundred_thousand_rows_are_read_in_about_a_second(tmp_path: Path) -> None:
    """In processor time, and with room for a busy machine; 0.9 s where it was measured."""
    names = [f"loss/phase/{number}" for number in range(16)]
    lines = [json.dumps({"step": step} | dict.fromkeys(names, step / 7 + 0.1)) for step in range(100_000)]
    path = written(tmp_path, *lines)
    begin = time.process_time()
    rows = read_rows(path)
    bins = Bins.of(len(rows))
    for name in rows.names:
        column = rows.column(name)
        bins.minimum(column), bins.maximum(column), bins.mean(column)
    assert time.process_time() - begin < 3
