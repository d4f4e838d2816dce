"""Batch norm by a reference batch that stays the same, so that what a network makes of a sample depends on no other sample.

Reference batch norm and virtual batch norm: Salimans et al. 2016 (arXiv:1606.03498), section 3.4. The reference batch goes
through the network in front of every batch (`ReferenceBatch`), and each norm takes its moments there. It is the same on every
rank, so ranks need nothing of each other.
"""

import torch
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.networks.layers.statistics import StatisticsModule


class ReferenceBatch(StatisticsModule):
    """The samples that a network puts in front of every batch, and their classes if it takes any."""

    copied_buffers = ("samples", "labels")
    samples: Tensor
    labels: Tensor

    def __init__(self, samples: Tensor, classes: int) -> None:
        """`samples` [reference, ...]. Classes, below `classes`, are drawn from torch's global generator; 0: none."""
        super().__init__()
        self.register_buffer("samples", samples)
        self.register_buffer("labels", torch.randint(classes, (len(samples),)) if classes else None)

    def in_front_of(self, batch: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The reference batch and then the batch [n, ...], and so their labels."""
        front = self.samples.to(batch.dtype)
        return torch.cat([front, batch]), None if labels is None else torch.cat([self.labels, labels])

    def without(self, batch: Tensor) -> Tensor:
        """What `in_front_of` was given, of what a network made of it."""
        return batch[len(self.samples) :]

    def commit(self, finite: Tensor) -> None:
        """Nothing is recorded: it never changes."""


class ReferenceBatchNorm(nn.Module):
    """Normalises the reference batch by its own moments and, as `virtual`, each other sample by the moments of the reference
    batch and itself together, all samples counting alike (as the authors' code does); or else by the reference batch's."""

    def __init__(self, features: int, reference: int, *, virtual: bool, eps: float = 1e-5) -> None:
        """`reference`: how many of a batch's samples, the first, are the reference batch."""
        super().__init__()
        self.reference, self.virtual, self.eps = reference, virtual, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        """[reference + n, features, h, w] -> the same shape and dtype."""
        with without_autocast(x):
            exact = x.to(statistics_dtype(x.dtype))
            first, others = exact[: self.reference], exact[self.reference :]
            variance, mean = torch.var_mean(first, (0, 2, 3), correction=0, keepdim=True)
            normal = torch.cat([self._normalised(first, mean, variance), self._others(others, mean, variance)])
            return torch.addcmul(self.bias[:, None, None], normal, self.weight[:, None, None]).to(x.dtype)

    def _others(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        if not self.virtual:
            return self._normalised(x, mean, variance)
        share = 1 / (self.reference + 1)
        own_variance, own_mean = torch.var_mean(x, (2, 3), correction=0, keepdim=True)
        both = torch.lerp(mean, own_mean, share)
        # The law of total variance: accurate where E[x^2] - E[x]^2 would cancel.
        spread = torch.lerp(variance + (mean - both).square(), own_variance + (own_mean - both).square(), share)
        return self._normalised(x, both, spread)

    def _normalised(self, x: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        return (x - mean) * (variance + self.eps).rsqrt()
