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
_READ = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
_SEVERAL = ("TIFF", "GIF", "WEBP", "PNG")
"""Formats that may hold several pictures, of which the first is taken."""
Colour = tuple[int, int, int]
"""Red, green, blue, 0 .. 255."""
_OPAQUE, _BITS_PER_SAMPLE = 255, 258
_FORMAT_OF = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
_ENCODERS: dict[str, dict[str, Any]] = {
    "jpg": {"format": "JPEG", "quality": 95, "subsampling": 0},  # 4:4:4: small pictures have no chroma to spare
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True, "exact": True},
}


@dataclass(frozen=True)
class Member:
    """A shard member. shape: (height, width); whole: of the picture before it was resized; mended: the file was damaged, but
    Pillow could read it. Of what may have gone wrong in silence: largest: the largest value of a picture of 16 bits that was
    made one of 8 without a range; transparent: some of it was, and no background was given; flat: only then it became one
    colour; several: the file holds more pictures than this one."""

    extension: str
    data: bytes
    shape: tuple[int, int]
    channels: int
    whole: tuple[int, int]
    mended: bool
    largest: int | None = None
    transparent: bool = False
    flat: bool = False
    several: bool = False


def convert(
    data: bytes,
    size: tuple[int, int] | None,
    wanted: str | None,
    channels: int | None = None,
    value_range: tuple[int, int] | None = None,
    half: str | None = None,
    background: Colour | None = None,
) -> Member:
    """A picture file as a shard member. Raises Undecodable.

    size: (height, width) in pixels; the picture is resized until it covers them (bicubic, antialiased), then the centre is
    cropped; None leaves the size as it is. wanted: one of FORMATS; None keeps the file's own (png for a format that shards
    cannot hold). channels: None keeps grey grey; 3 makes three equal channels of it. value_range: the values of a picture of
    16 bits that become 0 and 255, those between linearly; None takes the high byte. half: `left` or `right`, of a file that
    holds two pictures side by side. background: what shows through transparent pixels; None takes the colour that they hide.
    Of several pictures in a file the first is taken.
    A file that is undamaged, upright, of that size and of that format already keeps its bytes, because encoding it once more
    would only lose quality. JPEG is written at quality 95, 4:4:4; WebP losslessly; npy is larger than both and fastest to
    read.
    """
    header = open_lazily(data, _READ)
    own, transpose = _FORMAT_OF.get(header.format or ""), turn(data)
    channels = channels or channels_of(header)
    seen_through = _is_transparent(header)
    mended = False
    if value_range is not None:
        image = _in_range(header, value_range)
    elif seen_through and background is not None:
        image = _over(header, background, channels)
    else:
        image, mended = _pixels(data, header, channels)
    remarks: dict[str, Any] = {"several": header.format in _SEVERAL and bool(getattr(header, "is_animated", False))}
    if value_range is None:
        remarks["largest"] = _largest(data, header, image)
        remarks["transparent"] = seen_through and background is None
        remarks["flat"] = (remarks["transparent"] or remarks["largest"] is not None) and _became_flat(header, image)
    whole = (image.height, image.width)
    untouched = transpose is None and half is None and value_range is None and not mended
    untouched = untouched and not (seen_through and background is not None)
    if untouched and own is not None and wanted in (None, own) and size in (None, whole):
        return Member(own, data, whole, channels, whole, mended, **remarks)
    if transpose is not None:
        image = image.transpose(transpose)
    if half is not None:
        image = _half(image, half)
    whole = (image.height, image.width)
    if size is not None:
        image = _centre(image, size)
    extension = wanted or own or "png"
    stored_channels = 3 if extension == "webp" else channels
    shape = (image.height, image.width)
    return Member(extension, _encode(image, extension), shape, stored_channels, whole, mended, **remarks)


def _pixels(data: bytes, header: Image.Image, channels: int) -> tuple[Image.Image, bool]:
    """(the picture, whether only Pillow could read it, which forgives damage such as stray bytes)."""
    if header.format not in _FORMAT_OF:
        return _by_pillow(header, channels), False
    try:
        return as_image(decode(data, channels)), False
    except Undecodable:
        return with_channels(load(header), channels), True


def _by_pillow(header: Image.Image, channels: int) -> Image.Image:
    """A picture of a format that shards cannot hold. Raises Undecodable."""
    image = load(header)
    if image.mode == "F":
        raise Undecodable(
            "its pixels are floating-point numbers, of which nobody says what is white; make it 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        low, high = _extrema(image)
        if low < 0 or high >= 2**16:
            raise Undecodable(f"its values run from {low} to {high}, which are not 16 bits; say --range LOW,HIGH")
    return with_channels(image, channels)


def _is_transparent(header: Image.Image) -> bool:
    """Whether a pixel is, wholly or in part. Reads pixels only where there can be one."""
    if header.mode.startswith(("I", "F")) or not header.has_transparency_data:
        return False
    return _extrema(load(header).convert("RGBA").getchannel("A"))[0] < _OPAQUE


def _over(header: Image.Image, background: Colour, channels: int) -> Image.Image:
    """The picture over a background."""
    image = load(header).convert("RGBA")
    return with_channels(Image.alpha_composite(Image.new("RGBA", image.size, background), image), channels)


def _largest(data: bytes, header: Image.Image, image: Image.Image) -> int | None:
    """The largest value of a picture of 16 bits, or its high byte's where Pillow gives no more; None for 8 bits."""
    if header.mode.startswith("I"):
        return _extrema(load(header))[1]
    bits = data[24] if header.format == "PNG" else max(getattr(header, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,)))
    if bits != 16:
        return None
    return 256 * max(_extrema(band)[1] for band in image.split()) + 255


def _became_flat(header: Image.Image, image: Image.Image) -> bool:
    """Whether a picture is of one colour, but its file holds more than that."""
    after, before = ([_extrema(band) for band in one.split()] for one in (image, load(header)))
    return all(low == high for low, high in after) and any(low != high for low, high in before)


def _extrema(band: Image.Image) -> tuple[int, int]:
    values = np.asarray(band)  # Pillow's own cannot do 16 bits of the other byte order
    return int(values.min()), int(values.max())


def _in_range(header: Image.Image, value_range: tuple[int, int]) -> Image.Image:
    """A picture of 16 or 32 bits as 8 bits. Raises Undecodable."""
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
