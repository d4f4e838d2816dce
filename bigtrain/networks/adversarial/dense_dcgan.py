"""The class-conditional DCGAN for MNIST (Radford, Metz & Chintala 2016, arXiv:1511.06434, with the authors' code).

github.com/Newmu/dcgan_code, mnist/train_cond_dcgan.py: between z or the logit and maps of a quarter of the image's height and
width lie fully connected layers, and every layer of both networks is given the class as well. Kernels of 5x5, no biases, batch
norm without gains and biases in all layers but the last, and the discriminator's first. Parameter counts for MNIST, 28x28 in
grey with ten classes:

    generator 6,820,538   discriminator 6,688,202

The authors' images lie in [0, 1], and their generator ends in a sigmoid; here both are stretched to [-1, 1]. Samples are
normalised by running averages, where the authors take the moments of their batch.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import (
    DiscriminatorArchitecture,
    GeneratorArchitecture,
    Outputs,
    Size,
)
from bigtrain.networks.layers.conditioning import one_hot, with_classes
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, statistics_dtype
from bigtrain.options import Width
from bigtrain.sizes import size_text


class GeneratorOptions(GeneratorArchitecture):
    """The generator of DCGAN's authors for MNIST, with fully connected layers (Radford et al. 2016)."""

    kind: Literal["dense_dcgan"] = "dense_dcgan"
    channels: Width = 64
    """Features of the last layer before the image; the one before it has twice as many."""
    hidden_features: Width = 1024
    """Of the fully connected layer."""
    latent: Width = 100
    """Size of z."""
    conditioning: Literal["concatenation", "none"] = "concatenation"
    """concatenation: each layer is given the class as well, a channel for each one; none: the generator makes no difference
    between classes."""

    def check_size(self, size: Size) -> None:
        _quarter(size)

    def latent_size(self, size: Size) -> int:
        return self.latent

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, size, channels, classes)


class DiscriminatorOptions(DiscriminatorArchitecture):
    """The discriminator of DCGAN's authors for MNIST, with a fully connected layer (Radford et al. 2016)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "class_logits"})

    kind: Literal["dense_dcgan"] = "dense_dcgan"
    channels: Width = 64
    """Features of the first layer; the second has twice as many."""
    hidden_features: Width = 1024
    """Of the fully connected layer."""
    conditioning: Literal["concatenation", "none"] = "concatenation"
    """concatenation: each layer is given the class as well, a channel for each one."""

    @property
    def batch_statistics(self) -> bool:
        return True

    def check_size(self, size: Size) -> None:
        _quarter(size)

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, size, channels, classes, outputs)


def _quarter(size: Size) -> Size:
    """Of height and width. Raises UserError, naming the key, if there is none."""
    if any(side % 4 for side in size):
        raise UserError(
            f"data.image_size: a dense DCGAN takes sides that are multiples of 4, not {size_text(size)}; crop or resize to such"
        )
    height, width = size
    return height // 4, width // 4


class NormedLayer(nn.Module):
    """A linear map or a (transposed) convolution, batch norm if asked for, and (leaky) ReLU."""

    def __init__(self, linear: nn.Module, features: int | None, slope: float) -> None:
        """`features`: of batch norm; None: without."""
        super().__init__()
        self.linear = linear
        self.norm = SyncedBatchNorm(features, affine=False, eps=1e-8) if features is not None else nn.Identity()
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs] or [n, inputs, h, w] -> [n, outputs, 1, 1], or [n, outputs, h', w']."""
        h = self.linear(x)
        h = self.norm(h if h.dim() == 4 else h[:, :, None, None])
        return F.leaky_relu(h, self.slope, inplace=True)


class Generator(nn.Module):
    """z -> features -> a map of a quarter of the size, and then by doublings an image."""

    recomputed_blocks = (NormedLayer,)

    def __init__(self, options: GeneratorOptions, size: Size, channels: int, classes: int) -> None:
        super().__init__()
        self.concatenated = more = classes if options.class_conditional else 0
        """The classes that every layer is given beside its input; 0: none is."""
        self.smallest = height, width = _quarter(size)
        """Height and width of the first map."""
        features, hidden = options.channels, options.hidden_features
        numbers = 2 * features * height * width
        self.layers = nn.ModuleList(
            [
                NormedLayer(nn.Linear(options.latent + more, hidden, bias=False), hidden, 0.0),
                NormedLayer(nn.Linear(hidden + more, numbers, bias=False), numbers, 0.0),
                NormedLayer(_doubling(2 * features + more, features), features, 0.0),
            ]
        )
        self.conv = _doubling(features + more, channels)
        _initialise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [n, latent], and labels int64 [n] of a conditional one -> images [n, channels, height, width] in [-1, 1], at least
        float32."""
        y = one_hot(labels, self.concatenated) if labels is not None else None
        to_features, to_map, to_half = self.layers
        h = to_map(with_classes(to_features(with_classes(z, y)).flatten(1), y)).flatten(1)
        h = h.unflatten(1, (-1, *self.smallest)).contiguous(memory_format=torch.channels_last)
        h = self.conv(with_classes(to_half(with_classes(h, y)), y))
        return torch.tanh(h.to(statistics_dtype(h.dtype)) / 2)


class Discriminator(nn.Module):
    """An image -> a map of a quarter of its size -> features -> a logit. The auxiliary classifier is one more last layer."""

    recomputed_blocks = (NormedLayer,)

    def __init__(
        self, options: DiscriminatorOptions, size: Size, channels: int, classes: int, outputs: frozenset[str]
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.concatenated = more = classes if options.class_conditional else 0
        """The classes that every layer is given beside its input; 0: none is."""
        height, width = _quarter(size)
        features, hidden = options.channels, options.hidden_features
        numbers = 2 * features * height * width
        self.layers = nn.ModuleList(
            [
                NormedLayer(_halving(channels + more, features), None, 0.2),
                NormedLayer(_halving(features + more, 2 * features), 2 * features, 0.2),
                NormedLayer(nn.Linear(numbers + more, hidden, bias=False), hidden, 0.2),
            ]
        )
        self.linear = nn.Linear(hidden + more, 1, bias=False)
        self.classifier = nn.Linear(hidden + more, classes, bias=False) if "class_logits" in outputs else None
        _initialise(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | Outputs:
        """images [n, channels, height, width] in [-1, 1], and labels int64 [n] of a conditional one -> logits [n], at least
        float32; or Outputs."""
        y = one_hot(labels, self.concatenated) if labels is not None else None
        to_half, to_quarter, to_features = self.layers
        h = to_quarter(with_classes(to_half(with_classes((images + 1) / 2, y)), y))
        features = to_features(with_classes(h.flatten(1), y)).flatten(1)
        last = with_classes(features, y)
        logits = self.linear(last).squeeze(1)
        logits = logits.to(statistics_dtype(logits.dtype))
        if not self.outputs:
            return logits
        of_classes = self.classifier(last).to(logits.dtype) if self.classifier is not None else None
        return Outputs(logits, features if "features" in self.outputs else None, of_classes)


def _halving(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 5, 2, 2, bias=False)


def _doubling(inputs: int, outputs: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, output_padding=1, bias=False)


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
