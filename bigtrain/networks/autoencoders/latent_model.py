"""What every network of a variational autoencoder is: q(z | x), p(z) and p(x | z), by whatever layers.

Latents are described by numbers [n, latent_size] that are standard normal under the prior, whatever it is: those of a
Gaussian layer are (z - mu_p) / sigma_p, given the layers above. So they are drawn, interpolated and shifted alike.
"""

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from bigtrain.networks.autoencoders.latents import LatentOptions
from bigtrain.options import Options

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""


class NetworkOptions(Options):
    """An encoder and a decoder. `classes`: their number, or 0 where neither is told the class of an image."""

    kind: str
    initialised_by_data: ClassVar[bool] = False
    """Whether the network has to see data before it is trained (`LatentModel.initialise`)."""
    takes_latents: ClassVar[tuple[str, ...]] = ("gaussian",)
    """The kinds of latents that there are networks for."""

    @abstractmethod
    def build(self, image: Shape, classes: int, latents: LatentOptions, initial_maps: Tensor) -> "LatentModel":
        """The network of images of this shape, whose maps of p(x|z) begin near `initial_maps` [maps] at every pixel."""

    @abstractmethod
    def latent_shapes(self, image: Shape, latents: LatentOptions) -> list[tuple[int, ...]]:
        """(channels, ...) of the numbers that describe each layer's latents, the layer that is drawn first at the beginning."""

    def latent_count(self, image: Shape, latents: LatentOptions) -> int:
        """How many numbers describe the latents of an image."""
        return sum(math.prod(shape) for shape in self.latent_shapes(image, latents))

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the key, if there are no networks for images of `size` (height, width)."""


class PosteriorDraw(NamedTuple):
    """A draw z of q(z | x), and what it costs in nats. The first dimension is that of the noise."""

    maps: Tensor
    """Of p(x | z), [n, maps, h, w]; in at least float32."""
    kl: tuple[Tensor, ...]
    """By layer, the first that is drawn at the beginning: the KL divergence of each latent given the layers above, [n,
    channels, ...]; where it is not known in closed form, its estimate log q - log p at z."""
    log_ratio: Tensor
    """log q(z | x) - log p(z), [n]."""


class LatentModel(nn.Module, ABC):
    """Labels are int64 [n], or None where the network is not told the class.

    Latents and their costs are computed in the precision of the noise and the statistics, which may be above that of weights.
    """

    def forward(
        self, x: Tensor, labels: Tensor | None, noise: Tensor, temperature: Tensor | None = None
    ) -> PosteriorDraw:
        """Draws k times for each of the images [n, C, h, w], from noise [n k, latent_size] (the first k rows are the first
        image's) of the distribution that the latents' options name. `temperature` []: of relaxed latents; None: not relaxed."""
        statistics, copies = self.encode(x, labels), len(noise) // len(x)
        if copies > 1:
            statistics = tuple(each.repeat_interleave(copies, 0) for each in statistics)
            labels = labels.repeat_interleave(copies, 0) if labels is not None else None
        return self.draw(statistics, labels, noise, temperature)

    @abstractmethod
    def encode(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        """The statistics [n, ...] of q(z | x) that do not depend on the draw."""

    @abstractmethod
    def draw(
        self, statistics: tuple[Tensor, ...], labels: Tensor | None, noise: Tensor, temperature: Tensor | None
    ) -> PosteriorDraw:
        """One draw for each row of the statistics and the noise."""

    @abstractmethod
    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """The maps [n, maps, h, w] of p(x | z), in at least float32, of latents [n, latent_size]."""

    @abstractmethod
    def centre(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The latents [n, latent_size] that q(z | x) is around."""

    def initialise(self, x: Tensor, labels: Tensor | None, noise: Tensor, bias: Tensor | None) -> None:
        """Data-dependent initialisation, from this rank's first images and noise; the same on every rank. `bias`: maps [maps,
        h, w] to begin with, where the likelihood has better ones than `initial_maps`."""


def dtype_of(network: nn.Module) -> torch.dtype:
    """Of its weights."""
    return next(network.parameters()).dtype
