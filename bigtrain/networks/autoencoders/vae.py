"""Encoders and decoders of variational autoencoders (Kingma & Welling 2014, arXiv:1312.6114, appendix C).

The encoder gives the mean and the log deviation of q(z|x), or the logits of its categories, the decoder the maps of p(x|z).
Where there are classes, a vector of the class is added to the first features of both.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.networks.autoencoders.latent_model import LatentModel, NetworkOptions, PosteriorDraw, Shape, dtype_of
from bigtrain.networks.autoencoders.latents import LatentOptions
from bigtrain.networks.layers.precise import PreciseConv2d, PreciseLinear
from bigtrain.options import MOST_LAYERS, Width
from bigtrain.sizes import size_text


class EncoderDecoder(NetworkOptions):
    """One encoder and one decoder, of one layer of latents."""

    latent_size: Width = 20
    """Number of latents of an image."""
    takes_latents = ("gaussian", "concrete")

    @abstractmethod
    def encoder(self, image: Shape, classes: int, outputs: int) -> "ConditionalStack":
        """Images [n, C, h, w] -> [n, outputs]."""

    @abstractmethod
    def decoder(self, image: Shape, classes: int, inputs: int, initial_maps: Tensor) -> "ConditionalStack":
        """Latents [n, inputs] -> maps [n, maps, h, w], which begin near `initial_maps` [maps] at every pixel."""

    def build(self, image: Shape, classes: int, latents: LatentOptions, initial_maps: Tensor) -> "Autoencoder":
        return Autoencoder(self, image, classes, latents, initial_maps)

    def latent_shapes(self, image: Shape, latents: LatentOptions) -> list[tuple[int, ...]]:
        return [latents.shape(self.latent_size)]


class Convolutional(EncoderDecoder):
    """Residual blocks, between convolutions that halve the maps or double them. Level i has maps of the images' size / 2^i with
    channels x multipliers[i] channels."""

    kind: Literal["convolutional"] = "convolutional"
    channels: Width = 64
    """Channels of the first level at multiplier 1."""
    multipliers: tuple[Width, ...] = Field(default=(1, 2, 2), min_length=1, max_length=16)
    """Channels of each level, as multiples of `channels`; one number per level."""
    blocks_per_level: int = Field(default=1, ge=0, le=MOST_LAYERS)
    """Residual blocks of a level."""

    def encoder(self, image: Shape, classes: int, outputs: int) -> "ConditionalStack":
        widths, (height, width) = self._widths, self._smallest(image)
        layers = self._blocks(widths[0])
        for before, after in pairwise(widths):
            layers += [nn.SiLU(), nn.Conv2d(before, after, 4, stride=2, padding=1), *self._blocks(after)]
        output = PreciseLinear(widths[-1] * height * width, outputs)
        first = nn.Conv2d(image[0], widths[0], 3, padding=1)
        return ConditionalStack(first, classes, widths[0], [*layers, nn.SiLU(), nn.Flatten(), output])

    def decoder(self, image: Shape, classes: int, inputs: int, initial_maps: Tensor) -> "ConditionalStack":
        widths, smallest = self._widths[::-1], (self._widths[-1], *self._smallest(image))
        layers = self._blocks(widths[0])
        for before, after in pairwise(widths):
            layers += [nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(before, after, 3, padding=1)]
            layers += self._blocks(after)
        output = PreciseConv2d(widths[-1], len(initial_maps), 3, padding=1)
        _begin_at(output, initial_maps)
        first = nn.Linear(inputs, math.prod(smallest))
        rest = [nn.Unflatten(1, smallest), *layers, nn.SiLU(), output]
        return ConditionalStack(first, classes, math.prod(smallest), rest)

    def check_size(self, size: tuple[int, int]) -> None:
        halvings = len(self.multipliers) - 1
        if any(side % 2**halvings for side in size):
            raise ValueError(
                f"family.network.multipliers: {halvings + 1} levels need a data.image_size that is divisible by {2**halvings}, "
                f"and {size_text(size)} is not; take fewer levels or another size"
            )

    @property
    def _widths(self) -> list[int]:
        return [self.channels * multiplier for multiplier in self.multipliers]

    def _smallest(self, image: Shape) -> tuple[int, int]:
        """(height, width) of the last level's maps."""
        factor = 2 ** (len(self.multipliers) - 1)
        return image[1] // factor, image[2] // factor

    def _blocks(self, width: int) -> list[nn.Module]:
        return [ResidualBlock(width) for _ in range(self.blocks_per_level)]


class FullyConnected(EncoderDecoder):
    """One hidden layer of ReLUs each way. Of 28 x 28 grey pixels with one map, by default the network of textbooks, 784-400-20:
    652,824 parameters."""

    kind: Literal["fully_connected"] = "fully_connected"
    hidden_features: Width = 400
    """Features of a hidden layer."""

    def encoder(self, image: Shape, classes: int, outputs: int) -> "ConditionalStack":
        first = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(image), self.hidden_features))
        output = PreciseLinear(self.hidden_features, outputs)
        return ConditionalStack(first, classes, self.hidden_features, [nn.ReLU(), output])

    def decoder(self, image: Shape, classes: int, inputs: int, initial_maps: Tensor) -> "ConditionalStack":
        maps = (len(initial_maps), *image[1:])
        output = PreciseLinear(self.hidden_features, math.prod(maps))
        _begin_at(output, initial_maps.repeat_interleave(math.prod(image[1:])))
        first = nn.Linear(inputs, self.hidden_features)
        return ConditionalStack(first, classes, self.hidden_features, [nn.ReLU(), output, nn.Unflatten(1, maps)])


class ConditionalStack(nn.Module):
    """Layers, with a vector of the class added to what the first of them gives: [n, width] or [n, width, h, w]."""

    def __init__(self, first: nn.Module, classes: int, width: int, rest: Sequence[nn.Module]) -> None:
        super().__init__()
        self.first = first
        self.by_class = nn.Embedding(classes, width) if classes else None
        self.rest = nn.Sequential(*rest)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """labels: int64 [n], which a stack without classes does not read."""
        features = self.first(x)
        if self.by_class is not None:
            assert labels is not None, "this network is told the class"
            features = features + self.by_class(labels).view(len(x), -1, *[1] * (features.ndim - 2))
        return self.rest(features)


class ResidualBlock(nn.Module):
    """x + conv3(silu(conv3(silu(x))))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.conv1(F.silu(x))))


def _begin_at(output: PreciseConv2d | PreciseLinear, initial: Tensor) -> None:
    """Starts a last layer with small weights and the bias `initial`, so that the first loss is that of the bias."""
    nn.init.normal_(output.weight, std=0.01)
    output.bias = nn.Parameter(initial.clone())


class Autoencoder(LatentModel):
    """An encoder that describes q(z | x), and a decoder that is given z."""

    recomputed_blocks = (ConditionalStack,)

    def __init__(
        self, options: EncoderDecoder, image: Shape, classes: int, latents: LatentOptions, initial_maps: Tensor
    ) -> None:
        super().__init__()
        self.latents = latents
        self.encoder = options.encoder(image, classes, latents.outputs(options.latent_size))
        self.decoder = options.decoder(image, classes, latents.inputs(options.latent_size), initial_maps)

    def encode(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        """Of Gaussian latents mu and log sigma, [n, latent_size] each; in at least float32."""
        return self.latents.statistics(self.encoder(x, labels))

    def draw(
        self, statistics: tuple[Tensor, ...], labels: Tensor | None, noise: Tensor, temperature: Tensor | None
    ) -> PosteriorDraw:
        z, kl, log_ratio = self.latents.draw(statistics, noise, temperature)
        return PosteriorDraw(self._maps(z, labels), (kl,), log_ratio)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        return self._maps(self.latents.decoded(latents), labels)

    def centre(self, x: Tensor, labels: Tensor | None) -> Tensor:
        return self.latents.centre(self.encode(x, labels))

    def _maps(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.decoder(z.to(dtype_of(self)), labels)
