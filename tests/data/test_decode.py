"""Bytes to pixels: every kind of picture becomes RGB, every kind of damage an error."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from bigtrain.data import decode as module
from bigtrain.data.decode import Undecodable, decode, decode_into, header_size, json_label, label
from bigtrain.data.npy import npy_header


def encoded(image: Image.Image, form: str, **given: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **given)
    return file.getvalue()


@pytest.fixture
def smooth() -> Image.Image:
    """24 x 20, smooth enough that JPEG hardly changes it."""
    y, x = np.mgrid[0:20, 0:24]
    return Image.fromarray(np.stack([10 * x, 12 * y, 100 + 2 * x + y], axis=2).astype(np.uint8))


@pytest.mark.parametrize("subsampling", [0, 2])
def test_jpeg_decodes_as_pillow_does(smooth: Image.Image, subsampling: int) -> None:
    data = encoded(smooth, "JPEG", quality=90, subsampling=subsampling)
    theirs = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(decode(data).astype(int) - theirs).max() <= 1


@pytest.mark.parametrize(("form", "given"), [("PNG", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_decode_exactly(smooth: Image.Image, form: str, given: dict[str, object]) -> None:
    pixels = decode(encoded(smooth, form, **given))
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.asarray(smooth))
    assert header_size(encoded(smooth, form, **given)) == (20, 24)


def test_every_mode_becomes_rgb(smooth: Image.Image) -> None:
    grey = smooth.convert("L")
    grey_rgb = np.asarray(grey.convert("RGB"))
    assert np.array_equal(decode(encoded(grey, "PNG")), grey_rgb)
    assert np.array_equal(decode(encoded(grey.convert("LA"), "PNG")), grey_rgb)
    assert np.abs(decode(encoded(grey, "JPEG", quality=100)).astype(int) - grey_rgb).max() <= 2
    transparent = smooth.copy()
    transparent.putalpha(Image.new("L", smooth.size, 0))
    assert np.array_equal(decode(encoded(transparent, "PNG")), np.asarray(smooth))
    palette = smooth.quantize(16)
    assert np.array_equal(decode(encoded(palette, "PNG", transparency=3)), np.asarray(palette.convert("RGB")))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    assert np.array_equal(decode(encoded(deep, "PNG")), grey_rgb)


def test_cmyk_jpeg_becomes_rgb(smooth: Image.Image) -> None:
    pixels = decode(encoded(smooth.convert("CMYK"), "JPEG", quality=100))
    assert np.abs(pixels.astype(int) - np.asarray(smooth)).mean() < 3


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_image_is_undecodable(form: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(noise), form)
    with pytest.raises(Undecodable):
        decode(data[: int(share * len(data))])


def test_jpeg_with_damaged_middle_is_undecodable() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(encoded(Image.fromarray(noise), "JPEG"))
    data[len(data) // 2 : len(data) // 2 + 40] = b"\xff\xd9" * 20
    with pytest.raises(Undecodable):
        decode(bytes(data))


def test_other_formats_are_refused_whatever_pillow_knows(smooth: Image.Image) -> None:
    for form in ("GIF", "TIFF", "BMP", "PPM"):
        with pytest.raises(Undecodable, match="not an image of a known format"):
            decode(encoded(smooth, form))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_a_bomb_is_refused_by_its_header(smooth: Image.Image, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(smooth, form)
    decode(data)
    monkeypatch.setattr(module, "MAX_PIXELS", 24 * 20 - 1)
    with pytest.raises(Undecodable, match="24 x 20 is more than 479 pixels"):
        decode(data)


def test_lack_of_memory_is_not_taken_for_damage(smooth: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise MemoryError

    data = encoded(smooth, "PNG")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)
    with pytest.raises(MemoryError):
        decode(data)


@pytest.mark.parametrize(
    ("data", "number"),
    [(b"0", 0), (b"17", 17), (b"007\n", 7), (b" 999999999 ", 999_999_999), (b"\xef\xbb\xbf3\r\n", 3)],
)
def test_label_reads_decimals(data: bytes, number: int) -> None:
    assert label(data) == number


@pytest.mark.parametrize(
    "data",
    [b"", *b' |-1|+1|1.0|1e3|0x1|1 2|1_0|1,2|1111111111|nan|{}|["cat"]|a\nb|\xff'.split(b"|")],
)
def test_label_refuses_everything_else(data: bytes) -> None:
    with pytest.raises(Undecodable, match="neither a decimal class number nor the name of a class"):
        label(data)


@pytest.mark.parametrize(
    ("data", "name"), [(b"cat\n", "cat"), ("Käfer 2".encode(), "Käfer 2"), (b"n01440764", "n01440764")]
)
def test_label_takes_names(data: bytes, name: str) -> None:
    assert label(data) == name


def test_json_label_takes_whole_numbers_that_a_table_wrote_as_floats() -> None:
    assert json_label(b'{"label": 3.0}', "label") == 3
    for wrong in (b"0.5", b"-1.0", b"1e300", b"true", b"null"):
        with pytest.raises(Undecodable, match="'label' is"):
            json_label(b'{"label": %s}' % wrong, "label")


def test_label_refuses_digits_of_other_scripts() -> None:
    with pytest.raises(Undecodable):
        label("٣".encode())


# Into memory that is there


def raw(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, pixels)
    return file.getvalue()


@pytest.mark.parametrize("form", ["JPEG", "PNG", "npy"])
def test_decoding_into_memory_gives_the_same_pixels(smooth: Image.Image, form: str) -> None:
    data = raw(np.asarray(smooth)) if form == "npy" else encoded(smooth, form)
    out = np.empty((20, 24, 3), dtype=np.uint8)
    decode_into(data, out)
    assert np.array_equal(out, decode(data))
    assert header_size(data) == (20, 24)
    for shape in ((24, 20, 3), (20, 23, 3), (40, 24, 3)):
        with pytest.raises(Undecodable, match=f"it is 20 x 24, not {shape[0]} x {shape[1]}"):
            decode_into(data, np.empty(shape, dtype=np.uint8))


def test_cmyk_is_converted_also_into_memory(smooth: Image.Image) -> None:
    data, out = encoded(smooth.convert("CMYK"), "JPEG", quality=95), np.empty((20, 24, 3), dtype=np.uint8)
    decode_into(data, out)
    assert np.abs(out.astype(int) - np.asarray(smooth)).mean() < 4
    assert np.array_equal(out, decode(data)), "libjpeg-turbo's own conversion rounds otherwise"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (raw(np.zeros((4, 4, 2), dtype=np.uint8)), r"holds uint8 \(4, 4, 2\), not pixels"),
        (raw(np.zeros((4, 4, 3))), "holds float64"),
        (raw(np.zeros((4, 4, 3), dtype=np.uint8, order="F")), "Fortran"),
        (raw(np.zeros((4, 4, 3), dtype=np.uint8))[:-1], "has 47 bytes of pixels"),
        (raw(np.zeros((4, 4, 3), dtype=np.uint8)) + b"\0", "has 49 bytes of pixels"),
        (npy_header(np.dtype(np.uint8), (2**14, 2**14, 3)), "more than"),
        (raw(np.zeros((4, 4, 3), dtype=np.uint8))[:30], "is not npy"),
        (npy_header(np.dtype(object), (1,)) + pickle.dumps([print]), r"holds object \(1,\), not pixels"),
    ],
)
def test_npy_that_is_not_pixels_is_refused_and_never_unpickled(data: bytes, words: str) -> None:
    with pytest.raises(Undecodable, match=words):
        decode(data)
