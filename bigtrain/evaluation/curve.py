"""The distance of samples against their recall over the values of one setting, as a picture: what truncation and guidance
trade."""

from collections.abc import Sequence

from PIL import Image, ImageDraw

from bigtrain.evaluation.table import Row

_WIDTH, _HEIGHT = 640, 480
_LEFT, _BOTTOM, _TOP, _RIGHT = 70, 50, 30, 90
_TICKS = 5


def as_curve(rows: Sequence[Row], distance: Sequence[str], recall: Sequence[str]) -> Image.Image:
    """A point for each row, in the order of the rows, named by it. distance, recall: the names of its two cells, by row."""
    points = [
        (row.cells[across].value, row.cells[down].value)
        for row, down, across in zip(rows, distance, recall, strict=True)
    ]
    (left, right), (low, high) = (_range([point[axis] for point in points]) for axis in (0, 1))
    sheet = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    pen = ImageDraw.Draw(sheet)
    wide, tall = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def at(point: tuple[float, float]) -> tuple[float, float]:
        across, up = (point[0] - left) / (right - left), (point[1] - low) / (high - low)
        return _LEFT + across * wide, _HEIGHT - _BOTTOM - up * tall

    for tick in range(_TICKS):
        share = tick / (_TICKS - 1)
        x, y = at((left + share * (right - left), low + share * (high - low)))
        pen.line((x, _TOP, x, _HEIGHT - _BOTTOM), fill="gainsboro")
        pen.line((_LEFT, y, _WIDTH - _RIGHT, y), fill="gainsboro")
        pen.text((x - 14, _HEIGHT - _BOTTOM + 8), f"{left + share * (right - left):.3g}", fill="dimgray")
        pen.text((8, y - 6), f"{low + share * (high - low):.4g}", fill="dimgray")
    pen.text((_LEFT, 8), distance[0], fill="black")
    pen.text((_WIDTH - _RIGHT - 60, _HEIGHT - 22), recall[0], fill="black")
    places = [at(point) for point in points]
    pen.line(places, fill="steelblue", width=2)
    for row, (x, y) in zip(rows, places, strict=True):
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill="navy")
        pen.text((x + 8, y - 6), row.name.rpartition("=")[2], fill="black")
    return sheet


def _range(values: Sequence[float]) -> tuple[float, float]:
    """A range with a margin, also of equal values."""
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or abs(low) * 0.1 or 1.0
    return low - margin, high + margin
