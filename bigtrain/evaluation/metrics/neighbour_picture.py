"""Samples beside the real images that are nearest to them, to see whether a model has memorised its data."""

from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.evaluation.images import ImageSet

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

    samples: uint8 [q, 3, H, W], the images `numbers` (int64 [q]) of `images`; distances float64 and neighbours int64, [q, k],
    nearest first. One process calls it.
    """
    pictures = _fetch(reference, np.unique(neighbours.numpy()), reading)
    tiles, described = [], []
    for row, number in enumerate(numbers.tolist()):
        nearest = list(zip(neighbours[row].tolist(), distances[row].tolist(), strict=True))
        tiles.append([(_picture(samples[row]), f"sample {number}")])
        tiles[-1] += [(_picture(pictures[other]), f"{distance:.4g}") for other, distance in nearest]
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


def _picture(image: Tensor) -> Image.Image:
    """A tile; small images are enlarged by repeating pixels."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
    resampling = Image.Resampling.NEAREST if max(picture.size) <= TILE else Image.Resampling.LANCZOS
    return picture.resize((TILE, TILE), resampling)


def _sheet(rows: list[list[tuple[Image.Image, str]]]) -> Image.Image:
    """The first column stands apart from the others."""
    wide, tall = TILE + GAP, TILE + CAPTION + GAP
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (columns * wide + 4 * GAP, len(rows) * tall + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for down, row in enumerate(rows):
        for across, (picture, caption) in enumerate(row):
            left, top = GAP + across * wide + (3 * GAP if across else 0), GAP + down * tall
            sheet.paste(picture, (left, top))
            pen.text((left, top + TILE), caption, fill="black")
    return sheet
