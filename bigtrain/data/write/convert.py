"""One picture file to one shard member: upright, RGB, square, encoded; or the file's own bytes if it is all that already."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bigtrain.data.decode import Undecodable, decode, load, open_lazily, square_shape, to_rgb, turn
from bigtrain.data.npy import npy_header

FORMATS = ("jpg", "png", "webp", "npy")
"""Formats of pictures in shards; npy is pixels that need no decoding, uint8 [H, W, 3]."""
_READ = ("JPEG", "PNG", "WEBP", "BMP")
_FORMAT_OF = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODERS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},  # 4:4:4: small pictures have no chroma to spare
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "exact": True},
}


@dataclass(frozen=True)
class Member:
    """A shard member. shape: (height, width); mended: the file was damaged, but Pillow could read it."""

    extension: str
    data: bytes
    shape: tuple[int, int]
    mended: bool


def convert(data: bytes, size: int | None, wanted: str | None) -> Member:
    """A picture file as a shard member. Raises Undecodable.

    size: side in pixels; the shorter side is resized to it (bicubic, antialiased), then the centre is cropped; None leaves
    the size as it is. wanted: one of FORMATS; None keeps the file's own (png for a format that shards cannot hold).
    A file that is undamaged, upright, of that size and of that format already keeps its bytes, because encoding it once more
    would only lose quality. JPEG is written at quality 95, 4:4:4; WebP losslessly; npy is larger than both and fastest to
    read.
    """
    header = open_lazily(data, _READ)
    own, transpose = _FORMAT_OF.get(header.format or ""), turn(data)
    image, mended = _pixels(data, header)
    fits = transpose is None and not mended and wanted in (None, own) and size in (None, *_square(image))
    if own is not None and fits:
        return Member(own, data, (image.height, image.width), mended)
    if transpose is not None:
        image = image.transpose(transpose)
    if size is not None:
        image = _centre_square(image, size)
    extension = wanted or own or "png"
    return Member(extension, _encode(image, extension), (image.height, image.width), mended)


def _pixels(data: bytes, header: Image.Image) -> tuple[Image.Image, bool]:
    """(the picture in RGB, whether only Pillow could read it, which forgives damage such as stray bytes)."""
    if header.format == "BMP":
        return to_rgb(load(header)), False
    try:
        return Image.fromarray(decode(data)), False
    except Undecodable:
        return to_rgb(load(header)), True


def _square(image: Image.Image) -> tuple[int, ...]:
    return (image.width,) if image.width == image.height else ()


def _centre_square(image: Image.Image, size: int) -> Image.Image:
    height, width = square_shape(image.height, image.width, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _encode(image: Image.Image, extension: str) -> bytes:
    if extension == "npy":
        pixels = np.asarray(image)
        return npy_header(pixels.dtype, pixels.shape) + pixels.tobytes()
    file = io.BytesIO()
    image.info = {}  # drops the original's colour profile, comment and EXIF
    image.save(file, **_ENCODERS[extension])
    return file.getvalue()
