"""Images looked up at other places and filtered, as if they were mirrored at their edges without end (an edge is not repeated).

Filters are products with matrices, which are exact where a convolution may compute with fewer bits, and are made once a size.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from bigtrain.randomness import to_device

SYM6 = (
    0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466,
    0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578,
    0.0017677118642428036, -0.007800708325034148,
)  # fmt: skip
"""The symlet of 12 taps (Daubechies 1992, table 6.3): near symmetric, and orthogonal to its own moves by two samples."""

_BEFORE = 5
"""Fine sample m has coefficient m + 5 - 2 i of pixel i: pixel i is in the middle of fine samples 2 i and 2 i + 1."""


def pixels_at(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Images [n, C, H, W] at whole places, int64 that broadcast to [n, h, w] -> [n, C, h, w]. Equal bits in every run."""
    samples = torch.arange(len(images), device=images.device)[:, None, None]
    return images.movedim(1, -1)[samples, rows, columns].movedim(-1, 1)


def mirrored(places: Tensor, side: int) -> Tensor:
    """Any whole places of an axis -> those of the pixels 0 .. side - 1 that are seen there."""
    places = places.remainder(period(side))
    return torch.minimum(places, period(side) - places).clamp_max(side - 1)


def period(side: int) -> int:
    """After so many pixels an axis that is mirrored at its edges repeats."""
    return max(1, 2 * (side - 1))


def upsample(images: Tensor) -> Tensor:
    """One period of the mirrored images at twice their resolution, [n, C, 2 period(H), 2 period(W)]."""
    rows, columns = (_matrix(_upsampling, side, images) for side in images.shape[2:])
    return rows @ images @ columns.T


def downsample(images: Tensor) -> Tensor:
    """Of fine samples -5 .. 2 H + 4 and alike, [n, C, 2 H + 10, 2 W + 10] -> [n, C, H, W]; undoes `upsample`."""
    rows, columns = (_matrix(_downsampling, side // 2 - _BEFORE, images) for side in images.shape[2:])
    return rows @ images @ columns.T


def fine_places(side: int, device: torch.device) -> Tensor:
    """The places of the samples that `downsample` takes for an axis, float64, in pixels."""
    return (torch.arange(-_BEFORE, 2 * side + _BEFORE, dtype=torch.float64, device=device) - 0.5) / 2


def interpolate(fine: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """What `upsample` returned, at places in pixels, [n, h, w] -> [n, C, h, w]: linear between fine samples."""
    (upper, down), (left, right) = (
        _whole_and_rest(places, side) for places, side in ((rows, fine.shape[2]), (columns, fine.shape[3]))
    )
    down, right = down[:, None].to(fine.dtype), right[:, None].to(fine.dtype)
    lower, further = (upper + 1) % fine.shape[2], (left + 1) % fine.shape[3]
    above = torch.lerp(pixels_at(fine, upper, left), pixels_at(fine, upper, further), right)
    below = torch.lerp(pixels_at(fine, lower, left), pixels_at(fine, lower, further), right)
    return torch.lerp(above, below, down)


def _whole_and_rest(places: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The fine samples before places in pixels, int64 in 0 .. side - 1, and how far the places are beyond them."""
    fine = 2 * places + 0.5
    whole = fine.floor()
    return whole.long().remainder(side), fine - whole


def filter_bands(images: Tensor, gains: Tensor) -> Tensor:
    """Amplifies four bands of frequencies, of which the first is the lowest, by `gains` [n, 4]."""
    rows, columns = (
        torch.einsum("nb,bij->nij", gains, _matrix(_bands, side, images))[:, None] for side in images.shape[2:]
    )
    return rows @ images @ columns.mT


# -- matrices -------------------------------------------------------------------------------------------------------


def _matrix(make: Callable[[int], Tensor], side: int, images: Tensor) -> Tensor:
    """What `make` returns for an axis of so many pixels, in the images' precision on their device."""
    return _on_device(make, side, images.dtype, images.device)


@lru_cache(maxsize=64)
def _on_device(make: Callable[[int], Tensor], side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # what is cached must not be an inference tensor
        return to_device(make(side).to(dtype), device)


def _upsampling(side: int) -> Tensor:
    """[2 period, side], float64; sqrt 2 keeps the values of a constant image."""
    twice = torch.arange(2 * period(side))[:, None] + _BEFORE - torch.arange(len(SYM6))
    values = torch.tensor(SYM6, dtype=torch.float64) * 2**0.5 * (twice % 2 == 0)
    return torch.zeros(len(twice), side, dtype=torch.float64).scatter_add_(1, mirrored(twice // 2, side), values)


def _downsampling(side: int) -> Tensor:
    """[side, 2 side + 10], float64."""
    matrix = torch.zeros(side, 2 * side + 2 * _BEFORE, dtype=torch.float64)
    for pixel in range(side):
        matrix[pixel, 2 * pixel : 2 * pixel + len(SYM6)] = torch.tensor(SYM6, dtype=torch.float64) / 2**0.5
    return matrix


def _bands(side: int) -> Tensor:
    """[4, side, side], float64."""
    taps = torch.tensor(band_filters(), dtype=torch.float64)
    places = torch.arange(side)[:, None] + torch.arange(taps.shape[1]) - taps.shape[1] // 2
    matrices = torch.zeros(len(taps), side, side, dtype=torch.float64)
    for matrix, values in zip(matrices, taps, strict=True):
        matrix.scatter_add_(1, mirrored(places, side), values.expand(places.shape))
    return matrices


def band_filters() -> list[list[float]]:
    """Four symmetric filters of 43 taps whose sum is the identity; the first passes the lowest frequencies.

    By the wavelet sym2 (Karras et al. 2020, arXiv:2006.06676, appendix B): with its halfband filters low(z) = H(z) H(1/z) / 2
    and high(z) = H(-z) H(-1/z) / 2, the last is high(z), that before it high(z^2) low(z), and so on.
    """
    root = 3**0.5
    sym2 = [(1 + root) / 32**0.5, (3 + root) / 32**0.5, (3 - root) / 32**0.5, (1 - root) / 32**0.5]
    alternating = [value * (-1) ** tap for tap, value in enumerate(sym2)]
    low, high = (_convolved(h, h[::-1], 0.5) for h in (sym2, alternating))
    filters = [[1.0]]
    for _ in range(3):
        filters = [_convolved(_stretched(each), low) for each in filters]
        length = len(filters[0])
        around = [0.0] * ((length - len(high)) // 2)
        filters.append([*around, *high, *around])
    return filters


def _convolved(a: Sequence[float], b: Sequence[float], factor: float = 1.0) -> list[float]:
    total = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            total[i + j] += factor * x * y
    return total


def _stretched(taps: Sequence[float]) -> list[float]:
    """With a zero between any two."""
    return [value for tap in taps for value in (tap, 0.0)][:-1]
