"""How images reach the size that a feature network takes: each protocol's own way, batched, on any device.

A FID changes with the resize (Parmar, Zhang & Zhu 2022, "On Aliased Resizing and Surprising Subtleties in GAN
Evaluation"), so each is held to the implementation that defines it. All of them are separable and linear: two products
with matrices [target, source], made in float64, between which nothing but the protocol's own rounding happens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weights = Callable[[int, int], Tensor]
"""(source, target) in pixels to the matrix of one direction, float64 [target, source]."""
BAND = 48
"""Rows that are multiplied at once on a CPU."""
SIZES_KEPT = 64
"""Sizes of images whose matrices a network keeps: a set from anywhere may hold as many sizes as images."""


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as in PIL (OpenCV's and torch's own, without antialias, is -0.75)."""
    x, a = distance.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _antialiased(kernel: Callable[[Tensor], Tensor], support: float, source: int, target: int) -> Tensor:
    """PIL's resampling: the kernel is stretched by the scale where the image shrinks."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5)[:, None] * scale
    places = torch.arange(source, dtype=torch.float64)
    reach = support * stretch
    inside = (places >= (centres - reach + 0.5).floor()) & (places < (centres + reach + 0.5).floor())
    weights = torch.where(inside, kernel((places + 0.5 - centres) / stretch), 0.0)
    return weights / weights.sum(1, keepdim=True)


def pil_bicubic(source: int, target: int) -> Tensor:
    return _antialiased(_cubic, 2.0, source, target)


def pil_bilinear(source: int, target: int) -> Tensor:
    return _antialiased(_triangle, 1.0, source, target)


def _between_neighbours(positions: Tensor, source: int) -> Tensor:
    """Linear interpolation at float32 [target] positions in pixels, the last pixel being repeated."""
    low = positions.floor().clamp(0, source - 1).long()
    share = (positions - low).clamp(0, 1).double()
    rows = torch.arange(len(positions))
    weights = torch.zeros(len(positions), source, dtype=torch.float64)
    weights[rows, low] = 1 - share
    weights[rows, (low + 1).clamp(max=source - 1)] += share
    return weights


def tensorflow1_bilinear(source: int, target: int) -> Tensor:
    """tf.image.resize_bilinear of TensorFlow 1: position i * source / target, half a pixel off, without antialias."""
    return _between_neighbours(_float32_range(target) * _float32_scale(source, target), source)


def torch_bilinear(source: int, target: int) -> Tensor:
    """torch.nn.functional.interpolate(mode="bilinear", align_corners=False), without antialias."""
    centres = (_float32_range(target) + 0.5) * _float32_scale(source, target) - 0.5
    return _between_neighbours(centres.clamp(min=0), source)


def _float32_range(target: int) -> Tensor:
    """Positions are computed in float32 here, because the two libraries do: in large images that shows."""
    return torch.arange(target, dtype=torch.float32)


def _float32_scale(source: int, target: int) -> Tensor:
    return torch.tensor(source / target, dtype=torch.float32)


class Resize:
    """Float images [n, 3, H, W] times rows [h, H] and columns [w, W], clamped to low .. high: [n, 3, h, w], channels_last."""

    def __init__(self, rows: Tensor, columns: Tensor, low: float, high: float) -> None:
        self._rows, self._columns, self._range = rows, columns, (low, high)
        if rows.device.type == "cpu":
            self._row_bands = _bands(rows)
            self._column_bands = _bands(torch.kron(columns, torch.eye(3, dtype=columns.dtype)))

    def __call__(self, images: Tensor) -> Tensor:
        if images.device.type != "cpu":
            return _vertical(images @ self._columns.T, self._rows).clamp_(*self._range)
        count, channels, height, width = images.shape
        lines = images.permute(0, 2, 3, 1).reshape(count * height, width * channels)
        wide = lines.new_empty(len(lines), len(self._columns) * channels)
        for to, of, weights in self._column_bands:
            torch.mm(lines[:, of], weights.T, out=wide[:, to])
        resized = wide.new_empty(count, len(self._rows), wide.shape[1])
        for image, result in zip(wide.split(height), resized, strict=True):
            for to, of, weights in self._row_bands:
                torch.mm(weights, image[of], out=result[to]).clamp_(*self._range)  # while it is in the cache
        return resized.view(count, len(self._rows), len(self._columns), channels).permute(0, 3, 1, 2)


def _bands(matrix: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """A matrix [target, source] as (rows, columns, what is there): BAND rows each, without columns that are 0 in all of them.

    A pixel is made of few others, which is what this saves: at 256 pixels two thirds of the time, on one core.
    """
    bands = []
    for begin in range(0, len(matrix), BAND):
        to = slice(begin, min(begin + BAND, len(matrix)))
        used = matrix[to].any(0).nonzero()[:, 0].tolist()
        of = slice(used[0], used[-1] + 1)
        bands.append((to, of, matrix[to, of].contiguous()))
    return bands


def resize_in_8_bits(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """As `resize`, of values 0 .. 255, with each direction rounded and clamped as PIL does to an 8-bit image.

    Width first, as PIL does (for square images; from version 13 on it begins with the height of portraits)."""
    return _rounded(_vertical(_rounded(images @ columns.T), rows))


def _rounded(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _vertical(images: Tensor, rows: Tensor) -> Tensor:
    """[n, 3, H, w] to [n, 3, h, w] in channels_last: what is permuted is the smaller of the two."""
    count, channels, height, width = images.shape
    flat = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    return torch.matmul(rows, flat).view(count, len(rows), width, channels).permute(0, 3, 1, 2)
