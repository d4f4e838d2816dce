"""Resizes images to the size that a feature network takes, exactly as each protocol does, batched, on any device.

A FID changes with the resize (Parmar, Zhang & Zhu 2022, "On Aliased Resizing and Surprising Subtleties in GAN
Evaluation"), so tests compare each with the implementation that defines it. All are separable and linear: two products with
matrices [target, source], which are computed in float64; only the protocol's own rounding happens in between.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Weights = Callable[[int, int], Tensor]
"""(source, target) in pixels to the matrix of one direction, float64 [target, source]."""
BAND = 48
"""Rows of a matrix that are multiplied at once on a CPU."""
SIZES_KEPT = 64
"""Number of image sizes whose matrices a network keeps: in a user's folder every image may have another size."""


def _cubic(distance: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as in PIL (OpenCV's and torch's own, without antialias, is -0.75)."""
    x, a = distance.abs(), -0.5
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _triangle(distance: Tensor) -> Tensor:
    return (1 - distance.abs()).clamp(min=0)


def _antialiased(kernel: Callable[[Tensor], Tensor], support: float, source: int, target: int) -> Tensor:
    """PIL's resampling: when the image shrinks, the kernel is stretched by the scale."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (torch.arange(target, dtype=torch.float64) + 0.5)[:, None] * scale
    pixels = torch.arange(source, dtype=torch.float64)
    reach = support * stretch
    inside = (pixels >= (centres - reach + 0.5).floor()) & (pixels < (centres + reach + 0.5).floor())
    weights = torch.where(inside, kernel((pixels + 0.5 - centres) / stretch), 0.0)
    return weights / weights.sum(1, keepdim=True)


def pil_bicubic(source: int, target: int) -> Tensor:
    return _antialiased(_cubic, 2.0, source, target)


def pil_bilinear(source: int, target: int) -> Tensor:
    return _antialiased(_triangle, 1.0, source, target)


def _between_neighbours(positions: Tensor, source: int) -> Tensor:
    """Linear interpolation at float32 [target] positions in pixels; beyond the last pixel it is repeated."""
    low = positions.floor().clamp(0, source - 1).long()
    share = (positions - low).clamp(0, 1).double()
    rows = torch.arange(len(positions))
    weights = torch.zeros(len(positions), source, dtype=torch.float64)
    weights[rows, low] = 1 - share
    weights[rows, (low + 1).clamp(max=source - 1)] += share
    return weights


def tensorflow1_bilinear(source: int, target: int) -> Tensor:
    """tf.image.resize_bilinear of TensorFlow 1: position i * source / target (half a pixel off), without antialiasing."""
    return _between_neighbours(_float32_range(target) * _float32_scale(source, target), source)


def torch_bilinear(source: int, target: int) -> Tensor:
    """torch.nn.functional.interpolate(mode="bilinear", align_corners=False), without antialiasing."""
    centres = (_float32_range(target) + 0.5) * _float32_scale(source, target) - 0.5
    return _between_neighbours(centres.clamp(min=0), source)


def _float32_range(target: int) -> Tensor:
    """In float32, as in the two libraries: in large images the rounding shows."""
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
        for targets, sources, weights in self._column_bands:
            torch.mm(lines[:, sources], weights.T, out=wide[:, targets])
        resized = wide.new_empty(count, len(self._rows), wide.shape[1])
        for image, result in zip(wide.split(height), resized, strict=True):
            for targets, sources, weights in self._row_bands:
                torch.mm(weights, image[sources], out=result[targets]).clamp_(*self._range)  # while it is in the cache
        return resized.view(count, len(self._rows), len(self._columns), channels).permute(0, 3, 1, 2)


def _bands(matrix: Tensor) -> list[tuple[slice, slice, Tensor]]:
    """A matrix [target, source] as blocks (rows, columns, values) of BAND rows each, without the columns that are 0 there.

    A resized pixel depends on few pixels of the source, so this saves two thirds of the time at 256 pixels on one core.
    """
    bands = []
    for begin in range(0, len(matrix), BAND):
        rows = slice(begin, min(begin + BAND, len(matrix)))
        used = matrix[rows].any(0).nonzero()[:, 0].tolist()
        columns = slice(used[0], used[-1] + 1)
        bands.append((rows, columns, matrix[rows, columns].contiguous()))
    return bands


def resize_in_8_bits(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Resizes values 0 .. 255, rounding and clamping after each direction as PIL does with 8-bit images.

    Width first, as PIL does (from version 13 on, PIL resizes the height of portraits first)."""
    return _rounded(_vertical(_rounded(images @ columns.T), rows))


def _rounded(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


def _vertical(images: Tensor, rows: Tensor) -> Tensor:
    """[n, 3, H, w] to [n, 3, h, w] in channels_last; resizing the width first leaves less to permute."""
    count, channels, height, width = images.shape
    flat = images.permute(0, 2, 3, 1).reshape(count, height, width * channels)
    return torch.matmul(rows, flat).view(count, len(rows), width, channels).permute(0, 3, 1, 2)
