"""Multilayer perceptrons that make points, vectors of a few numbers, and tell them from others. The toys of the papers on GANs:
Gulrajani et al. 2017 (arXiv:1704.00028) have z of 2 numbers and three hidden layers of 512 with ReLU.

    generator, 3 x 128, to the plane         33,666
    discriminator, 3 x 128, of the plane     33,537
    autoencoder, 128 - 2 - 128, of the plane  1,284

A point is built for as an image of its numbers as channels; `size` has no meaning.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import DiscriminatorArchitecture, GeneratorArchitecture, Outputs, Size
from bigtrain.networks.layers.precise import PreciseLinear
from bigtrain.options import Depth, Scale, Width


class GeneratorOptions(GeneratorArchitecture):
    """A multilayer perceptron that makes points."""

    kind: Literal["mlp"] = "mlp"
    hidden_features: Width = 128
    """Of each hidden layer."""
    hidden_layers: Depth = 3
    """How many, each with ReLU."""
    latent: Width = 2
    """Size of z."""
    scale: Scale = 1.0
    """What the points are multiplied by, so that the network's own are of the order of 1."""

    def check_size(self, size: Size) -> None:
        """Points have no size."""

    def latent_size(self, size: Size) -> int:
        return self.latent

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, channels)


class DiscriminatorOptions(DiscriminatorArchitecture):
    """A multilayer perceptron that tells points from others."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features"})

    kind: Literal["mlp"] = "mlp"
    hidden_features: Width = 128
    """Of each hidden layer."""
    hidden_layers: Depth = 3
    """How many, each with ReLU."""
    scale: Scale = 1.0
    """What the points are divided by."""

    def check_size(self, size: Size) -> None:
        """Points have no size."""

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, channels, outputs)


class AutoencoderOptions(DiscriminatorArchitecture):
    """An autoencoder, whose logit of a point is minus the mean squared error of its numbers (Zhao, Mathieu & LeCun 2017,
    arXiv:1609.03126, section 2.3)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "reconstruction"})

    kind: Literal["autoencoder"] = "autoencoder"
    hidden_features: Width = 128
    """Of each hidden layer."""
    hidden_layers: Depth = 1
    """Of the encoder, and of the decoder."""
    code_size: Width = 2
    """Size of the code, which is not bounded."""
    scale: Scale = 1.0
    """What the points are divided by."""

    def check_size(self, size: Size) -> None:
        """Points have no size."""

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Autoencoder(self, channels, outputs)


class HiddenLayer(nn.Linear):
    """A linear map and ReLU."""

    def forward(self, input: Tensor) -> Tensor:
        """[n, features] -> [n, outputs]."""
        return F.relu(super().forward(input))


class Generator(nn.Module):
    """z -> a point."""

    recomputed_blocks = (HiddenLayer,)

    def __init__(self, options: GeneratorOptions, numbers: int) -> None:
        super().__init__()
        self.scale = options.scale
        self.layers = _hidden_layers(options.latent, options.hidden_features, options.hidden_layers)
        self.out = PreciseLinear(options.hidden_features, numbers)

    def forward(self, z: Tensor) -> Tensor:
        """z [n, latent] -> points [n, numbers], at least float32."""
        return self.scale * self.out(self.layers(z))


class Discriminator(nn.Module):
    """A point -> a logit."""

    recomputed_blocks = (HiddenLayer,)

    def __init__(self, options: DiscriminatorOptions, numbers: int, outputs: frozenset[str]) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = options.scale
        self.layers = _hidden_layers(numbers, options.hidden_features, options.hidden_layers)
        self.out = PreciseLinear(options.hidden_features, 1)

    def forward(self, points: Tensor) -> Tensor | Outputs:
        """points [n, numbers] -> logits [n], at least float32; or Outputs."""
        features = self.layers(points / self.scale)
        logits = self.out(features).flatten()
        return Outputs(logits, features) if "features" in self.outputs else logits


class Autoencoder(nn.Module):
    """A point -> a code -> the point again."""

    recomputed_blocks = (HiddenLayer,)

    def __init__(self, options: AutoencoderOptions, numbers: int, outputs: frozenset[str]) -> None:
        super().__init__()
        self.outputs = outputs
        self.scale = options.scale
        hidden, layers = options.hidden_features, options.hidden_layers
        self.encoder, self.code = _hidden_layers(numbers, hidden, layers), nn.Linear(hidden, options.code_size)
        self.decoder, self.out = _hidden_layers(options.code_size, hidden, layers), PreciseLinear(hidden, numbers)

    def forward(self, points: Tensor) -> Tensor | Outputs:
        """points [n, numbers] -> logits [n], at least float32; or Outputs."""
        scaled = points / self.scale
        code = self.code(self.encoder(scaled))
        reconstruction = self.out(self.decoder(code))
        logits = -(reconstruction - scaled).square().mean(1)
        if not self.outputs:
            return logits
        return Outputs(
            logits,
            features=code if "features" in self.outputs else None,
            reconstruction=self.scale * reconstruction if "reconstruction" in self.outputs else None,
        )


def _hidden_layers(inputs: int, features: int, layers: int) -> nn.Sequential:
    widths = [inputs] + layers * [features]
    return nn.Sequential(*map(HiddenLayer, widths[:-1], widths[1:]))
