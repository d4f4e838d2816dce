"""The autoencoder discriminator of EBGAN (Zhao, Mathieu & LeCun 2017, arXiv:1609.03126, section 2.3 and appendix D).

Strided 4x4 convolutions to a code and transposed ones back, as in the paper's network for CelebA at 64x64: (64)4c2s-(128)4c2s-
(256)4c2s-(128)4c2s-(64)4c2s-(3)4c2s, with batch norm in all layers but the first and the last. The logit of an image is minus
its energy, the mean squared error over its pixels and channels.
"""

from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import DiscriminatorArchitecture, Outputs, Size
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, statistics_dtype
from bigtrain.options import Depth, Width
from bigtrain.sizes import size_text


class DiscriminatorOptions(DiscriminatorArchitecture):
    """EBGAN's discriminator, an autoencoder (Zhao et al. 2017)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "reconstruction"})

    kind: Literal["autoencoder"] = "autoencoder"
    channels: Width = 64
    """Features of the first layer; each layer after it has twice as many, up to the code."""
    halvings: Depth = 3
    """Layers of the encoder, each of which halves the height and the width."""
    norm: Literal["batch", "none"] = "batch"
    """Batch norm in all layers but the first and the last, or instead of it biases in all layers."""

    @property
    def batch_statistics(self) -> bool:
        return self.norm == "batch"

    def check_size(self, size: Size) -> None:
        part = 1 << self.halvings
        if any(side % part for side in size):
            raise UserError(
                f"data.image_size: an autoencoder of {self.halvings} halvings takes images with sides that are multiples of "
                f"{part}, not {size_text(size)}; or set family.discriminator.halvings"
            )

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, channels, outputs)


class CodingLayer(nn.Module):
    """(Transposed) convolution with stride 2, batch norm if asked for, (leaky) ReLU."""

    def __init__(self, conv: nn.Module, norm: nn.Module, slope: float) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), self.slope, inplace=True)


class Discriminator(nn.Module):
    """An image -> a code -> the image again."""

    recomputed_blocks = (CodingLayer,)

    def __init__(self, options: DiscriminatorOptions, channels: int, outputs: frozenset[str]) -> None:
        super().__init__()
        self.outputs = outputs
        normed = options.batch_statistics
        widths = [options.channels << power for power in range(options.halvings)]
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for index, (inputs, features) in enumerate(pairwise([channels, *widths])):
            down = nn.Conv2d(inputs, features, 4, 2, 1, bias=not normed)
            self.encoder.append(CodingLayer(down, _norm(features, normed and index > 0), 0.2))
        for inputs, features in pairwise(reversed(widths)):
            up = nn.ConvTranspose2d(inputs, features, 4, 2, 1, bias=not normed)
            self.decoder.append(CodingLayer(up, _norm(features, normed), 0.0))
        self.conv = nn.ConvTranspose2d(widths[0], channels, 4, 2, 1)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """images [n, channels, height, width] in [-1, 1] -> logits [n], at least float32; or Outputs."""
        code = self.encoder(images)
        reconstruction = self.conv(self.decoder(code))
        reconstruction = torch.tanh(reconstruction.to(statistics_dtype(reconstruction.dtype)))
        logits = -(reconstruction - images).square().flatten(1).mean(1)
        if not self.outputs:
            return logits
        return Outputs(
            logits,
            features=code if "features" in self.outputs else None,
            reconstruction=reconstruction if "reconstruction" in self.outputs else None,
        )


def _norm(features: int, normed: bool) -> nn.Module:
    return SyncedBatchNorm(features) if normed else nn.Identity()


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """As DCGAN: weights from N(0, 0.02), which the paper takes too."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
