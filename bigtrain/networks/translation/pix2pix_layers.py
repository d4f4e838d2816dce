"""The norms of pix2pix's two networks, and how both draw their initial weights."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import SyncedBatchNorm

Norm = Literal["batch", "instance", "none"]


class SampleBatchNorm(SyncedBatchNorm):
    """Batch norm over the global microbatch in training, whose evaluation normalises each sample by its own moments.

    The authors leave their generator in training mode at test and give it one image at a time, so that it is normalised by
    that image's moments (Isola et al. 2017, section 3.2). Here each sample of a batch is, whatever the batch.
    """

    by_sample: bool = True
    """Whether the evaluation does so; off, it takes the running statistics."""

    def forward(self, x: Tensor) -> Tensor:
        """[n, features, h, w] -> the same shape and dtype; h w > 1."""
        if self.training or not self.by_sample:
            return super().forward(x)
        return F.instance_norm(x, weight=self.weight, bias=self.bias, eps=self.eps)


def norm_of(kind: Norm, features: int, *, by_sample: bool = False) -> nn.Module:
    """The norm of `features` channels; `by_sample`: whether batch norm is a `SampleBatchNorm`. Instance norm (Ulyanov et al.
    2016) is without weights."""
    if kind == "batch":
        return (SampleBatchNorm if by_sample else SyncedBatchNorm)(features)
    return nn.InstanceNorm2d(features) if kind == "instance" else nn.Identity()


def has_bias(norm: Norm) -> bool:
    """Whether a convolution in front of this norm has a bias: batch norm has its own. The authors leave it out without a norm
    too."""
    return norm == "instance"


@torch.no_grad()
def initialise(network: nn.Module) -> None:
    """Draws weights as the authors do: convolutions from N(0, 0.02), the gains of batch norm from N(1, 0.02); biases are 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, SyncedBatchNorm) and module.weight is not None:
            nn.init.normal_(module.weight, 1.0, 0.02)
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
