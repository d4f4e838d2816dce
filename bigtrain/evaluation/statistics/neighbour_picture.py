"""Samples beside the real images that are nearest to them, to see whether a model has memorised its data."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.evaluation.images import ImageSet
from bigtrain.pictures import picture

TILE = 96
"""Pixels of a tile's side."""
CAPTION = 14
GAP = 4


def neighbour_picture(
    samples: Tensor,
    images: ImageSet,
    numbers: np.ndarray,
    reference: ImageSet,
    distances: Tensor,
    neighbours: Tensor,
    reading: Reading,
) -> tuple[list[dict[str, Any]], Image.Image]:
    """(for each sample its name and its neighbours' names and distances, as JSON; a picture, one sample a row with its
    neighbours).

    samples: uint8 [q, C, H, W], the images `numbers` (int64 [q]) of `images`; distances float64 and neighbours int64, [q, k],
    nearest first. One process calls it.
    """
    pictures = _fetch(reference, np.unique(neighbours.numpy()), reading)
    tiles, described = [], []
    for row, number in enumerate(numbers.tolist()):
        nearest = list(zip(neighbours[row].tolist(), distances[row].tolist(), strict=True))
        tiles.append([(_tile(samples[row]), f"sample {number}")])
        tiles[-1] += [(_tile(pictures[other]), f"{distance:.4g}") for other, distance in nearest]
        described.append(
            {
                "sample": images.name_of(number),
                "nearest": [{"image": reference.name_of(other), "distance": distance} for other, distance in nearest],
            }
        )
    return described, _sheet(tiles)


def _fetch(reference: ImageSet, numbers: np.ndarray, reading: Reading) -> dict[int, Tensor]:
    reading_here = Reading(reading.batch, 0)
    images: dict[int, Tensor] = {}
    for batch in reference.batches(numbers, reading_here, torch.device("cpu")):
        for rows, group in batch.groups:
            images |= dict(zip(batch.numbers[rows].tolist(), group, strict=True))
    return images


def _tile(image: Tensor) -> Image.Image:
    """A tile, whose longer side is TILE; small images are enlarged by repeating pixels."""
    tile, scale = picture(image), TILE / max(image.shape[1:])
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    return tile.resize((round(tile.width * scale), round(tile.height * scale)), resampling)


def _sheet(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    """The first column stands apart from the others."""
    wide, tall = TILE + GAP, TILE + CAPTION + GAP
    columns = max(len(row) for row in rows)
    mode = "L" if all(tile.mode == "L" for row in rows for tile, _ in row) else "RGB"
    sheet = Image.new(mode, (columns * wide + 4 * GAP, len(rows) * tall + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for down, row in enumerate(rows):
        for across, (tile, caption) in enumerate(row):
            left, top = GAP + across * wide + (3 * GAP if across else 0), GAP + down * tall
            sheet.paste(tile, (left, top))
            pen.text((left, top + TILE), caption, fill="black")
    return sheet
