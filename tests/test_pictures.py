"""Pictures of samples: grey ones are written as grey, in the shape that they have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from bigtrain.pictures import grid, save_grid, save_npz, save_pngs

SHAPES = [(3, 16, 16), (1, 16, 16), (1, 24, 16), (3, 8, 20)]
MODES = {1: "L", 3: "RGB"}


def images(count: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randint(256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def values(picture: Image.Image, channels: int) -> Tensor:
    return torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, channels).permute(2, 0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_numbered_files_hold_the_pixels_of_each_image(shape: tuple[int, int, int], tmp_path: Path) -> None:
    drawn = images(3, shape)
    save_pngs(tmp_path, drawn)
    for number, image in enumerate(drawn):
        with Image.open(tmp_path / f"{number:06d}.png") as picture:
            assert picture.mode == MODES[shape[0]]
            assert torch.equal(values(picture, shape[0]), image)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_grid_has_the_images_in_rows_each_pixel_a_square(shape: tuple[int, int, int], tmp_path: Path) -> None:
    channels, height, width = shape
    drawn = images(5, shape)
    save_grid(tmp_path / "grid.png", drawn, columns=2)
    with Image.open(tmp_path / "grid.png") as picture:
        assert picture.mode == MODES[channels]
        sheet = values(picture, channels)
    scale = 48 // min(height, width)
    for number, image in enumerate(drawn):
        row, column = divmod(number, 2)
        top, left = 2 + row * (height * scale + 2), 2 + column * (width * scale + 2)
        tile = sheet[:, top : top + height * scale, left : left + width * scale]
        assert torch.equal(tile, image.repeat_interleave(scale, 1).repeat_interleave(scale, 2))
    assert (sheet[:, -height * scale :, -width * scale :] == 255).all()  # the last row is not full


def test_large_images_are_not_enlarged() -> None:
    assert grid(images(1, (1, 64, 80)), columns=1).size == (84, 68)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_file_of_samples_has_the_channels_last(shape: tuple[int, int, int], tmp_path: Path) -> None:
    drawn = images(4, shape)
    save_npz(tmp_path / "samples.npz", drawn, [0, 1, 2, 3])
    with np.load(tmp_path / "samples.npz") as arrays:
        assert np.array_equal(arrays["arr_0"], drawn.permute(0, 2, 3, 1).numpy())
        assert arrays["arr_0"].shape == (4, *shape[1:], shape[0])
