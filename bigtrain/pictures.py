"""Pictures for people: grids of samples."""

import io
import os
import re
import shutil
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
GAP = 2
"""Pixels of the white line between two tiles of a grid, and around it."""
MOST_PIXELS = 2**27
"""Of one picture: programs refuse larger ones, which could fill the memory."""
LONGEST_NAME = 200
"""Bytes of the name of a class's folder; file systems take some more."""
_NUMBERED = re.compile(r"\d{6,}\.png|\.\d{6,}\.png\.[0-9a-f]{12}\.tmp")
"""The names in a folder of pictures, and those of files that a killed command was writing."""


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] to uint8 by rounding, as EDM2 and StudioGAN do (guided-diffusion truncates, which changes a FID)."""
    return images.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def picture(image: Tensor) -> Image.Image:
    """uint8 [C, H, W]: of mode L with one channel, of mode RGB with three."""
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    return Image.fromarray(pixels.cpu().contiguous().numpy())


def check_grid(count: int, columns: int, size: tuple[int, int]) -> None:
    """Raises UserError if the grid of `count` images of `size` (height, width) would have more than MOST_PIXELS."""
    tall, wide = (side * _scale(size) + GAP for side in size)
    height, width = -(-count // columns) * tall + GAP, columns * wide + GAP
    if height * width > MOST_PIXELS:
        raise UserError(
            f"a grid of {count} images would be one picture of {height} x {width} pixels, and {MOST_PIXELS} are the most; draw "
            "fewer, or numbered files into a folder"
        )


def _scale(size: tuple[int, int]) -> int:
    return max(1, -(-SMALLEST_TILE // min(size)))


def grid(images: Tensor, columns: int) -> Image.Image:
    """uint8 [n, C, H, W] row by row, with a thin white line between the tiles. Raises UserError as `check_grid` does."""
    count, channels, height, width = images.shape
    check_grid(count, columns, (height, width))
    rows = -(-count // columns)
    scale = _scale((height, width))
    tiles = images.cpu().repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    tall, wide = height * scale + GAP, width * scale + GAP
    sheet = torch.full((channels, rows * tall + GAP, columns * wide + GAP), 255, dtype=torch.uint8)
    for position, tile in enumerate(tiles):
        top, left = (position // columns) * tall + GAP, (position % columns) * wide + GAP
        sheet[:, top : top + height * scale, left : left + width * scale] = tile
    return picture(sheet)


def save_grid(path: Path, images: Tensor, columns: int) -> None:
    """Writes the grid as a PNG, atomically. Raises UserError if it cannot be written."""
    save_png(path, grid(images, columns))


def check_file(path: Path) -> None:
    """Raises UserError if there is something at `path` that is not replaced: a folder, a link or a device."""
    try:
        atomic.check_replaceable(path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; name another file") from None


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raises UserError if `save_pngs` would leave pictures of others among its own, or delete what is no picture of its own."""
    try:
        entries = sorted(folder.iterdir())
        inside = [path for entry in entries for path in _within(entry)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"{folder}: cannot hold pictures ({error.strerror}); name another folder") from None
    if entries and not overwrite:
        raise UserError(
            f"{folder}: holds {entries[0].name} already, which would lie among the new pictures; name another folder, or "
            "replace the numbered pictures in this one with --overwrite"
        )
    for path in inside:
        if not _NUMBERED.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            raise UserError(
                f"{folder}: holds {path.relative_to(folder)}, which is no numbered picture; name another folder"
            )


def _within(entry: Path) -> list[Path]:
    """What lies in the folder of a class; of anything else, itself."""
    return sorted(entry.iterdir()) if entry.is_dir() and not entry.is_symlink() else [entry]


def class_folders(classes: Sequence[str]) -> list[str]:
    """The folder of each class: its name, or the numbers of all where a name is no plain name of a folder of its own."""
    plain = all(re.fullmatch(r"[^./\\\x00-\x1f\x7f][^/\\\x00-\x1f\x7f]*", name) for name in classes)
    fit = max((len(os.fsencode(name)) for name in classes), default=0) <= LONGEST_NAME
    if plain and fit and len({name.casefold() for name in classes}) == len(classes):
        return list(classes)
    return [f"{number:04d}" for number in range(len(classes))]


def save_pngs(folder: Path, images: Tensor, folders: Sequence[str] | None = None, *, overwrite: bool = False) -> None:
    """uint8 [n, C, H, W] as FOLDER/000000.png and so on, or in `folders`, the folder of each image's class
    (FOLDER/CLASS/000000.png), and none but these. Raises UserError as `check_folder` does."""
    check_folder(folder, overwrite=overwrite)
    try:
        for earlier in list(folder.iterdir()) if folder.exists() else ():
            shutil.rmtree(earlier) if earlier.is_dir() else earlier.unlink()
    except OSError as error:
        raise UserError(f"{folder}: its pictures cannot be replaced ({error.strerror})") from error
    for number, image in enumerate(images.cpu()):
        beside = folder if folders is None else folder / folders[number]
        save_png(beside / f"{number:06d}.png", picture(image))


def save_npz(path: Path, images: Tensor, labels: Sequence[int] | None) -> None:
    """guided-diffusion's sample file: arr_0 uint8 [n, H, W, C] and, where the samples have classes, arr_1 int64 [n]."""
    stream = io.BytesIO()
    classes = [] if labels is None else [np.asarray(labels, dtype=np.int64)]
    np.savez(stream, images.cpu().permute(0, 2, 3, 1).numpy(), *classes)
    save_bytes(path, stream.getvalue())


def save_png(path: Path, image: Image.Image) -> None:
    """Writes a picture, atomically. Raises UserError if it cannot be written."""
    stream = io.BytesIO()
    image.save(stream, format="PNG")
    save_bytes(path, stream.getvalue())


def save_bytes(path: Path, data: bytes) -> None:
    """Writes a picture that is encoded already, atomically. Raises UserError if it cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_bytes(path, data)
    except OSError as error:
        raise UserError(f"{path}: cannot write the picture ({error.strerror})") from error
