"""A picture on its way into a shard."""

import io

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from bigtrain.data.decode import Undecodable, decode, header_shape
from bigtrain.data.write.convert import Member, convert


def encoded(image: Image.Image, form: str, **given: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format=form, **given)
    return file.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([255 * x // width, 255 * y // height, 0 * x + 90], axis=2).astype(np.uint8))


@pytest.mark.parametrize(("width", "height"), [(40, 20), (20, 40), (30, 30), (8, 9), (41, 23), (16, 100)])
def test_the_shorter_side_is_resized_and_the_centre_kept(width: int, height: int) -> None:
    image = gradient(width, height)
    member = convert(encoded(image, "PNG"), (16, 16), "png")
    assert (member.extension, member.shape) == ("png", (16, 16))
    theirs = ImageOps.fit(image, (16, 16), Image.Resampling.BICUBIC)  # resamples the centre square by itself
    difference = np.abs(decode(member.data).astype(int) - np.asarray(theirs).astype(int))
    assert difference[1:-1, 1:-1].max() <= 255 * 1.01 / min(width, height) + 1  # centres differ by half a pixel at most


def test_shrinking_is_antialiased() -> None:
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    data = convert(encoded(Image.fromarray(stripes), "PNG"), (16, 16), "png").data
    assert np.abs(decode(data)[:, 2:-2].astype(int) - 127).max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [None, (6, 6)])
def test_pictures_are_turned_upright_as_exif_says(orientation: int, size: tuple[int, int] | None) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(gradient(12, 6), "PNG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    plain = convert(encoded(upright, "PNG", exif=b""), size, "png")
    turned = convert(data, size, "png")
    assert np.array_equal(decode(turned.data), decode(plain.data))
    assert turned.shape == decode(turned.data).shape[:2]


@pytest.mark.parametrize(("form", "extension"), [("JPEG", "jpg"), ("PNG", "png"), ("WEBP", "webp")])
def test_a_picture_that_is_right_already_is_kept_byte_for_byte(form: str, extension: str) -> None:
    data = encoded(gradient(16, 16), form)
    assert convert(data, (16, 16), extension) == Member(extension, data, (16, 16), 3, (16, 16), mended=False)
    assert convert(data, None, None) == Member(extension, data, (16, 16), 3, (16, 16), mended=False)


def test_only_what_must_change_is_encoded_anew() -> None:
    data = encoded(gradient(16, 16), "PNG")
    assert convert(data, (16, 16), "jpg").extension == "jpg"
    assert convert(data, (8, 8), None).extension == "png"
    bitmap = convert(encoded(gradient(16, 12), "BMP"), None, None)
    assert (bitmap.extension, bitmap.shape, bitmap.mended) == ("png", (12, 16), False)
    assert np.array_equal(decode(bitmap.data), np.asarray(gradient(16, 12)))


@pytest.mark.parametrize("form", ["jpg", "png", "npy"])
@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_stays_grey(mode: str, form: str) -> None:
    member = convert(encoded(gradient(24, 16).convert("L").convert(mode), "PNG"), (8, 12), form)
    assert (member.shape, member.channels, header_shape(member.data)) == ((8, 12), 1, (8, 12, 1))
    assert header_shape(convert(encoded(gradient(24, 16), "PNG"), (8, 12), form).data) == (8, 12, 3)


def test_grey_becomes_three_equal_channels_where_three_are_wanted() -> None:
    data = encoded(gradient(24, 16).convert("L"), "PNG")
    member = convert(data, (8, 12), "png", channels=3)
    assert (member.channels, header_shape(member.data)) == (3, (8, 12, 3))
    assert np.array_equal(decode(member.data)[:, :, :1], decode(convert(data, (8, 12), "png").data, 1))


def test_webp_holds_grey_as_three_equal_channels() -> None:
    data = encoded(gradient(24, 16).convert("L"), "PNG")
    member = convert(data, None, "webp")
    assert (member.channels, header_shape(member.data)) == (3, (16, 24, 3))
    assert np.array_equal(decode(member.data, 1), decode(data, 1))


def deep(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values.astype(np.uint16)), "PNG")


@settings(max_examples=30, deadline=None)
@given(low=st.integers(0, 60000), width=st.integers(1, 5535), values=st.lists(st.integers(0, 65535), min_size=1))
def test_a_range_of_16_bits_becomes_all_of_8(low: int, width: int, values: list[int]) -> None:
    member = convert(deep(np.array([values])), None, None, value_range=(low, low + width))
    wanted = [round((min(max(value, low), low + width) - low) * 255 / width) for value in values]
    assert decode(member.data, 1)[0, :, 0].tolist() == wanted
    assert (member.extension, member.shape, member.channels) == ("png", (1, len(values)), 1)


def test_16_bits_without_a_range_keep_their_bytes_and_8_bits_have_no_range() -> None:
    data = deep(np.array([[0x1234, 0xFFFF]]))
    assert convert(data, None, None).data == data
    assert decode(convert(data, None, "npy").data, 1)[0, :, 0].tolist() == [0x12, 0xFF]
    with pytest.raises(Undecodable, match="a range is of grey pictures of 16 bits; leave it out"):
        convert(encoded(gradient(8, 8), "PNG"), None, None, value_range=(0, 255))


def test_webp_loses_nothing_and_jpeg_keeps_its_colours() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    data = convert(encoded(noise, "PNG"), (16, 16), "webp").data
    assert np.array_equal(decode(data), np.asarray(noise))
    data = convert(encoded(noise, "PNG"), (16, 16), "jpg").data
    assert simplejpeg.decode_jpeg_header(data)[3] == "444"
    assert np.abs(decode(data).astype(int) - np.asarray(noise)).mean() < 5


def test_nothing_but_pixels_travels_along() -> None:
    image = gradient(20, 20)
    data = encoded(image, "JPEG", comment=b"secret", icc_profile=b"secret" * 30)
    for extension in ("jpg", "png", "webp"):
        assert b"secret" not in convert(data, (16, 16), extension).data


def test_damage_that_pillow_forgives_is_mended_and_reported() -> None:
    data = encoded(gradient(32, 32), "JPEG", quality=95)
    stray = data[:20] + b"\x00\x00\x00" + data[20:]  # between two segments
    with pytest.raises(Undecodable):
        decode(stray)
    member = convert(stray, (32, 32), "jpg")
    assert (member.extension, member.mended) == ("jpg", True)
    assert np.abs(decode(member.data).astype(int) - decode(data)).mean() < 2


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("size", [None, (16, 16)])
def test_a_truncated_picture_is_refused(form: str, size: tuple[int, int] | None) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
    data = encoded(noise, form)
    with pytest.raises(Undecodable):
        convert(data[: len(data) // 2], size, "jpg")
