"""DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434): strided convolutions, batch norm, no classes.

As in pytorch/examples/dcgan: kernels of 4x4, stride 2 except between 4x4 and 1x1, no biases, leaky ReLU with slope 0.2 in the
discriminator, weights from N(0, 0.02), gains of batch norm from N(1, 0.02). Parameter counts at 64x64 in RGB, with
channels = 64 and latent = 100:

    generator 3,576,704   discriminator 2,765,568

Twice the size is one more layer in each, and twice the width at 4x4.
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import DiscriminatorArchitecture, GeneratorArchitecture, Outputs, Size
from bigtrain.networks.layers.normalisation import SpectralNorm, SyncedBatchNorm, statistics_dtype
from bigtrain.options import Width
from bigtrain.sizes import size_text


class GeneratorOptions(GeneratorArchitecture):
    """DCGAN's generator, without classes (Radford et al. 2016)."""

    kind: Literal["dcgan"] = "dcgan"
    channels: Width = 64
    """Features of the last layer before the image; each layer before it has twice as many."""
    latent: Width = 100
    """Size of z."""

    def check_size(self, size: Size) -> None:
        doublings(size)

    def latent_size(self, size: Size) -> int:
        return self.latent

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, size, channels)


class DiscriminatorOptions(DiscriminatorArchitecture):
    """DCGAN's discriminator, without classes (Radford et al. 2016)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "class_logits"})

    kind: Literal["dcgan"] = "dcgan"
    channels: Width = 64
    """Features of the first layer; each layer after it has twice as many."""
    norm: Literal["batch", "spectral", "none"] = "batch"
    """Batch norm in all layers but the first and the last; or instead of it biases in all layers, with spectral norm of all
    weights or without."""

    @property
    def batch_statistics(self) -> bool:
        return self.norm == "batch"

    @property
    def singular_values(self) -> Mapping[str, str] | None:
        return {} if self.norm == "spectral" else None

    def check_size(self, size: Size) -> None:
        doublings(size)

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, size, channels, classes, outputs)


def doublings(size: Size) -> int:
    """How often 4x4 doubles to give `size`. Raises UserError, naming the key, if it never does."""
    height, width = size
    if height != width or height < 8 or height & (height - 1):
        raise UserError(
            f"data.image_size: DCGAN makes squares whose side is a power of two from 8 on, not {size_text(size)}"
        )
    return height.bit_length() - 3


class UpLayer(nn.Module):
    """Transposed convolution, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        self.norm = SyncedBatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class Generator(nn.Module):
    """z -> an image, from 1x1 to 4x4 and then by doublings."""

    recomputed_blocks = (UpLayer,)

    def __init__(self, options: GeneratorOptions, size: Size, channels: int) -> None:
        super().__init__()
        widths = [options.channels << power for power in reversed(range(doublings(size)))]
        first = UpLayer(options.latent, widths[0], stride=1, padding=0)
        others = (UpLayer(into, out, stride=2, padding=1) for into, out in pairwise(widths))
        self.layers = nn.Sequential(first, *others)
        self.conv = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1, bias=False)
        _initialise(self)

    def forward(self, z: Tensor) -> Tensor:
        """z [n, latent] -> images [n, channels, height, width] in [-1, 1], at least float32."""
        h = z[:, :, None, None].contiguous(memory_format=torch.channels_last)
        h = self.conv(self.layers(h))
        return torch.tanh(h.to(statistics_dtype(h.dtype)))


class DownLayer(nn.Module):
    """Convolution with stride 2, batch norm if asked for, leaky ReLU."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2, inplace=True)


class Discriminator(nn.Module):
    """An image -> a logit, by halvings to 4x4 and then to 1x1. The auxiliary classifier is one more last layer."""

    recomputed_blocks = (DownLayer,)

    def __init__(
        self, options: DiscriminatorOptions, size: Size, channels: int, classes: int, outputs: frozenset[str]
    ) -> None:
        super().__init__()
        self.outputs = outputs
        widths = [options.channels << power for power in range(doublings(size))]
        self.layers = nn.Sequential()
        for index, (inputs, features) in enumerate(pairwise([channels, *widths])):
            normed = options.batch_statistics and index > 0
            norm = SyncedBatchNorm(features) if normed else nn.Identity()
            self.layers.append(DownLayer(_convolution(options, inputs, features, stride=2, padding=1), norm))
        last = partial(_convolution, options, widths[-1], stride=1, padding=0)
        self.conv = last(1)
        self.classifier = last(classes) if "class_logits" in outputs else None
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor | Outputs:
        """images [n, channels, height, width] in [-1, 1] -> logits [n], at least float32; or Outputs."""
        features = self.layers(images)
        logits = self.conv(features).flatten()
        logits = logits.to(statistics_dtype(logits.dtype))
        if not self.outputs:
            return logits
        of_classes = self.classifier(features).flatten(1).to(logits.dtype) if self.classifier is not None else None
        return Outputs(logits, features if "features" in self.outputs else None, of_classes)


def _convolution(options: DiscriminatorOptions, inputs: int, outputs: int, *, stride: int, padding: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 4, stride, padding, bias=not options.batch_statistics)
    return SpectralNorm(conv) if options.norm == "spectral" else conv


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | SpectralNorm):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, SyncedBatchNorm) and module.weight is not None:
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
