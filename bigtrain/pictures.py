"""Pictures for people: grids of samples."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.runs import atomic

SMALLEST_TILE = 48
"""Pixels: smaller images are enlarged by a whole factor with nearest neighbour, so that pixels keep their values."""


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 by rounding, as EDM2 and StudioGAN do (guided-diffusion truncates, which changes a FID)."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W]: of mode L with one channel, of mode RGB with three."""
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().contiguous().numpy())


def grid(images: Tensor, columns: int) -> Image.Image:
    """uint8 [n, C, H, W] row by row, with a thin white line between the tiles."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    scale = max(1, -(-SMALLEST_TILE // min(height, width)))
    tiles = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    gap = 2
    tall, wide = height * scale + gap, width * scale + gap
    sheet = torch.full((channels, rows * tall + gap, columns * wide + gap), 255, dtype=torch.uint8)
    for position, tile in enumerate(tiles):
        top, left = (position // columns) * tall + gap, (position % columns) * wide + gap
        sheet[:, top : top + height * scale, left : left + width * scale] = tile
    return picture(sheet)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Writes the grid as a PNG, atomically. Raises UserError if it cannot be written."""
    _save_png(path, grid(images, columns))


def save_pngs(folder: Path, images: Tensor) -> None:
    """uint8 [n, C, H, W] as FOLDER/000000.png and so on."""
    for number, image in enumerate(images.cpu()):
        _save_png(folder / f"{number:06d}.png", picture(image))


def save_npz(path: Path, images: Tensor, labels: Sequence[int] | None) -> None:
    """guided-diffusion's sample file: arr_0 uint8 [n, H, W, C] and, where the samples have classes, arr_1 int64 [n]."""
    stream = io.BytesIO()
    classes = [] if labels is None else [np.asarray(labels, dtype=np.int64)]
    np.savez(stream, images.cpu().permute(0, 2, 3, 1).numpy(), *classes)
    _save(path, stream.getvalue())


def _save_png(path: Path, image: Image.Image) -> None:
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    _save(path, stream.getvalue())


def _save(path: Path, data: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture ({error.strerror})") from error
