"""Bytes to pixels and to labels: an allow-list of formats, chosen by content, and nothing that executes.

Ordinary JPEG is decoded by libjpeg-turbo through simplejpeg, strictly: a damaged image is an error, never half a picture. The
rest (PNG, WebP, and JPEG in CMYK or YCCK) is decoded by Pillow. Pixels that need no decoding are npy: uint8 [H, W, 3], or grey
[H, W] or [H, W, 1]. Whoever reads says how many channels are wanted, 1 or 3: grey becomes three equal ones, and colours become
their luma (ITU-R 601). `decode` gives pixels as they are stored. Images for training are also rotated upright as their EXIF
says; launch/shard.py has done that already, but other makers of shards may not.
"""

import codecs
import io
import re
import warnings

import numpy as np
import simplejpeg
from PIL import Image

from bigtrain.data.npy import MAGIC, npy_header, read_npy_header
from bigtrain.untrusted import parse_json

MAX_PIXELS = 2**27
"""Larger images are refused before any memory is taken for them (a decompression bomb, or a damaged header), and so are samples
of more numbers."""
_JPEG = b"\xff\xd8"
_UNUSUAL = "Could not determine subsampling"
"""libjpeg-turbo's message for rare but valid chroma subsamplings, which Pillow reads."""
_JPEG_COLOURS = frozenset({"YCbCr", "Gray", "RGB"})
_COLOURSPACE = {1: "GRAY", 3: "RGB"}
"""By number of channels, simplejpeg's name of what it decodes to."""
_MODE = {1: "L", 3: "RGB"}
"""The same for Pillow."""
_GREY_MODES = ("1", "L", "LA", "La", "I", "F")
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
_QUARTER_TURNS = frozenset(_TO_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_JFIF, _TABLES = b"\xff\xd8\xff\xe0\x00\x10", b"\xff\xdb"
"""The first bytes of a JPEG, and those after its JFIF segment if there is no EXIF: a quick test that most images pass."""
_FIRST_SEGMENTS = frozenset(bytes([marker]) for marker in (*range(0xE0, 0xF0), 0xFE))
"""JPEG's markers of application segments and of comments, which come before all others."""
_ORIENTED = {b"\x89PNG": (b"eXIf", b"Raw profile type", b"com.adobe.xmp"), b"RIFF": (b"EXIF", b"XMP ")}
"""By a file's first bytes: markers that it contains if it may have an orientation."""
_PILLOW_FORMATS = ("JPEG", "PNG", "WEBP")
_LABEL_DIGITS = 9
_LONGEST_NAME = 1000
"""Bytes of a class's name."""
_LIKE_A_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)e[+-]?\d+|0x[\da-f]+|nan|[+-]?inf", re.IGNORECASE)


class Undecodable(Exception):
    """These bytes are not an image, or not a label. The text says why; the caller adds which file or sample it is."""


def decode(data: bytes, channels: int = 3) -> np.ndarray:
    """A JPEG, PNG, WebP or npy file as uint8 [H, W, channels], RGB or grey, upright or not, as it is stored. Raises
    Undecodable."""
    shape = _plain_jpeg(data)
    if shape is not None:
        return _decode_jpeg(data, np.empty((*shape, channels), dtype=np.uint8))
    if data.startswith(MAGIC):
        return _raw(data, channels)
    return _pixels(with_channels(load(open_lazily(data, _PILLOW_FORMATS)), channels))


def decode_into(data: bytes, out: np.ndarray) -> None:
    """Decodes upright into `out`, uint8 [H, W, C], contiguous. Raises Undecodable, also for a file of another size."""
    channels = out.shape[2]
    # A JPEG with only its JFIF segment has JFIF's colours; others may be CMYK, which only Pillow decodes.
    if _is_bare(data) or (data.startswith(_JPEG) and turn(data) is None and _plain_jpeg(data)):
        try:
            if simplejpeg.decode_jpeg(data, _COLOURSPACE[channels], buffer=out).shape == out.shape:
                return  # nearly always; reading the header first would take a tenth of a small image's time
        except ValueError:
            pass  # another size, other colours or damaged: the code below finds out which
    raw = npy_header(out.dtype, out.shape)
    if data.startswith(raw) and len(data) == len(raw) + out.nbytes:
        out[:] = np.frombuffer(data, np.uint8, offset=len(raw)).reshape(out.shape)
        return
    pixels = upright(data, channels)
    if pixels.shape != out.shape:
        raise Undecodable(f"it is {pixels.shape[0]} x {pixels.shape[1]}, not {out.shape[0]} x {out.shape[1]}")
    out[:] = pixels


def upright(data: bytes, channels: int = 3) -> np.ndarray:
    """As `decode`, but rotated upright as EXIF says."""
    pixels, transpose = decode(data, channels), turn(data)
    return pixels if transpose is None else _pixels(as_image(pixels).transpose(transpose))


def as_image(pixels: np.ndarray) -> Image.Image:
    """Pillow's image of uint8 [H, W, 1 or 3]: mode L or RGB."""
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _pixels(image: Image.Image) -> np.ndarray:
    """The inverse of `as_image`."""
    return np.asarray(image)[:, :, None] if image.mode == "L" else np.asarray(image)


def turn(data: bytes) -> Image.Transpose | None:
    """The transposition that makes a picture file upright; None if it already is, or if its EXIF is too damaged to say."""
    if _is_bare(data):
        return None
    if data.startswith(_JPEG):
        if not _has_app1(data):
            return None
    elif not may_be_turned(data):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _TO_UPRIGHT.get(open_lazily(data, _PILLOW_FORMATS).getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # Pillow raises nearly anything on damaged EXIF, though the pixels may be intact
        return None


def may_be_turned(data: bytes) -> bool:
    """Whether a picture that is no JPEG has, anywhere, what might be an orientation."""
    return any(mark in data for mark in _ORIENTED.get(data[:4], ()))


def _is_bare(data: bytes) -> bool:
    """Whether a JPEG has its JFIF segment and then at once the tables that decoding needs."""
    return data.startswith(_JFIF) and data[20:22] == _TABLES


def _has_app1(data: bytes) -> bool:
    """Whether a JPEG has a segment of EXIF or XMP, which is among the first ones."""
    offset = 2
    while data[offset : offset + 1] == b"\xff" and data[offset + 1 : offset + 2] in _FIRST_SEGMENTS:
        if data[offset + 1] == 0xE1:
            return True
        offset += 2 + int.from_bytes(data[offset + 2 : offset + 4], "big")
    return False


def decode_scaled(data: bytes, least: tuple[int, int], channels: int = 3) -> tuple[np.ndarray, tuple[float, float]]:
    """Decodes a JPEG at n/8 of its size, n as small as possible with at least `least` (height, width) pixels: (uint8
    [h, w, channels], not rotated; the exact (height, width) of the scaled picture, which h and w round up). Raises Undecodable.

    Other formats, and pictures smaller than `least`, are decoded at full size.
    """
    shape = _plain_jpeg(data)
    if shape is None or shape[0] < least[0] or shape[1] < least[1]:
        pixels = decode(data, channels)
        return pixels, (pixels.shape[0], pixels.shape[1])
    eighths = next(
        n for n in range(1, 9) if all(-(-side * n // 8) >= wanted for side, wanted in zip(shape, least, strict=True))
    )
    out = np.empty((*(-(-side * eighths // 8) for side in shape), channels), dtype=np.uint8)
    extent = (shape[0] * eighths / 8, shape[1] * eighths / 8)
    return _decode_jpeg(data, out, min_height=out.shape[0], min_width=out.shape[1]), extent


def _plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a JPEG that libjpeg-turbo can decode to RGB; None for any other file. Raises Undecodable."""
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
    """Decodes into `out`: for small images, simplejpeg's own allocation takes as long as the decoding."""
    try:
        pixels = simplejpeg.decode_jpeg(data, _COLOURSPACE[out.shape[2]], buffer=out, **scale)
    except ValueError as error:
        raise Undecodable(str(error)) from None
    assert pixels.shape == out.shape, f"{pixels.shape} decoded where the header announced {out.shape}"
    return out


def _raw(data: bytes, channels: int) -> np.ndarray:
    shape, begin = _raw_header(data)
    if len(data) - begin != np.prod(shape):
        raise Undecodable(f"it has {len(data) - begin} bytes of pixels, which are not {shape}")
    pixels = np.frombuffer(data, np.uint8, offset=begin).reshape(shape)
    return pixels if shape[2] == channels else _pixels(with_channels(as_image(pixels), channels))


def _raw_header(data: bytes) -> tuple[tuple[int, ...], int]:
    """(shape [H, W, C], offset of the pixels in bytes)."""
    try:
        dtype, shape, begin = read_npy_header(data)
    except ValueError as error:
        raise Undecodable(f"it {error}") from None
    if len(shape) == 2:
        shape = (*shape, 1)
    if dtype != np.uint8 or len(shape) != 3 or shape[2] not in (1, 3) or min(shape) < 1:
        raise Undecodable(
            f"its npy holds {dtype} {shape}, not pixels: uint8 [height, width, 3], or grey [height, width]"
        )
    check_pixels(shape[1], shape[0])
    return shape, begin


def header_size(data: bytes) -> tuple[int, int]:
    """(height, width) in pixels from the header alone. Raises Undecodable."""
    return header_shape(data)[:2]


def header_shape(data: bytes) -> tuple[int, int, int]:
    """(height, width, channels) upright, from the headers alone; 1 channel for grey, 3 for everything else. Raises
    Undecodable."""
    if data.startswith(MAGIC):
        (height, width, channels), _ = _raw_header(data)
        return height, width, channels
    image = open_lazily(data, _PILLOW_FORMATS)
    sides = (image.width, image.height) if turn(data) in _QUARTER_TURNS else (image.height, image.width)
    return *sides, channels_of(image)


def channels_of(image: Image.Image) -> int:
    """1 for a grey picture, with or without transparency and of any depth, 3 for everything else."""
    return 1 if image.mode.partition(";")[0] in _GREY_MODES else 3


def open_lazily(data: bytes, formats: tuple[str, ...]) -> Image.Image:
    """Pillow's image with only its header read; formats by Pillow's names. Raises Undecodable."""
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
    """The exception to raise for one of Pillow's, which raises nearly anything on damaged bytes: Undecodable, unless memory ran
    out."""
    if isinstance(error, MemoryError):
        return error
    if "cannot identify image file" in str(error):
        return Undecodable("the content is not an image of a known format")
    return Undecodable(f"{type(error).__name__}: {error}")


def with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Converts to RGB, or to grey for 1 channel; drops transparency (as torchvision's loader does), and reduces 16 bits to
    8."""
    if image.mode.startswith("I"):
        high_bytes = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
        image = Image.fromarray(high_bytes)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image if image.mode == _MODE[channels] else image.convert(_MODE[channels])


def check_pixels(width: int, height: int) -> None:
    """Raises Undecodable for a picture of more than MAX_PIXELS."""
    if width * height > MAX_PIXELS:
        raise Undecodable(f"{width} x {height} is more than {MAX_PIXELS} pixels")


def label(data: bytes) -> int | str:
    """The class number of a .cls member, decimal digits, or else the class's name, with white space around them allowed, and a
    byte order mark. Raises Undecodable for what is neither: other numbers, JSON, more than a line, control characters."""
    text = data.removeprefix(codecs.BOM_UTF8).strip()
    if text.isdigit() and len(text) <= _LABEL_DIGITS:
        return int(text)
    try:
        name = text.decode() if len(text) <= _LONGEST_NAME else ""
    except UnicodeDecodeError:
        name = ""
    is_word = any(map(str.isalpha, name)) and not _LIKE_A_NUMBER.fullmatch(name)
    if not is_word or not name.isprintable() or name[0] in '{["':
        raise Undecodable(f"{_shown(data)} is neither a decimal class number nor the name of a class")
    return name


def _shown(data: bytes) -> str:
    """The beginning of a text, as a message quotes it."""
    return repr(data[:20].decode(errors="backslashreplace"))


def json_label(data: bytes, field: str) -> int | str:
    """The class number or name in a field of a .json member. Raises Undecodable."""
    try:
        value = parse_json(data)
    except ValueError as error:
        raise Undecodable(f"it is not JSON: {error}") from None
    value_of_field = value.get(field) if isinstance(value, dict) else None
    if isinstance(value_of_field, float) and value_of_field.is_integer():  # as tables with gaps write numbers
        value_of_field = int(value_of_field)
    if isinstance(value_of_field, bool) or not isinstance(value_of_field, int | str):
        raise Undecodable(f"its field {field!r} is {value_of_field!r}, not the number or the name of a class")
    if isinstance(value_of_field, int) and not 0 <= value_of_field < 10**_LABEL_DIGITS:
        raise Undecodable(f"its field {field!r} is {value_of_field}, which is not the number of a class")
    return value_of_field


def covering_shape(height: float, width: float, size: tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a picture after it is resized to cover `size` (height, width) and no more: one of its sides fits
    exactly. Raises Undecodable if that is more than MAX_PIXELS: a long strip that is one pixel high would be a decompression
    bomb too."""
    if height * size[1] <= width * size[0]:
        fitted = size[0], max(size[1], round(width * size[0] / height))
    else:
        fitted = max(size[0], round(height * size[1] / width)), size[1]
    check_pixels(fitted[1], fitted[0])
    return fitted
