"""Tiles that show a sample's field to people: pictures as they are, numbers as colours, points as paths, the rest as text."""

import colorsys
import textwrap

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 96
"""Pixels of a tile's longer side."""
_MARGIN = 4
_CHARACTERS, _LINES = 15, 8
"""Of a text that fits into a tile."""


def picture_tile(pixels: np.ndarray) -> Image.Image:
    """uint8 [H, W, 1 or 3], enlarged by a whole factor or reduced to TILE pixels."""
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longest = max(image.size)
    if longest <= TILE:
        return image.resize(
            (image.width * (TILE // longest), image.height * (TILE // longest)), Image.Resampling.NEAREST
        )
    return image.resize((max(1, image.width * TILE // longest), max(1, image.height * TILE // longest)))


def number_tile(numbers: np.ndarray) -> Image.Image:
    """Integers [H, W], each with a colour of its own; 0 is black."""
    colours = np.array(
        [[0, 0, 0]] + [[round(255 * c) for c in colorsys.hsv_to_rgb(n * 0.618 % 1, 0.65, 0.95)] for n in range(1, 256)],
        dtype=np.uint8,
    )
    return picture_tile(colours[numbers.astype(np.int64) % 256])


def path_tile(points: np.ndarray, low: np.ndarray, high: np.ndarray) -> Image.Image:
    """Points [n, 2] joined in their order, within the bounds `low` and `high` [2]; the first dimension to the right, the second
    upwards. Points that are NaN are left out."""
    image = Image.new("RGB", (TILE, TILE), "white")
    side = TILE - 2 * _MARGIN
    span = np.maximum(high - low, 1e-12)
    shown = (points[np.isfinite(points).all(1)] - low) / span * side
    places = [(_MARGIN + x, TILE - _MARGIN - y) for x, y in shown.tolist()]
    draw = ImageDraw.Draw(image)
    if len(places) > 1:
        draw.line(places, fill=(40, 90, 200), width=2)
    for x, y in places[:1]:
        draw.ellipse((x - 3, y - 3, x + 3, y + 3), fill=(200, 40, 40))
    return image


def text_tile(text: str) -> Image.Image:
    """The beginning of a text."""
    lines = textwrap.wrap(text, _CHARACTERS) or [""]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], "..."]
    image = Image.new("RGB", (TILE, TILE), "white")
    ImageDraw.Draw(image).text((_MARGIN, _MARGIN), "\n".join(lines), fill="black", font=ImageFont.load_default(10))
    return image
