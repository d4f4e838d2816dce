"""Photographs that become squares as they are read."""

import io

import numpy as np
import pytest
from PIL import Image

from bigtrain.data.decode import Undecodable, decode, decode_scaled
from bigtrain.data.resize import read_resized
from bigtrain.data.write.convert import convert


def photograph(width: int, height: int, form: str = "JPEG", **given: object) -> bytes:
    """Shapes of several scales, as a picture file."""
    draws = np.random.default_rng(0)
    pixels = np.full((height, width, 3), 120.0)
    for cells, strength in ((4, 60), (16, 30), (48, 12)):
        coarse = draws.normal(0, strength, (cells, cells, 3)).astype(np.float32)
        planes = [Image.fromarray(coarse[..., c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        pixels += np.stack([np.asarray(plane) for plane in planes], axis=2)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, form, **given)
    return file.getvalue()


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = np.square(first.astype(float) - second.astype(float)).mean()
    return float(10 * np.log10(255**2 / max(error, 1e-12)))


SHAPES = [(435, 360), (360, 435), (217, 333), (200, 128), (128, 128), (1001, 799), (77, 90), (129, 640)]


@pytest.mark.parametrize(("width", "height"), SHAPES)
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_exact_is_what_sharding_with_a_size_gives(width: int, height: int, form: str) -> None:
    data = photograph(width, height, form)
    wanted = decode(convert(data, (128, 128), "png").data)
    assert np.abs(read_resized(data, (128, 128), "exact").astype(int) - wanted).max() <= 2


@pytest.mark.parametrize(("width", "height"), SHAPES)
def test_scaled_is_as_good_as_forty_decibels_at_every_shape(width: int, height: int) -> None:
    """The fraction of a pixel that a scaled decode rounds up would otherwise shift the picture."""
    data = photograph(width, height, quality=90)
    square = read_resized(data, (128, 128), "scaled")
    assert square.shape == (128, 128, 3)
    assert psnr(square, read_resized(data, (128, 128), "exact")) >= 40


def test_only_large_jpegs_are_decoded_at_part_of_their_size() -> None:
    pixels, extent = decode_scaled(photograph(435, 360), (160, 160))
    assert (pixels.shape, extent) == ((180, 218, 3), (180.0, 217.5))
    for data in (photograph(435, 360, "PNG"), photograph(200, 159)):
        pixels, extent = decode_scaled(data, (160, 160))
        assert np.array_equal(pixels, decode(data))
        assert extent == pixels.shape[:2]


@pytest.mark.parametrize("how", ["exact", "scaled"])
def test_a_truncated_photograph_is_refused_however_it_is_read(how: str) -> None:
    data = photograph(435, 360)
    with pytest.raises(Undecodable):
        read_resized(data[: len(data) // 2], (128, 128), how)
