"""Bytes to pixels and to labels: an allow-list of formats, chosen by content, and nothing that executes.

Ordinary JPEG goes through libjpeg-turbo by simplejpeg, strictly: a damaged image is an error, never half a picture. The
rest (PNG, WebP, and JPEG in CMYK or YCCK) goes through Pillow. Images that were decoded beforehand are npy: uint8
[H, W, 3]. `decode` gives pixels as they are stored; what is read for training is turned upright as EXIF says, which
launch/shard.py has done already, but not everybody.
"""

import io
import json
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from bigtrain.data.npy import MAGIC, npy_header, read_npy_header

MAX_PIXELS = 2**27
"""Larger images are refused before any memory is taken for them (a decompression bomb, or a damaged header)."""
_JPEG = b"\xff\xd8"
_UNUSUAL = "Could not determine subsampling"
"""What libjpeg-turbo's simple interface says of rare but valid samplings, which Pillow reads."""
_JPEG_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})
_EXIF_ORIENTATION = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JFIF, _TABLES = b"\xff\xd8\xff\xe0\x00\x10", b"\xff\xdb"
"""A JPEG's first bytes and those behind its JFIF segment, where nothing but pixels is in it: told quickly, as most are so."""
_FIRST_SEGMENTS = frozenset(bytes([marker]) for marker in (*range(0xE0, 0xF0), 0xFE))
"""JPEG's markers of applications' segments and of comments, which stand before all others."""
_ORIENTED = {b"\x89PNG": (b"eXIf", b"Raw profile type", b"com.adobe.xmp"), b"RIFF": (b"EXIF", b"XMP ")}
"""By a file's first bytes: what is in it if it may say how to turn it."""
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")
_LABEL_DIGITS = 9


class Undecodable(Exception):
    """These bytes are not an image, or not a label; the text says why, and the caller knows whose bytes they are."""


def decode(data: bytes) -> np.ndarray:
    """A JPEG, PNG, WebP or npy file as uint8 [H, W, 3], RGB, as it is stored. Raises Undecodable."""
    shape = _plain_jpeg(data)
    if shape is not None:
        return _decode_jpeg(data, np.empty((*shape, 3), dtype=np.uint8))
    if data.startswith(MAGIC):
        return _raw(data)
    return np.asarray(to_rgb(load(open_lazily(data, _PILLOW_FORMATS))))


def decode_into(data: bytes, out: np.ndarray) -> None:
    """Decodes upright into `out`, uint8 [H, W, 3], contiguous. Raises Undecodable, also for a file of another size."""
    # With no more than its JFIF segment a JPEG has no colours but those of JFIF; others may be CMYK, which is Pillow's.
    if _is_bare(data) or (data.startswith(_JPEG) and turn(data) is None and _plain_jpeg(data)):
        try:
            if simplejpeg.decode_jpeg(data, "RGB", buffer=out).shape == out.shape:
                return  # nearly always; to look at the header first would take a tenth of a small image's time
        except ValueError:
            pass  # of another size, of other colours or damaged: what follows finds out which
    raw = npy_header(out.dtype, out.shape)
    if data.startswith(raw) and len(data) == len(raw) + out.nbytes:
        out[:] = np.frombuffer(data, np.uint8, offset=len(raw)).reshape(out.shape)
        return
    pixels = upright(data)
    if pixels.shape != out.shape:
        raise Undecodable(f"it is {pixels.shape[0]} x {pixels.shape[1]}, not {out.shape[0]} x {out.shape[1]}")
    out[:] = pixels


def upright(data: bytes) -> np.ndarray:
    """As `decode`, but turned as EXIF says."""
    pixels, how = decode(data), turn(data)
    return pixels if how is None else np.asarray(Image.fromarray(pixels).transpose(how))


def turn(data: bytes) -> Image.Transpose | None:
    """What makes a picture file upright; None where it already is, or where its EXIF is too damaged to say."""
    if _is_bare(data):
        return None
    if data.startswith(_JPEG):
        if not _has_app1(data):
            return None
    elif not any(mark in data for mark in _ORIENTED.get(data[:4], ())):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _TO_UPRIGHT.get(open_lazily(data, _PILLOW_FORMATS).getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything on damaged EXIF, whose pixels may be whole
        return None


def _is_bare(data: bytes) -> bool:
    """Whether a JPEG has its JFIF segment and nothing else before what is needed to decode it."""
    return data.startswith(_JFIF) and data[20:22] == _TABLES


def _has_app1(data: bytes) -> bool:
    """Whether a JPEG has a segment of EXIF or XMP, which stand among the first."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] in _FIRST_SEGMENTS:
        if data[at + 1] == 0xE1:
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False


def decode_scaled(data: bytes, least: int) -> tuple[np.ndarray, tuple[float, float]]:
    """A picture in the fewest eighths of its size whose sides are at least `least` pixels: uint8 [h, w, 3], RGB, and the
    (height, width) that it fills of it, h and w being rounded up; as it is stored. Raises Undecodable.

    Only JPEG can be decoded so; others, and smaller ones, come in full size.
    """
    shape = _plain_jpeg(data)
    if shape is None or min(shape) < least:
        pixels = decode(data)
        return pixels, (pixels.shape[0], pixels.shape[1])
    eighths = next(n for n in range(1, 9) if -(-min(shape) * n // 8) >= least)
    out = np.empty((*(-(-side * eighths // 8) for side in shape), 3), dtype=np.uint8)
    extent = (shape[0] * eighths / 8, shape[1] * eighths / 8)
    return _decode_jpeg(data, out, min_height=out.shape[0], min_width=out.shape[1]), extent


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that libjpeg-turbo turns into RGB; None for another file. Raises Undecodable."""
    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        if _UNUSUAL not in str(error):
            raise Undecodable(str(error)) from None
        return None
    check_pixels(width, height)
    return (height, width) if colours in _JPEG_COLOURS else None


def _decode_jpeg(data: bytes, out: np.ndarray, **scale: int) -> np.ndarray:
    """Decodes into memory that is there: for small images simplejpeg's own takes as long as the decoding."""
    try:
        pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=out, **scale)
    except ValueError as error:
        raise Undecodable(str(error)) from None
    assert pixels.shape == out.shape, f"{pixels.shape} decoded where the header announced {out.shape}"
    return out


def _raw(data: bytes) -> np.ndarray:
    shape, begin = _raw_header(data)
    if len(data) - begin != np.prod(shape):
        raise Undecodable(f"it has {len(data) - begin} bytes of pixels, which are not {shape}")
    return np.frombuffer(data, np.uint8, offset=begin).reshape(shape)


def _raw_header(data: bytes) -> tuple[tuple[int, ...], int]:
    """(shape [H, W, 3], where the pixels begin)."""
    try:
        dtype, shape, begin = read_npy_header(data)
    except ValueError as error:
        raise Undecodable(f"it {error}") from None
    if dtype != np.uint8 or len(shape) != 3 or shape[2] != 3 or min(shape) < 1:
        raise Undecodable(f"its npy holds {dtype} {shape}, not pixels: uint8 [height, width, 3]")
    check_pixels(shape[1], shape[0])
    return shape, begin


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the header alone. Raises Undecodable."""
    if data.startswith(MAGIC):
        (height, width, _), _ = _raw_header(data)
        return height, width
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
    check_pixels(*image.size)
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


def check_pixels(width: int, height: int) -> None:
    """Raises Undecodable for a picture of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise Undecodable(f"{width} x {height} is more than {MAX_PIXELS} pixels")


def label(data: bytes) -> int:
    """The class number of a .cls member: decimal digits and nothing else but white space around. Raises Undecodable."""
    text = data.strip()
    if not text.isdigit() or len(text) > _LABEL_DIGITS:
        raise Undecodable(f"{data[:20]!r} is not a decimal class number")
    return int(text)


def json_label(data: bytes, field: str) -> int | str:
    """The class number or name in a field of a .json member. Raises Undecodable."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Undecodable(f"it is not JSON: {error}") from None
    found = value.get(field) if isinstance(value, dict) else None
    if isinstance(found, bool) or not isinstance(found, int | str):
        raise Undecodable(f"its field {field!r} is {found!r}, not the number or the name of a class")
    if isinstance(found, int) and not 0 <= found < 10**_LABEL_DIGITS:
        raise Undecodable(f"its field {field!r} is {found}, which is not the number of a class")
    return found


def square_shape(height: float, width: float, size: int) -> tuple[int, int]:
    """(height, width) of a picture whose shorter side was made `size` pixels. Raises Undecodable for one so long that it
    would be larger than any that is decoded: a strip of one pixel's height is a bomb too."""
    shorter = min(height, width)
    height, width = max(size, round(height * size / shorter)), max(size, round(width * size / shorter))
    check_pixels(width, height)
    return height, width
