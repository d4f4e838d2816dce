"""Draws the panels of a family (bigtrain/families/panels.py) as one picture, and the pictures of a run as a moving one.

Everything is drawn SMOOTH times as large and reduced, so that lines and dots have soft edges. The same panels give the same
pixels.
"""

import io
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from bigtrain.families.panels import Arrows, Chart, Colour, Dots, Panel, Plane, Trace, Window

SIDE = 420
"""Pixels of a panel's plane or chart."""
SMOOTH = 2
"""How many times as large it is drawn."""
FRAME_MS = 140
LAST_FRAME_MS = 2500
"""How long frames of a moving picture are seen."""
_MARGIN, _TITLE, _LEGEND, _LEFT_OF_CHART = 16, 34, 30, 44
_LONGEST_ARROW = 34.0
_DOTS: dict[Colour, float] = {"real": 3.6, "second": 5.0}
"""Radius of a dot where it is not 2.4: data lie below samples, and are seen around them."""
_COLOURS: dict[Colour, tuple[int, int, int]] = {
    "real": (22, 130, 84),
    "fake": (122, 40, 138),
    "push": (60, 60, 72),
    "first": (214, 96, 38),
    "second": (40, 98, 176),
}
_TINTS = {-1: (206, 178, 222), 0: (250, 250, 248), 1: (168, 221, 190)}
"""Of a shade: towards the colour of fakes, of nothing, towards that of data."""
_INK, _PALE, _LINE = (45, 45, 52), (150, 150, 158), (222, 222, 226)


class Sheet:
    """Drawing in final pixels on a picture SMOOTH times as large."""

    def __init__(self, size: tuple[int, int]) -> None:
        self.image = Image.new("RGB", (size[0] * SMOOTH, size[1] * SMOOTH), "white")
        self._draw = ImageDraw.Draw(self.image, "RGBA")

    def line(
        self, ends: Sequence[tuple[float, float]], colour: tuple[int, int, int], width: float, alpha: int = 255
    ) -> None:
        places = [(x * SMOOTH, y * SMOOTH) for x, y in ends]
        self._draw.line(places, fill=(*colour, alpha), width=round(width * SMOOTH), joint="curve")

    def dot(
        self,
        at: tuple[float, float],
        radius: float,
        colour: tuple[int, int, int],
        alpha: int = 255,
        *,
        ring: bool = False,
    ) -> None:
        (x, y), reach = (at[0] * SMOOTH, at[1] * SMOOTH), radius * SMOOTH
        box = (x - reach, y - reach, x + reach, y + reach)
        if ring:
            self._draw.ellipse(box, fill="white", outline=(*colour, alpha), width=2 * SMOOTH)
        else:
            self._draw.ellipse(box, fill=(*colour, alpha))

    def triangle(self, corners: Sequence[tuple[float, float]], colour: tuple[int, int, int], alpha: int) -> None:
        self._draw.polygon([(x * SMOOTH, y * SMOOTH) for x, y in corners], fill=(*colour, alpha))

    def text(
        self,
        at: tuple[float, float],
        words: str,
        size: int = 12,
        colour: tuple[int, int, int] = _INK,
        anchor: str = "ls",
    ) -> float:
        """`anchor`: Pillow's, of the point `at` in the text. Returns the width."""
        font = ImageFont.load_default(size * SMOOTH)
        self._draw.text((at[0] * SMOOTH, at[1] * SMOOTH), words, fill=colour, font=font, anchor=anchor)
        return self._draw.textlength(words, font=font) / SMOOTH

    def paste(self, image: Image.Image, at: tuple[int, int]) -> None:
        self.image.paste(image, (at[0] * SMOOTH, at[1] * SMOOTH))

    def box(self, left: float, top: float, side: float) -> None:
        corners = [(left, top), (left + side, top), (left + side, top + side), (left, top + side), (left, top)]
        self.line(corners, _LINE, 1)

    def reduced(self) -> Image.Image:
        return self.image.reduce(SMOOTH)


def panel_picture(panels: Sequence[Panel], caption: str) -> Image.Image:
    """RGB. `caption`: what it is of, at the right of the last title."""
    widths = [SIDE + (_LEFT_OF_CHART if isinstance(panel, Chart) else 0) + _MARGIN for panel in panels]
    sheet = Sheet((sum(widths) + _MARGIN, _TITLE + SIDE + _LEGEND))
    left = _MARGIN
    for panel, width in zip(panels, widths, strict=True):
        inner = left + width - _MARGIN - SIDE
        sheet.text((inner, _TITLE - 12), panel.title, 15)
        if isinstance(panel, Plane):
            _draw_plane(sheet, panel, inner)
        else:
            _draw_chart(sheet, panel, inner)
        left += width
    sheet.text((left - _MARGIN, _TITLE - 12), caption, 13, _PALE, "rs")
    return sheet.reduced()


# -- planes -----------------------------------------------------------------------------------------------------------------


def _draw_plane(sheet: Sheet, plane: Plane, left: int) -> None:
    """On its own sheet, so that nothing is drawn beside it."""
    own = Sheet((SIDE, SIDE))
    own.paste(_shaded(plane.shade), (0, 0))
    for layer in plane.layers:
        if isinstance(layer, Dots):
            for place in _places(layer.points, plane.window):
                own.dot(place, _DOTS.get(layer.colour, 2.4), _COLOURS[layer.colour], 130)
        elif isinstance(layer, Arrows):
            _draw_arrows(own, layer, plane.window)
        else:
            _draw_trace(own, layer, plane.window)
    sheet.paste(own.image, (left, _TITLE))
    sheet.box(left, _TITLE, SIDE)
    at = float(left)
    for layer in plane.layers:
        colour, middle = _COLOURS[layer.colour], _TITLE + SIDE + 15
        if isinstance(layer, Dots):
            sheet.dot((at + 4, middle), 3.5, colour)
        else:
            sheet.line([(at, middle), (at + 9, middle)], colour, 2)
        at += 14 + sheet.text((at + 14, middle + 4), layer.label) + 18


def _places(points: Tensor, window: Window) -> list[tuple[float, float]]:
    """Where points [n, 2] are drawn, in pixels; those that are not finite are left out, the others far outside stay there."""
    left, right, bottom, top = window
    values = points.detach().double().cpu().numpy()
    values = values[np.isfinite(values).all(1)]
    x, y = (values[:, 0] - left) / (right - left), (top - values[:, 1]) / (top - bottom)
    return list(zip(*(np.clip(SIDE * axis, -SIDE, 2 * SIDE).tolist() for axis in (x, y)), strict=True))


def _shaded(shade: Tensor | None) -> Image.Image:
    """Tints of [height, width] in [-1, 1], and a line where it is zero."""
    side = SIDE * SMOOTH
    if shade is None:
        return Image.new("RGB", (side, side), _TINTS[0])
    values = np.nan_to_num(shade.detach().float().cpu().numpy())
    smooth = np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC)).clip(-1, 1)
    colours = np.stack([np.interp(smooth, list(_TINTS), [tint[c] for tint in _TINTS.values()]) for c in range(3)], 2)
    above = smooth > 0
    edge = np.zeros_like(above)
    edge[1:] |= above[1:] != above[:-1]
    edge[:, 1:] |= above[:, 1:] != above[:, :-1]
    colours[edge] = (140, 140, 148)
    return Image.fromarray(colours.round().astype(np.uint8))


def _draw_arrows(sheet: Sheet, arrows: Arrows, window: Window) -> None:
    """The longer ones as long as _LONGEST_ARROW, the others in proportion."""
    left, right, bottom, top = window
    along = arrows.along.detach().double().cpu().numpy() * [SIDE / (right - left), -SIDE / (top - bottom)]
    starts, finite = arrows.points, np.isfinite(along).all(1)
    lengths = np.hypot(*along[finite].T)
    if not len(lengths) or not lengths.max() > 0:
        return
    scale = _LONGEST_ARROW / np.quantile(lengths, 0.9) if np.quantile(lengths, 0.9) > 0 else 0.0
    for (x, y), (dx, dy), length in zip(_places(starts[finite], window), along[finite], lengths, strict=False):
        drawn = min(length * scale, _LONGEST_ARROW)
        if drawn < 1:
            continue
        dx, dy = dx / length, dy / length
        head = min(6.0, drawn / 2)
        tip, base = (x + dx * drawn, y + dy * drawn), (x + dx * (drawn - head), y + dy * (drawn - head))
        colour = _COLOURS[arrows.colour]
        sheet.line([(x, y), base], colour, 1.1, 190)
        side = head * 0.45
        corners = [tip, (base[0] - dy * side, base[1] + dx * side), (base[0] + dy * side, base[1] - dx * side)]
        sheet.triangle(corners, colour, 190)


def _draw_trace(sheet: Sheet, trace: Trace, window: Window) -> None:
    """Paler where it was long ago; a ring at its beginning, a dot at its end."""
    places, colour = _places(trace.points, window), _COLOURS[trace.colour]
    if not places:
        return
    for number, (begin, end) in enumerate(pairwise(places)):
        sheet.line([begin, end], colour, 1.6, 60 + round(180 * (number + 1) / len(places)))
    sheet.dot(places[0], 5, colour, ring=True)
    sheet.dot(places[-1], 5, colour)


# -- charts -----------------------------------------------------------------------------------------------------------------


def _draw_chart(sheet: Sheet, chart: Chart, left: int) -> None:
    values = [value for _, curve in chart.curves.values() for value in curve if _is_shown(value, chart.logarithmic)]
    last = max(chart.steps, default=0) or 1
    low, high = _bounds(values, chart.logarithmic)
    marks = _marks(low, high, chart.logarithmic)

    def place(step: float, value: float) -> tuple[float, float]:
        value = math.log10(value) if chart.logarithmic else value
        return left + SIDE * step / last, _TITLE + SIDE * (high - value) / (high - low)

    for height, words in marks:
        y = _TITLE + SIDE * (high - height) / (high - low)
        sheet.line([(left, y), (left + SIDE, y)], _LINE, 1)
        sheet.text((left - 6, y), words, 11, _PALE, "rm")
    for share in (0.0, 0.5, 1.0):
        anchor = {0.0: "lt", 0.5: "mt", 1.0: "rt"}[share]
        sheet.text((left + SIDE * share, _TITLE + SIDE + 8), f"{last * share:,.0f}", 11, _PALE, anchor)
    sheet.box(left, _TITLE, SIDE)
    for number, (label, (colour, curve)) in enumerate(chart.curves.items()):
        points = [place(s, v) for s, v in zip(chart.steps, curve, strict=True) if _is_shown(v, chart.logarithmic)]
        if len(points) > 1:
            sheet.line(points, _COLOURS[colour], 2)
        if points:
            sheet.dot(points[-1], 3.5, _COLOURS[colour])
        sheet.text((left + SIDE - 10, _TITLE + 20 + 18 * number), label, 13, _COLOURS[colour], "rs")


def _is_shown(value: float, logarithmic: bool) -> bool:
    return math.isfinite(value) and (value > 0 or not logarithmic)


def _bounds(values: Sequence[float], logarithmic: bool) -> tuple[float, float]:
    """The lowest and the highest height of a chart: whole powers of ten, as their exponents, or 0 and a round number."""
    if logarithmic:
        exponents = [math.log10(value) for value in values] or [0.0]
        return float(math.floor(min(exponents))), float(math.ceil(max(exponents)) + 1)  # room for the labels
    largest = max(values, default=0.0) or 1.0
    unit = 10.0 ** math.floor(math.log10(largest))
    return 0.0, next(unit * times for times in (1, 2, 4, 5, 8, 10) if unit * times >= largest)


def _marks(low: float, high: float, logarithmic: bool) -> list[tuple[float, str]]:
    if logarithmic:
        every = max(1, math.ceil((high - low) / 8))
        return [(float(power), f"1e{power}") for power in range(int(low), int(high) + 1, every)]
    return [(low + (high - low) * part / 4, f"{low + (high - low) * part / 4:.3g}") for part in range(5)]


# -- files ------------------------------------------------------------------------------------------------------------------


def moving_picture(frames: Sequence[Path]) -> bytes:
    """A GIF of pictures in the order of their names, which goes round; the last one is seen longer."""
    images = [Image.open(frame).convert("RGB") for frame in sorted(frames)]
    # One palette for all, so that colours do not flicker: that of a picture of some frames.
    some = images[:: max(1, len(images) // 6)][-6:] + images[-1:]
    sheet = Image.new("RGB", (some[0].width, sum(image.height for image in some)))
    for number, image in enumerate(some):
        sheet.paste(image, (0, sum(other.height for other in some[:number])))
    palette = sheet.quantize(255, Image.Quantize.MEDIANCUT)
    frames_ = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    stream = io.BytesIO()
    durations = [FRAME_MS] * (len(frames_) - 1) + [LAST_FRAME_MS]
    frames_[0].save(stream, "GIF", save_all=True, append_images=frames_[1:], duration=durations, loop=0, optimize=False)
    return stream.getvalue()
