"""Exact rewrites of two resampling convolutions, with 4/9 of the multiplications each.

Both widen the 3x3 kernel to 4x4: taps that read the same pixel are added up once, in the kernel, and not again for every image
and position.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import SpectralNorm

Convolution = nn.Conv2d | SpectralNorm
"""A 3x3 convolution that keeps height and width."""


def upsample_and_convolve(x: Tensor, conv: Convolution) -> Tensor:
    """conv(nearest x2 (x)), [n, in, h, w] -> [n, out, 2h, 2w], as one transposed convolution."""
    widened = F.avg_pool2d(_kernel(conv), 2, stride=1, padding=1, divisor_override=1)
    return F.conv_transpose2d(x, widened.flip(2, 3).transpose(0, 1), conv.bias, stride=2, padding=1)


def convolve_and_pool(x: Tensor, conv: Convolution) -> Tensor:
    """mean pool 2x2 (conv(x)), [n, in, 2h, 2w] -> [n, out, h, w], as one strided convolution."""
    widened = F.avg_pool2d(_kernel(conv), 2, stride=1, padding=1)
    return F.conv2d(x, widened, conv.bias, stride=2, padding=1)


def _kernel(conv: Convolution) -> Tensor:
    return conv.normalised_weight() if isinstance(conv, SpectralNorm) else conv.weight
