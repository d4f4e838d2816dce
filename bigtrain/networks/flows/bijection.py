"""What flows are made of: bijections that also give the log-determinant of their Jacobian, exactly and of each sample.

What flows through them stays in at least float32 under autocast: only the networks within couplings are rounded.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.networks.layers.normalisation import without_autocast


class Bijection(nn.Module):
    """z = f(x), of tensors of the same shape whose leading dimension is n."""

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """z, and log |det dz/dx|: [n], or a scalar where it is the same for all samples."""

    @abstractmethod
    def inverse(self, z: Tensor) -> Tensor:
        """x."""


class FlowBlock(nn.Module):
    """What activation checkpointing computes again in the backward pass."""


class ActNorm(Bijection):
    """(x + bias) exp(3 logs) with a bias and a scale for each channel, that begin such that the first batch has mean 0 and
    variance 1 (Kingma & Dhariwal 2018, section 3.1; the factor 3 is the authors' code's, which makes Adam's steps larger)."""

    initialising = False
    """Whether the next forward sets bias and logs from what it is given (`initialise`)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.logs = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, channels] or [n, channels, h, w]."""
        if self.initialising:
            self._initialise(x)
        bias, logs = self._of_shape(x)
        return (x + bias) * logs.exp(), logs.sum() * x[0, 0].numel()

    def inverse(self, z: Tensor) -> Tensor:
        bias, logs = self._of_shape(z)
        return z * (-logs).exp() - bias

    def _of_shape(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shape = (-1, *[1] * (x.ndim - 2))
        return self.bias.view(shape), 3 * self.logs.view(shape)

    def _initialise(self, x: Tensor) -> None:
        """From the moments of all ranks' x, summed in float64, so that neither their number nor their order changes them."""
        by_channel = x.detach().double().transpose(0, 1).flatten(1)
        count = by_channel.new_full((len(by_channel),), by_channel.shape[1])
        total, count = world.sum_over_ranks(torch.stack([by_channel.sum(1), count]))
        mean = total / count
        variance = world.sum_over_ranks((by_channel - mean[:, None]).square().sum(1)) / count
        self.bias.copy_(-mean)
        self.logs.copy_(-(variance.sqrt() + 1e-6).log() / 3)


@contextmanager
def initialising(network: nn.Module) -> Iterator[None]:
    """Forward passes within it set each actnorm from what reaches it; every rank must make the same number of them."""
    norms = [module for module in network.modules() if isinstance(module, ActNorm)]
    for norm in norms:
        norm.initialising = True
    try:
        with torch.no_grad():
            yield
    finally:
        for norm in norms:
            norm.initialising = False


class Mixing(Bijection):
    """A 1 x 1 convolution from as many channels to as many (Kingma & Dhariwal 2018, section 3.2), that begins as a random
    rotation. Its log-determinant is computed in float64."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(_random_orthogonal(channels))

    def matrix(self) -> Tensor:
        """[channels, channels]."""
        return self.weight

    def log_det(self) -> Tensor:
        """Of the matrix, float64."""
        return torch.linalg.slogdet(self.weight.double())[1]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[n, channels, h, w]."""
        with without_autocast(x):
            z = F.conv2d(x, self.matrix()[:, :, None, None])
            return z, (self.log_det() * x[0, 0].numel()).to(x.dtype)

    def inverse(self, z: Tensor) -> Tensor:
        """NaN where the matrix has no inverse."""
        matrix, failed = torch.linalg.inv_ex(self.matrix().double())
        matrix = torch.where(failed == 0, matrix, torch.nan).to(z.dtype)
        return F.conv2d(z, matrix[:, :, None, None])


class MixingLU(Mixing):
    """The same, with the matrix as P L (U + diag(s)), whose determinant is the product of s (section 3.2, eq. 10). P and the
    signs of s stay as they began."""

    permutation: Tensor
    signs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        permutation, lower, upper = torch.linalg.lu(self.weight.detach())
        del self.weight
        diagonal = upper.diagonal()
        self.register_buffer("permutation", permutation.argmax(1))
        self.register_buffer("signs", diagonal.sign())
        self.lower = nn.Parameter(lower.tril(-1))
        self.upper = nn.Parameter(upper.triu(1))
        self.log_s = nn.Parameter(diagonal.abs().log())

    def matrix(self) -> Tensor:
        lower = self.lower.tril(-1) + torch.eye(len(self.lower), dtype=self.lower.dtype, device=self.lower.device)
        return (lower @ (self.upper.triu(1) + (self.signs * self.log_s.exp()).diag()))[self.permutation]

    def log_det(self) -> Tensor:
        return self.log_s.double().sum()


def _random_orthogonal(size: int) -> Tensor:
    """From torch's global generator."""
    return torch.linalg.qr(torch.randn(size, size))[0].contiguous()


def squeezed(x: Tensor) -> Tensor:
    """Each 2 x 2 pixels become channels: [n, c, h, w] -> [n, 4 c, h / 2, w / 2], channel by channel (Dinh et al. 2017,
    section 3.6)."""
    return F.pixel_unshuffle(x, 2)


def unsqueezed(x: Tensor) -> Tensor:
    """The inverse."""
    return F.pixel_shuffle(x, 2)
