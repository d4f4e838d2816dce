"""Each protocol's resize is that of the implementation that defines it, batched."""

import numpy as np
import pytest
import torch
from cleanfid.resize import build_resizer
from PIL import Image
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from bigtrain.features.inception import MODES, SIDE
from bigtrain.features.resize import Resize, pil_bicubic, pil_bilinear, resize_in_8_bits

SIZES = [(32, 32), (20, 45), (256, 256), (400, 300), (299, 299)]


def noise(size: tuple[int, int], count: int = 2) -> torch.Tensor:
    """The worst case: every pixel another."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def as_arrays(images: torch.Tensor) -> list[np.ndarray]:
    return list(images.permute(0, 2, 3, 1).numpy())


def resized(images: torch.Tensor, mode: str) -> torch.Tensor:
    rows, columns = (MODES[mode].resize(side, SIDE).float() for side in images.shape[2:])
    return Resize(rows, columns, 0.0, 255.0)(images.float())


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["clean", "legacy_pytorch"])
def test_equals_clean_fids(size, mode):
    images = noise(size)
    for ours, image in zip(as_arrays(resized(images, mode)), as_arrays(images), strict=True):
        assert np.abs(ours - build_resizer(mode)(image)).max() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_legacy_tensorflow_equals_torch_fidelitys(size):
    images = noise(size)
    expected = interpolate_bilinear_2d_like_tensorflow1x(images.float(), (SIDE, SIDE), align_corners=False)
    assert (resized(images, "legacy_tensorflow") - expected).abs().max() < 5e-4


@pytest.mark.parametrize("size", [(32, 32), (256, 256), (300, 400), (448, 448)])
@pytest.mark.parametrize(("name", "weights"), [("BICUBIC", pil_bicubic), ("BILINEAR", pil_bilinear)])
def test_8_bits_equal_pils_but_for_ties(size, name, weights):
    images = noise(size)
    rows, columns = (weights(side, 224).float() for side in size)
    ours = as_arrays(resize_in_8_bits(images.float(), rows, columns))
    for image, mine in zip(as_arrays(images), ours, strict=True):
        difference = np.abs(mine - np.asarray(Image.fromarray(image).resize((224, 224), getattr(Image, name))))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.05


def test_each_image_is_resized_as_if_alone():
    images = noise((32, 32), count=5)
    assert torch.allclose(resized(images, "clean")[3:4], resized(images[3:4], "clean"), atol=1e-4)


def test_the_result_is_channels_last():
    assert resized(noise((32, 32)), "clean").is_contiguous(memory_format=torch.channels_last)
