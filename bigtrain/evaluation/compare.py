"""A table over evaluations that were made, with intervals, as text, CSV and a picture.

A row is a JSON file, or a run's newest evaluated step. Results of one run and step whose protocols differ in nothing but
the seed are repetitions: their row is their mean, with Student's 95 % interval over the seeds. A single result, or a number
that does not depend on the seed, has an interval where its error is known without repetition: a share of n images (Wilson
1927), or a mean whose standard error the result carries. A FID of one seed has none: a bootstrap of its samples would add
bias of the size that it is to measure.

Rows whose protocols differ are marked: a difference between them may be the protocol's.
"""

import csv
import io
import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from bigtrain.errors import UserMistake
from bigtrain.runs import atomic

OF_THE_MODEL = ("weights", "step", "sampling", "followed", "selection", "images", "image_size")
"""Keys of a protocol that say what was evaluated rather than how."""
SHARE = re.compile(r"accuracy(_.*)?")
"""A metric that is a share of the samples; what follows its name is the way of sampling."""
SPREAD = re.compile(r".*(_standard_error|_std)(_.*)?")
"""What says how far another number spreads."""
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Cell:
    """`half`: (below, above) the value to the ends of its 95 % interval; None where it has none."""

    value: float
    half: tuple[float, float] | None = None

    def __str__(self) -> str:
        if self.half is None:
            return f"{self.value:.4g}"
        below, above = self.half
        if abs(above - below) <= 0.05 * max(above, below):
            return f"{self.value:.4g} ± {(above + below) / 2:.2g}"
        return f"{self.value:.4g} (-{below:.2g} +{above:.2g})"


@dataclass(frozen=True)
class Row:
    """`protocol`: without the seed and what says what was evaluated; `mark`: the letter of that protocol."""

    name: str
    protocol: dict[str, Any]
    cells: dict[str, Cell]
    seeds: int
    mark: str = ""


def compare(places: Sequence[Path], table: Path | None, picture: Path | None) -> None:
    """Prints the table of evaluations to stdout, and writes it as CSV and as a PNG where these are named.

    Protocols that differ are told on stderr. Raises UserMistake for what is no evaluation.
    """
    rows = _marked([_row(place) for place in places])
    metrics = list(dict.fromkeys(key for row in rows for key in row.cells))
    print(as_text(rows, metrics))
    for line in _differences(rows):
        print(line, file=sys.stderr)
    try:
        if table is not None:
            atomic.write_bytes(table, as_csv(rows, metrics).encode())
        if picture is not None:
            stream = io.BytesIO()
            as_picture(rows, metrics).save(stream, format="PNG")
            atomic.write_bytes(picture, stream.getvalue())
    except OSError as error:
        raise UserMistake(f"{error.filename}: cannot be written ({error.strerror})") from None


# -- reading ------------------------------------------------------------------------------------------------------------


def _row(place: Path) -> Row:
    results = _newest(place) if place.is_dir() else [_read(place)]
    return Row(str(place), _how(results[0]), _cells(results), len(results))


def _newest(run: Path) -> list[dict[str, Any]]:
    """The results of a run's newest evaluated step, of one protocol but for seeds."""
    paths = sorted((run / "evaluations").glob("step_*.json"))
    if not paths:
        raise UserMistake(f"{run}: has no evaluations/step_*.json; evaluate it with launch/evaluate.py {run}")
    step = paths[-1].stem.split("_")[1]
    newest = [_read(path) for path in paths if path.stem.split("_")[1] == step]
    without_seed = {json.dumps(_without(one["protocol"], ("seed",)), sort_keys=True) for one in newest}
    if len(without_seed) > 1:
        raise UserMistake(
            f"{run}: step {int(step)} was evaluated by {len(without_seed)} protocols that differ in more than the seed; name "
            "the files in evaluations/ that you mean"
        )
    return newest


def _read(path: Path) -> dict[str, Any]:
    try:
        lines = path.read_text(encoding="utf-8").strip()
        result = json.loads(lines)
    except OSError as error:
        raise UserMistake(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserMistake(f"{path}: is not the JSON of an evaluation") from None
    if not isinstance(result, dict) or not isinstance(result.get("protocol"), dict):
        raise UserMistake(f"{path}: has no protocol, so it is not the result of an evaluation")
    return result


def _how(result: Mapping[str, Any]) -> dict[str, Any]:
    return _without(result["protocol"], ("seed", *OF_THE_MODEL))


def _without(protocol: Mapping[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in protocol.items() if key not in keys}


# -- numbers ------------------------------------------------------------------------------------------------------------


def _cells(results: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    names = [key for key, value in results[0].items() if isinstance(value, float) and not SPREAD.fullmatch(key)]
    cells = {}
    for name in names:
        values = [one[name] for one in results if name in one]
        if len(set(values)) == 1:  # one result, or real data alone: no repetition says anything of its error
            cells[name] = _single(name, results[0])
        elif len(values) == len(results):
            cells[name] = repeated(values)
    return cells


def repeated(values: Sequence[float]) -> Cell:
    """The mean of independent repetitions and Student's 95 % interval."""
    from scipy.stats import t  # a second to import, and only this needs it

    half = float(t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Cell(statistics.fmean(values), (half, half))


def _single(name: str, result: Mapping[str, Any]) -> Cell:
    value = result[name]
    if f"{name}_standard_error" in result:
        half = Z95 * result[f"{name}_standard_error"]
        return Cell(value, (half, half))
    if SHARE.fullmatch(name):
        return share(value, result["protocol"]["samples"])
    return Cell(value)


def share(value: float, count: int) -> Cell:
    """A share of `count` independent images, with Wilson's 95 % interval."""
    scale = 1 + Z95**2 / count
    centre = (value + Z95**2 / (2 * count)) / scale
    reach = Z95 * math.sqrt(value * (1 - value) / count + Z95**2 / (4 * count**2)) / scale
    return Cell(value, (value - (centre - reach), centre + reach - value))


# -- protocols ----------------------------------------------------------------------------------------------------------


def _marked(rows: Sequence[Row]) -> list[Row]:
    """Each row with the letter of its protocol, A for the first's; no letters where there is one protocol."""
    protocols: list[dict[str, Any]] = []
    for row in rows:
        if row.protocol not in protocols:
            protocols.append(row.protocol)
    if len(protocols) == 1:
        return list(rows)
    letters = [chr(ord("A") + place) if place < 26 else str(place) for place in range(len(protocols))]
    return [Row(row.name, row.protocol, row.cells, row.seeds, letters[protocols.index(row.protocol)]) for row in rows]


def _differences(rows: Sequence[Row]) -> list[str]:
    lines, told = [], {rows[0].mark}
    for row in rows:
        if row.mark not in told:
            told.add(row.mark)
            keys = sorted(_differing(rows[0].protocol, row.protocol))
            lines.append(
                f"WARNING: rows {row.mark} were not measured as rows {rows[0].mark} were, so their numbers do not compare: "
                f"{', '.join(keys)}"
            )
    return lines


def _differing(first: Mapping[str, Any], second: Mapping[str, Any], prefix: str = "") -> set[str]:
    keys = set()
    for key in first.keys() | second.keys():
        ours, theirs = first.get(key), second.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            keys |= _differing(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            keys.add(f"{prefix}{key} ({json.dumps(ours)[:40]} / {json.dumps(theirs)[:40]})")
    return keys


# -- showing ------------------------------------------------------------------------------------------------------------


def as_text(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Columns of equal width; `!X` after a row of protocol X where protocols differ."""
    head = ["", *metrics, "seeds"]
    lines = [
        [
            row.name + (f" !{row.mark}" if row.mark else ""),
            *(str(row.cells[metric]) if metric in row.cells else "-" for metric in metrics),
            str(row.seeds),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [head, *lines]
    )


def as_csv(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """One line a row: name, protocol's letter, seeds, then of each metric the value and the ends of its interval."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    ends = [f"{metric}{end}" for metric in metrics for end in ("", "_low", "_high")]
    writer.writerow(["name", "protocol", "seeds", *ends])
    for row in rows:
        values: list[Any] = []
        for metric in metrics:
            cell = row.cells.get(metric)
            interval = [cell.value - cell.half[0], cell.value + cell.half[1]] if cell and cell.half else ["", ""]
            values += [cell.value if cell else "", *interval]
        writer.writerow([row.name, row.mark, row.seeds, *values])
    return stream.getvalue()


def as_picture(rows: Sequence[Row], metrics: Sequence[str]) -> Image.Image:
    """A panel for each metric: a dot for each row, a line for its interval, each panel on its own scale."""
    name_width = 12 + max(int(ImageDraw.Draw(Image.new("RGB", (1, 1))).textlength(row.name)) for row in rows)
    panel, line, top = 220, 24, 30
    sheet = Image.new("RGB", (name_width + panel * len(metrics), top + line * len(rows) + 10), "white")
    pen = ImageDraw.Draw(sheet)
    for number, row in enumerate(rows):
        pen.text((6, top + line * number), row.name, fill="black")
    for column, metric in enumerate(metrics):
        left = name_width + panel * column
        pen.text((left, 8), metric, fill="black")
        cells = {number: row.cells[metric] for number, row in enumerate(rows) if metric in row.cells}
        ends = [
            cell.value + side
            for cell in cells.values()
            for side in ((-cell.half[0], cell.half[1]) if cell.half else (0.0,))
        ]
        low, high = min(ends), max(ends)
        scale = (panel - 100) / (high - low) if high > low else 0.0
        for number, cell in cells.items():
            across, down = left + 8 + (cell.value - low) * scale, top + line * number + 6
            if cell.half is not None:
                pen.line((across - cell.half[0] * scale, down, across + cell.half[1] * scale, down), fill="steelblue")
            pen.ellipse(
                (across - 4, down - 4, across + 4, down + 4), fill="tomato" if rows[number].mark > "A" else "navy"
            )
            pen.text(
                (left + panel - 84, down - 6),
                f"{cell.value:.4g}{' !' + rows[number].mark if rows[number].mark else ''}",
                fill="black",
            )
    return sheet
