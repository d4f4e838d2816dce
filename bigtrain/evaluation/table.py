"""A table of evaluations as text, CSV and a picture."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw


@dataclass(frozen=True)
class Cell:
    """`half`: distances (below, above) from the value to the ends of its 95 % interval; None if it has none. `kind`: of the
    value, for a metric that has several, such as bits per dimension."""

    value: float
    half: tuple[float, float] | None = None
    kind: str = ""

    def __str__(self) -> str:
        kind = f" {self.kind}" if self.kind else ""
        if self.half is None:
            return f"{self.value:.4g}{kind}"
        below, above = self.half
        if abs(above - below) <= 0.05 * max(above, below):
            return f"{self.value:.4g} ± {(above + below) / 2:.2g}{kind}"
        return f"{self.value:.4g} (-{below:.2g} +{above:.2g}){kind}"


@dataclass(frozen=True)
class Row:
    """`protocol`: without the seed and the keys OF_THE_MODEL; `mark`: the letter of that protocol."""

    name: str
    protocol: dict[str, Any]
    cells: dict[str, Cell]
    seeds: int
    mark: str = ""


def as_text(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """Columns of equal width; `!X` after a row of protocol X where protocols differ."""
    header = ["", *metrics, "seeds"]
    lines = [
        [
            row.name + (f" !{row.mark}" if row.mark else ""),
            *(str(row.cells[metric]) if metric in row.cells else "-" for metric in metrics),
            str(row.seeds),
        ]
        for row in rows
    ]
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    return "\n".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *lines]
    )


def as_csv(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """One line a row: name, protocol's letter, seeds, then of each metric the value, the ends of its interval and, of a metric
    that has several, its kind."""
    stream = io.StringIO()
    writer = csv.writer(stream)
    of_kinds = {metric for row in rows for metric, cell in row.cells.items() if cell.kind}
    heads = [(metric, ("", "_low", "_high", *(["_kind"] if metric in of_kinds else []))) for metric in metrics]
    writer.writerow(["name", "protocol", "seeds", *(f"{metric}{end}" for metric, ends in heads for end in ends)])
    for row in rows:
        values: list[Any] = []
        for metric in metrics:
            cell = row.cells.get(metric)
            interval = [cell.value - cell.half[0], cell.value + cell.half[1]] if cell and cell.half else ["", ""]
            values += [cell.value if cell else "", *interval]
            values += [cell.kind if cell else ""] if metric in of_kinds else []
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
            if cell.kind:
                pen.text((left + 8, down + 4), cell.kind, fill="dimgray")
    return sheet
