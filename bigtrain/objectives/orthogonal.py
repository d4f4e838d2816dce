"""Orthogonal regularisation of weights (Brock et al. 2019, arXiv:1809.11096, eq. 3)."""

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from bigtrain.networks.layers.normalisation import SpectralNorm, statistics_dtype, without_autocast
from bigtrain.options import Options, Weight


class Orthogonal(Options):
    """weight / 2 |W W^T o (1 - I)|^2, summed over the matrices W [out, rest] of a network's layers; the diagonal is free.

    Its gradient is 2 weight ((W W^T) o (1 - I)) W, which is what BigGAN-PyTorch adds.
    """

    weight: Weight = 1e-4
    """Its strength; 1e-4 in the paper."""

    def penalty(self, network: nn.Module) -> Tensor:
        """The loss, a scalar, of all linear maps and convolutions, and of embeddings with spectral norm.

        So BigGAN's shared class embedding is left out, as by its authors.
        """
        weights = list(_weights(network))
        total = weights[0].new_zeros((), dtype=statistics_dtype(weights[0].dtype))
        with without_autocast(total):
            for weight in weights:
                total = total + _off_diagonal(weight.flatten(1).to(total.dtype))
        return self.weight / 2 * total


def _weights(network: nn.Module) -> Iterator[Tensor]:
    """Each layer's weight, [out, ...]."""
    for module in network.modules():
        if isinstance(module, SpectralNorm | nn.Linear | _ConvNd):
            yield module.weight.transpose(0, 1) if getattr(module, "transposed", False) else module.weight


def _off_diagonal(rows: Tensor) -> Tensor:
    """|W W^T o (1 - I)|^2 of W [out, rest], a scalar."""
    if len(rows) <= 2 * rows.shape[1]:
        gram = rows @ rows.t()
        return (gram - gram.diagonal().diag_embed()).square().sum()
    # |W W^T| = |W^T W|, and W^T W is a small matrix where W is tall: the generator's first layer at 128x128 is [24576, 20].
    # For such a W the diagonal is a small part of the sum, so that subtracting it loses little precision.
    return (rows.t() @ rows).square().sum() - rows.square().sum(1).square().sum()
