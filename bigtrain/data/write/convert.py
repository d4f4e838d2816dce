"""One picture file to one shard member: upright, grey or RGB, of one size, encoded; or the file's own bytes if it is all that
already."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from bigtrain.data.decode import (
    Undecodable,
    as_image,
    channels_of,
    covering_shape,
    decode,
    load,
    open_lazily,
    turn,
    with_channels,
)
from bigtrain.data.npy import npy_header

FORMATS = ("jpg", "png", "webp", "npy")
"""Formats of pictures in shards; npy is pixels that need no decoding, uint8 [H, W, 1 or 3]. WebP has no grey: it holds three
equal channels."""
_READ = ("JPEG", "PNG", "WEBP", "BMP")
_FORMAT_OF = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODERS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},  # 4:4:4: small pictures have no chroma to spare
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "exact": True},
}


@dataclass(frozen=True)
class Member:
    """A shard member. shape: (height, width); whole: of the picture before it was resized; mended: the file was damaged, but
    Pillow could read it."""

    extension: str
    data: bytes
    shape: tuple[int, int]
    channels: int
    whole: tuple[int, int]
    mended: bool


def convert(
    data: bytes,
    size: tuple[int, int] | None,
    wanted: str | None,
    channels: int | None = None,
    value_range: tuple[int, int] | None = None,
    half: str | None = None,
) -> Member:
    """A picture file as a shard member. Raises Undecodable.

    size: (height, width) in pixels; the picture is resized until it covers them (bicubic, antialiased), then the centre is
    cropped; None leaves the size as it is. wanted: one of FORMATS; None keeps the file's own (png for a format that shards
    cannot hold). channels: None keeps grey grey; 3 makes three equal channels of it. value_range: the values of a picture of
    16 bits that become 0 and 255, those between linearly; None takes the high byte. half: `left` or `right`, of a file that
    holds two pictures side by side.
    A file that is undamaged, upright, of that size and of that format already keeps its bytes, because encoding it once more
    would only lose quality. JPEG is written at quality 95, 4:4:4; WebP losslessly; npy is larger than both and fastest to
    read.
    """
    header = open_lazily(data, _READ)
    own, transpose = _FORMAT_OF.get(header.format or ""), turn(data)
    channels = channels or channels_of(header)
    image, mended = _pixels(data, header, channels) if value_range is None else (_in_range(header, value_range), False)
    whole = (image.height, image.width)
    untouched = transpose is None and half is None and value_range is None and not mended
    if untouched and own is not None and wanted in (None, own) and size in (None, whole):
        return Member(own, data, whole, channels, whole, mended)
    if transpose is not None:
        image = image.transpose(transpose)
    if half is not None:
        image = _half(image, half)
    whole = (image.height, image.width)
    if size is not None:
        image = _centre(image, size)
    extension = wanted or own or "png"
    stored_channels = 3 if extension == "webp" else channels
    return Member(extension, _encode(image, extension), (image.height, image.width), stored_channels, whole, mended)


def _pixels(data: bytes, header: Image.Image, channels: int) -> tuple[Image.Image, bool]:
    """(the picture, whether only Pillow could read it, which forgives damage such as stray bytes)."""
    if header.format == "BMP":
        return with_channels(load(header), channels), False
    try:
        return as_image(decode(data, channels)), False
    except Undecodable:
        return with_channels(load(header), channels), True


def _in_range(header: Image.Image, value_range: tuple[int, int]) -> Image.Image:
    """A picture of 16 bits as 8 bits. Raises Undecodable."""
    if not header.mode.startswith("I"):
        raise Undecodable(f"its pixels are {header.mode}, but a range is of grey pictures of 16 bits; leave it out")
    low, high = value_range
    values = np.asarray(load(header)).astype(np.int64).clip(low, high)
    return Image.fromarray(np.rint((values - low) * 255 / (high - low)).astype(np.uint8))


def _half(image: Image.Image, half: str) -> Image.Image:
    """Raises Undecodable for an odd width."""
    if image.width % 2:
        raise Undecodable(f"it is {image.width} pixels wide, which has no two equal halves")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height) if half == "left" else (middle, 0, image.width, image.height))


def _centre(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    height, width = covering_shape(image.height, image.width, size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size[1]) // 2, (height - size[0]) // 2
    return image.crop((left, top, left + size[1], top + size[0]))


def _encode(image: Image.Image, extension: str) -> bytes:
    if extension == "npy":
        pixels = np.asarray(image).reshape(image.height, image.width, -1)
        return npy_header(pixels.dtype, pixels.shape) + pixels.tobytes()
    file = io.BytesIO()
    image.info = {}  # drops the original's colour profile, comment and EXIF
    image.save(file, **_ENCODERS[extension])
    return file.getvalue()
