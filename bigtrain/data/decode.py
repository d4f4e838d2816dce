"""Bytes to pixels and to labels: an allow-list of formats, chosen by content, and nothing that executes.

Ordinary JPEG goes through libjpeg-turbo by simplejpeg, strictly: a damaged image is an error, never half a picture. The
rest (PNG, WebP, and JPEG in CMYK or YCCK) goes through Pillow. EXIF orientation is ignored here: shards are written
upright.
"""

import io
import warnings

import numpy as np
import simplejpeg
from PIL import Image

MAX_PIXELS = 2**27
"""Larger images are refused before any memory is taken for them (a decompression bomb, or a damaged header)."""
_UNUSUAL = "Could not determine subsampling"
"""What libjpeg-turbo's simple interface says of rare but valid samplings, which Pillow reads."""
_JPEG_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")
_LABEL_DIGITS = 9


class Undecodable(Exception):
    """These bytes are not an image, or not a label; the text says why, and the caller knows whose bytes they are."""


def decode(data: bytes) -> np.ndarray:
    """A JPEG, PNG or WebP file as uint8 [H, W, 3], RGB. Raises Undecodable."""
    if data.startswith(b"\xff\xd8"):
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
            _check_pixels(width, height)
            if colours in _JPEG_COLOURS:
                return simplejpeg.decode_jpeg(data, "RGB")
        except ValueError as error:
            if _UNUSUAL not in str(error):
                raise Undecodable(str(error)) from None
    return np.asarray(to_rgb(load(open_lazily(data, _PILLOW_FORMATS))))


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the header alone. Raises Undecodable."""
    width, height = open_lazily(data, _PILLOW_FORMATS).size
    return height, width


def open_lazily(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Pillow's image with its header read and its pixels not yet; formats by Pillow's names. Raises Undecodable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(data), formats=formats)
    except Exception as error:
        raise _undecodable(error) from None
    _check_pixels(*image.size)
    return image


def load(image: Image.Image) -> Image.Image:
    """The same image with its pixels read. Raises Undecodable."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image.load()
    except Exception as error:
        raise _undecodable(error) from None
    return image


def _undecodable(error: Exception) -> Exception:
    """Pillow's plugins raise nearly anything on damaged bytes; all of it means that, except a lack of memory."""
    if isinstance(error, MemoryError):
        return error
    if "cannot identify image file" in str(error):
        return Undecodable("the content is not an image of a known format")
    return Undecodable(f"{type(error).__name__}: {error}")


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey and palettes become RGB, transparency is dropped (as torchvision's loader does), 16 bits become 8."""
    if image.mode.startswith("I"):
        high_bytes = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(high_bytes)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Undecodable(f"{width} x {height} is more than {MAX_PIXELS} pixels")


def label(data: bytes) -> int:
    """The class number of a .cls member: decimal digits and nothing else but white space around. Raises Undecodable."""
    text = data.strip()
    if not text.isdigit() or len(text) > _LABEL_DIGITS:
        raise Undecodable(f"{data[:20]!r} is not a decimal class number")
    return int(text)
