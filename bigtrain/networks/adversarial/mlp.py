"""The fully connected networks of the first GAN (Goodfellow et al. 2014, arXiv:1406.2661), as in the authors' code.

github.com/goodfeli/adversarial, mnist.yaml: two layers of rectifiers in the generator, of maxout units in the discriminator.
Parameter counts for MNIST, 28x28 in grey:

    generator 2,503,984   discriminator 1,231,441

Unlike there, the last bias of the generator does not start at the mean image, and the discriminator drops nothing unless it is
asked to (the authors drop 0.2 of the pixels and 0.5 of all other inputs). With classes: Mirza & Osindero 2014
(arXiv:1411.1784), who also give them to both networks, here as inputs of every layer.
"""

import math
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import (
    DiscriminatorArchitecture,
    GeneratorArchitecture,
    Outputs,
    Size,
)
from bigtrain.networks.layers.conditioning import one_hot, with_classes
from bigtrain.networks.layers.precise import PreciseLinear
from bigtrain.options import Width

HiddenFeatures = Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)]
Conditioning = Literal["none", "concatenation"]
Dropped = Annotated[float, Field(ge=0, le=0.95)]


class GeneratorOptions(GeneratorArchitecture):
    """The first GAN's generator, fully connected (Goodfellow et al. 2014)."""

    kind: Literal["mlp"] = "mlp"
    latent: Width = 100
    """Size of z."""
    hidden_features: HiddenFeatures = (1200, 1200)
    """Rectifiers of each hidden layer."""
    conditioning: Conditioning = "none"
    """concatenation: each layer is given the class as well, a number for each one; none: the generator makes no difference
    between classes."""

    def check_size(self, size: Size) -> None:
        """Any size will do."""

    def latent_size(self, size: Size) -> int:
        return self.latent

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, (channels, *size), classes)


class DiscriminatorOptions(DiscriminatorArchitecture):
    """The first GAN's discriminator, of maxout units (Goodfellow et al. 2014)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "class_logits"})

    kind: Literal["mlp"] = "mlp"
    hidden_features: HiddenFeatures = (240, 240)
    """Maxout units of each hidden layer."""
    maxout_pieces: Width = 5
    """Linear maps of which a maxout unit (Goodfellow et al. 2013) takes the largest."""
    conditioning: Conditioning = "none"
    """concatenation: each layer is given the class as well, a number for each one."""
    input_dropout: Dropped = 0.0
    """Share of pixels that are dropped in training; 0.2 in the authors' code."""
    dropout: Dropped = 0.0
    """Share of the inputs of all other layers that are dropped in training; 0.5 in the authors' code."""

    def check_size(self, size: Size) -> None:
        """Any size will do."""

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, channels * math.prod(size), classes, outputs)


class RectifierLayer(nn.Module):
    """A linear map and rectifiers."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x), inplace=True)


class Generator(nn.Module):
    """z -> an image, by fully connected layers and a sigmoid."""

    recomputed_blocks = (RectifierLayer,)

    def __init__(self, options: GeneratorOptions, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.shape = shape
        self.concatenated = classes if options.class_conditional else 0
        """The classes that every layer is given beside its input; 0: none is."""
        widths, more = (options.latent, *options.hidden_features), self.concatenated
        self.layers = nn.Sequential(*(RectifierLayer(into + more, out) for into, out in pairwise(widths)))
        self.linear = PreciseLinear(widths[-1] + more, math.prod(shape))
        _initialise(self, 0.05)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [n, latent], and labels int64 [n] of a conditional one -> images [n, channels, height, width] in [-1, 1], at least
        float32."""
        y = one_hot(labels, self.concatenated) if labels is not None else None
        for layer in self.layers:
            z = layer(with_classes(z, y))
        # The sigmoid, which is the authors', stretched from [0, 1] to [-1, 1].
        return torch.tanh(self.linear(with_classes(z, y)) / 2).unflatten(1, self.shape)


class MaxoutLayer(nn.Module):
    """Drops inputs, maps them linearly, and takes the largest of each `pieces` outputs."""

    def __init__(self, inputs: int, outputs: int, pieces: int, dropped: float) -> None:
        super().__init__()
        self.pieces = pieces
        self.dropout = nn.Dropout(dropped)
        self.linear = nn.Linear(inputs, outputs * pieces)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.dropout(x)).unflatten(1, (-1, self.pieces)).amax(2)


class Discriminator(nn.Module):
    """An image -> a logit. The auxiliary classifier is one more last layer."""

    recomputed_blocks = (MaxoutLayer,)

    def __init__(self, options: DiscriminatorOptions, pixels: int, classes: int, outputs: frozenset[str]) -> None:
        super().__init__()
        self.outputs = outputs
        self.concatenated = classes if options.class_conditional else 0
        """The classes that every layer is given beside its input; 0: none is."""
        widths, more = (pixels, *options.hidden_features), self.concatenated
        self.layers = nn.Sequential(
            *(
                MaxoutLayer(
                    into + more, out, options.maxout_pieces, options.dropout if index else options.input_dropout
                )
                for index, (into, out) in enumerate(pairwise(widths))
            )
        )
        self.dropout = nn.Dropout(options.dropout)
        self.linear = PreciseLinear(widths[-1] + more, 1)
        self.classifier = PreciseLinear(widths[-1] + more, classes) if "class_logits" in outputs else None
        _initialise(self, 0.005)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | Outputs:
        """images [n, channels, height, width] in [-1, 1], and labels int64 [n] of a conditional one -> logits [n], at least
        float32; or Outputs."""
        y = one_hot(labels, self.concatenated) if labels is not None else None
        features = (images.flatten(1) + 1) / 2  # in [0, 1], as the authors' images
        for layer in self.layers:
            features = layer(with_classes(features, y))
        last = with_classes(self.dropout(features), y)
        logits = self.linear(last).squeeze(1)
        if not self.outputs:
            return logits
        of_classes = self.classifier(last) if self.classifier is not None else None
        return Outputs(logits, features if "features" in self.outputs else None, of_classes)


@torch.no_grad()
def _initialise(network: nn.Module, largest: float) -> None:
    """Weights uniform in [-largest, largest], as the authors' code has them, and no biases."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.uniform_(module.weight, -largest, largest)
            nn.init.zeros_(module.bias)
