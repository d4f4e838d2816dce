"""What a discriminator can see of how alike the samples of a batch are: features that are appended to each sample's own.

Both layers are over the global microbatch: the samples of all ranks, in the order of ranks.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.cluster.collectives import gather_over_ranks
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.options import Options, Width, one_of


class DiscriminationOptions(Options):
    """Minibatch discrimination (Salimans et al. 2016)."""

    kind: Literal["discrimination"] = "discrimination"
    appended_features: Width = 50
    """To each image."""
    dimensions: Width = 5
    """Numbers by which two samples are compared for each of them."""

    def build(self, features: int) -> "MinibatchDiscrimination":
        """For samples of this many numbers in all."""
        return MinibatchDiscrimination(features, self.appended_features, self.dimensions)


class DeviationOptions(Options):
    """The minibatch standard deviation of progressive growing and StyleGAN (Karras et al. 2018)."""

    kind: Literal["deviation"] = "deviation"
    compared_images: Width | None = 4
    """Samples that are compared, or the largest number below it that divides the batch; null: all of it."""

    def build(self, features: int) -> "MinibatchDeviation":
        return MinibatchDeviation(self.compared_images)


Minibatch: Any = one_of(DiscriminationOptions, DeviationOptions)


class MinibatchDiscrimination(nn.Module):
    """Appends to each sample how near the others are (Salimans et al. 2016, arXiv:1606.03498, section 3.2):

        M_i = f(x_i) T,    o(x_i)_b = mean over j != i of exp(-|M_i,b - M_j,b|_1)

    A mean, as in the authors' code for ImageNet, where the paper has a sum. T is drawn so that features of unit variance are
    about 1 apart; the authors measure its scale on the first batch.
    """

    def __init__(self, features: int, kernels: int, dimensions: int) -> None:
        """`features`: numbers of a sample, over all its positions."""
        super().__init__()
        self.appended = kernels
        """Features."""
        self.weight = nn.Parameter(torch.randn(features, kernels, dimensions) / (dimensions * features**0.5))

    def forward(self, x: Tensor) -> Tensor:
        """[n, f, h, w] -> [n, f + kernels, h, w], constant over positions. n is the same on all ranks."""
        with without_autocast(x):
            mine = x.flatten(1).to(self.weight.dtype) @ self.weight.flatten(1)
            mine = mine.unflatten(1, self.weight.shape[1:])
            everyone = gather_over_ranks(mine)
            distances = (mine[:, None] - everyone[None]).abs().sum(3)
            # Without itself, which is at distance 0.
            near = ((-distances).exp().sum(1) - 1) / max(len(everyone) - 1, 1)
        return torch.cat([x, near.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])], dim=1)


class MinibatchDeviation(nn.Module):
    """Appends the standard deviation of features over a group of samples, averaged over features and positions (Karras et al.
    2018, arXiv:1710.10196, section 3): one map, as in the authors' code and StyleGAN2's. Sample i of N is in a group with
    i + N / group, i + 2 N / group and so on."""

    appended = 1

    def __init__(self, group: int | None) -> None:
        """`group`: samples, or the largest number below it that divides the batch; None: all."""
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """[n, f, h, w] -> [n, f + 1, h, w]. n is the same on all ranks."""
        with without_autocast(x):
            everyone = gather_over_ranks(x.to(statistics_dtype(x.dtype)))
            group = _largest_divisor(len(everyone), self.group or len(everyone))
            groups = everyone.unflatten(0, (group, -1))
            # 1e-8, as in the authors' code: the gradient of a root is infinite at 0.
            deviations = ((groups - groups.mean(0)).square().mean(0) + 1e-8).sqrt().flatten(1).mean(1)
            mine = deviations.repeat(group).unflatten(0, (-1, len(x)))[world.rank()]
        return torch.cat([x, mine.to(x.dtype)[:, None, None, None].expand(-1, 1, *x.shape[2:])], dim=1)


def _largest_divisor(number: int, most: int) -> int:
    """The largest divisor of `number` that is at most `most`."""
    return next(divisor for divisor in range(min(most, number), 0, -1) if number % divisor == 0)
