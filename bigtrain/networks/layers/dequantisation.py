"""Dequantisation: pixels v of 2^bits values become real numbers y = (v + u) / 2^bits, u in [0, 1), whose density bounds the
probability of v (Theis et al. 2016, arXiv:1511.01844, section 3.1; Ho et al. 2019, arXiv:1902.00275, eqs. 3 and 11):

    log P(v) >= E_u [log p(y) - log q(u | v)] - D bits log 2

with q the uniform density, or one that is learned. The noise is a multiple of 2^-16, so that v + u and y are exact in float32
and nothing leaves its bin; with the 8 bits of bfloat16 a third of all pixels would. Computed in at least float32, whatever
autocast says.
"""

from abc import abstractmethod
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.networks.layers.precise import PreciseConv2d
from bigtrain.options import Depth, Options, Width, one_of

_STEPS = 2**16
"""Values of the noise of a pixel."""


def pixel_values(images: Tensor, bits: int) -> Tensor:
    """Images in [-1, 1] -> values 0 .. 2^bits - 1 as floating-point numbers: the upper bits of the 8-bit values."""
    values = ((images.to(statistics_dtype(images.dtype)).clamp(-1, 1) + 1) * 127.5).round()
    return values if bits == 8 else (values / 2 ** (8 - bits)).floor()


def pixel_numbers(y: Tensor, bits: int) -> Tensor:
    """The inverse: y of any value -> images in [-1, 1], from black to white whatever the number of bits. NaN stays NaN."""
    largest = 2**bits - 1
    return (y * 2**bits).floor().clamp(0, largest) * (2 / largest) - 1


class DequantisationOptions(Options):
    """q(u | v)."""

    kind: str

    @abstractmethod
    def build(self, channels: int) -> "Dequantiser":
        """For images of so many channels."""


class Uniform(DequantisationOptions):
    """Noise that is uniform in every pixel."""

    kind: Literal["uniform"] = "uniform"

    def build(self, channels: int) -> "Dequantiser":
        return UniformDequantiser()


class Variational(DequantisationOptions):
    """Noise from a flow that sees the image (Ho et al. 2019, section 3.1). It begins as the uniform one."""

    kind: Literal["variational"] = "variational"
    couplings: Depth = 4
    """Affine couplings, over alternate colours of a checkerboard."""
    channels: Width = 32
    """Of the convolutions in a coupling."""

    def build(self, channels: int) -> "Dequantiser":
        return VariationalDequantiser(self, channels)


AnyDequantisation: Any = one_of(Uniform, Variational)


class Dequantiser(nn.Module):
    """Draws u from q(u | v)."""

    @abstractmethod
    def forward(self, images: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """u [n, C, h, w] in [0, 1) and log q(u | v) [n], for images [n, C, h, w] in [-1, 1] and uniforms float64 of their
        shape in [0, 1)."""


class UniformDequantiser(Dequantiser):
    """u is the uniforms."""

    def forward(self, images: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        u = ((uniforms * _STEPS).floor() / _STEPS).to(statistics_dtype(images.dtype))
        return u, u.new_zeros(len(u))


class VariationalDequantiser(Dequantiser):
    """u = sigmoid(f(e; v)), where e is logistic and f a chain of affine couplings, at first the identity."""

    def __init__(self, options: Variational, channels: int) -> None:
        super().__init__()
        self.couplings = nn.ModuleList(
            NoiseCoupling(channels, options.channels, number % 2) for number in range(options.couplings)
        )

    def forward(self, images: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        exact = ((uniforms * _STEPS).floor() + 0.5) / _STEPS
        e = torch.logit(exact).to(statistics_dtype(images.dtype))
        log_q = _log_logistic(e)
        for coupling in self.couplings:
            e, log_det = coupling(e, images)
            log_q = log_q - log_det
        # du/de is the logistic's own density.
        return e.sigmoid().clamp_max(1 - 1 / _STEPS), log_q - _log_logistic(e)


class NoiseCoupling(nn.Module):
    """The pixels of one colour of the checkerboard, scaled and shifted as the others and the image say."""

    def __init__(self, channels: int, hidden: int, colour: int) -> None:
        super().__init__()
        self.colour = colour
        self.conv1 = nn.Conv2d(2 * channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, hidden, 3, padding=1)
        self.conv3 = PreciseConv2d(hidden, 2 * channels, 3, padding=1)
        for parameter in self.conv3.parameters():
            nn.init.zeros_(parameter)

    def forward(self, e: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
        """[n, C, h, w] -> the same shape, and the log-determinant [n]."""
        rows, columns = (torch.arange(side, device=e.device) for side in e.shape[2:])
        changed = ((rows[:, None] + columns + self.colour) % 2).to(e.dtype)
        seen = torch.cat([e * (1 - changed), images], 1)
        shift, scale = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(seen))))).chunk(2, 1)
        with without_autocast(e):
            log_scale = scale.tanh() * changed
            return e * log_scale.exp() + shift * changed, log_scale.flatten(1).sum(1)


def _log_logistic(e: Tensor) -> Tensor:
    """The log density of the standard logistic distribution, summed over all but the first dimension."""
    return (F.logsigmoid(e) + F.logsigmoid(-e)).flatten(1).sum(1)
