"""Samples beside the real images that are nearest to them, for the question whether a model has learned by heart."""

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
    """(for each sample its name and its neighbours' names and distances, as JSON; one sample a row with its neighbours).

    samples: uint8 [q, 3, H, W], images `numbers` (int64 [q]) of their set; distances float64 and neighbours int64, [q, k],
    in the order of nearness; by this process alone.
    """
    found = _fetch(reference, np.unique(neighbours.numpy()), reading)
    rows, described = [], []
    for place, number in enumerate(numbers.tolist()):
        nearest = list(zip(neighbours[place].tolist(), distances[place].tolist(), strict=True))
        rows.append([(_picture(samples[place]), f"sample {number}")])
        rows[-1] += [(_picture(found[other]), f"{distance:.4g}") for other, distance in nearest]
        described.append(
            {
                "sample": images.name_of(number),
                "nearest": [{"image": reference.name_of(other), "distance": distance} for other, distance in nearest],
            }
        )
    return described, _sheet(rows)


def _fetch(reference: ImageSet, numbers: np.ndarray, reading: Reading) -> dict[int, Tensor]:
    here = Reading(reading.batch, 0)
    found: dict[int, Tensor] = {}
    for batch in reference.batches(numbers, here, torch.device("cpu")):
        for places, group in batch.groups:
            found |= dict(zip(batch.numbers[places].tolist(), group, strict=True))
    return found


def _picture(image: Tensor) -> Image.Image:
    """A tile; small images are enlarged by repeating pixels."""
    picture = Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
    how = Image.Resampling.NEAREST if max(picture.size) <= TILE else Image.Resampling.LANCZOS
    return picture.resize((TILE, TILE), how)


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
