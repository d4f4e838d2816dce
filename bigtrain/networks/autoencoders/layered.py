"""Fully connected networks with several layers of latents (Burda et al. 2016, "Importance weighted autoencoders",
arXiv:1509.00519, section 5).

    q(z | x) = q(z_1 | x) q(z_2 | z_1) ...,    p(x, z) = p(z_L) ... p(z_1 | z_2) p(x | z_1)

Each is a Gaussian whose mean and log deviation two hidden layers of tanh give, but for p(x | z_1), which has maps, and p(z_L),
which is N(0, I). Of 28 x 28 pixels with one map, the authors' two networks: latents [50], 425,284 parameters; [100, 50],
521,084. Where there are classes, a vector of the class is added to what each of these networks is given first.
"""

import math
from itertools import pairwise
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.autoencoders.latent_model import LatentModel, NetworkOptions, PosteriorDraw, Shape, dtype_of
from bigtrain.networks.autoencoders.latents import LatentOptions, kl_to_standard_normal, normal_log_density
from bigtrain.networks.layers.precise import PreciseLinear
from bigtrain.options import Width


class Layered(NetworkOptions):
    """Layers of latents between fully connected layers."""

    kind: Literal["layered"]
    latent_sizes: tuple[Width, ...] = Field(default=(50,), min_length=1, max_length=16)
    """Latents of each layer, that next to the image first."""
    hidden_features: tuple[Width, ...] = Field(default=(200,), min_length=1, max_length=16)
    """Features of the two hidden layers on each side below a layer of latents."""
    initialised_by_data = True

    @model_validator(mode="after")
    def _a_width_for_each_layer(self) -> "Layered":
        if len(self.latent_sizes) != len(self.hidden_features):
            raise ValueError("latent_sizes and hidden_features must have a number for each layer of latents")
        return self

    def build(self, image: Shape, classes: int, latents: LatentOptions, initial_maps: Tensor) -> "LayeredModel":
        return LayeredModel(self, image, classes, initial_maps)

    def latent_shapes(self, image: Shape, latents: LatentOptions) -> list[tuple[int, ...]]:
        return [(size,) for size in reversed(self.latent_sizes)]


class LayeredModel(LatentModel):
    """`posteriors[l]` is q(z_l+1 | z_l), of z_0 = x; `priors[l]` is p(z_l | z_l+1), without that of the last layer."""

    def __init__(self, options: Layered, image: Shape, classes: int, initial_maps: Tensor) -> None:
        super().__init__()
        self.sizes = options.latent_sizes[::-1]
        hidden, pixels = options.hidden_features, math.prod(image)
        self.posteriors = nn.ModuleList(
            GaussianLayer(below, width, above, classes)
            for (below, above), width in zip(pairwise([pixels, *options.latent_sizes]), hidden, strict=True)
        )
        self.priors = nn.ModuleList(
            GaussianLayer(above, width, below, classes)
            for (below, above), width in zip(pairwise(options.latent_sizes), hidden[1:], strict=True)
        )
        self.recomputed_blocks = (GaussianLayer, PixelMaps)
        self.decoder = PixelMaps(
            options.latent_sizes[0], hidden[0], (len(initial_maps), *image[1:]), classes, initial_maps
        )

    def encode(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        """mu and log sigma of q(z_1 | x), [n, latents]. The network is given (x + 1) / 2, black as 0."""
        return self.posteriors[0]((x.flatten(1) + 1) / 2, labels)

    def draw(
        self, statistics: tuple[Tensor, ...], labels: Tensor | None, noise: Tensor, temperature: Tensor | None
    ) -> PosteriorDraw:
        epsilons = noise.split(self.sizes, dim=1)[::-1]
        latents: list[Tensor] = []
        log_q, (mu, log_sigma) = [], statistics
        for layer, epsilon in enumerate(epsilons):
            if layer:
                mu, log_sigma = self.posteriors[layer](self._own(latents[-1]), labels)
            latents.append(mu + log_sigma.exp() * epsilon)
            log_q.append(-epsilon.square() / 2 - log_sigma - math.log(2 * math.pi) / 2)
        log_p = [
            normal_log_density(z, *prior(self._own(above), labels))
            for z, above, prior in zip(latents, latents[1:], self.priors, strict=False)
        ]
        log_p.append(-latents[-1].square() / 2 - math.log(2 * math.pi) / 2)
        ratios = [q - p for q, p in zip(log_q, log_p, strict=True)]
        kl = [*ratios[:-1], kl_to_standard_normal(mu, log_sigma)]
        total = torch.stack([ratio.sum(1) for ratio in ratios]).sum(0)
        return PosteriorDraw(self.decoder(self._own(latents[0]), labels), tuple(kl[::-1]), total)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        z, *below = latents.split(self.sizes, dim=1)
        for epsilon, prior in zip(below, reversed(self.priors), strict=True):
            mu, log_sigma = prior(self._own(z), labels)
            z = mu + log_sigma.exp() * epsilon
        return self.decoder(self._own(z), labels)

    def centre(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The means of every layer, given that of the layer below."""
        means = [self.encode(x, labels)[0]]
        for posterior in self.posteriors[1:]:
            means.append(posterior(means[-1], labels)[0])
        numbers = [means[-1]]
        for z, above, prior in zip(means, means[1:], self.priors, strict=False):
            mu, log_sigma = prior(above, labels)
            numbers.insert(1, (z - mu) * (-log_sigma).exp())
        return torch.cat(numbers, 1)

    def initialise(self, x: Tensor, labels: Tensor | None, noise: Tensor, bias: Tensor | None) -> None:
        """The maps begin at the bias, with which the authors' begin (the logit of each pixel's mean)."""
        if bias is not None:
            self.decoder.output.bias.data.copy_(bias.flatten())

    def _own(self, z: Tensor) -> Tensor:
        return z.to(dtype_of(self))


class _Hidden(nn.Module):
    """Two layers of tanh, the first of which the class is added to."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.by_class = nn.Embedding(classes, width) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        features = self.first(x)
        if self.by_class is not None:
            assert labels is not None, "this network is told the class"
            features = features + self.by_class(labels)
        return self.second(features.tanh()).tanh()


class GaussianLayer(nn.Module):
    """The mean and the log deviation of latents, given those of a layer beside them, or an image."""

    def __init__(self, inputs: int, width: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.hidden = _Hidden(inputs, width, classes)
        self.mean, self.log_sigma = PreciseLinear(width, outputs), PreciseLinear(width, outputs)
        _begin_as_published(self)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        features = self.hidden(x, labels)
        return self.mean(features), self.log_sigma(features)


class PixelMaps(nn.Module):
    """The maps of p(x | z_1)."""

    def __init__(self, inputs: int, width: int, maps: Shape, classes: int, initial_maps: Tensor) -> None:
        super().__init__()
        self.maps = maps
        self.hidden = _Hidden(inputs, width, classes)
        self.output = PreciseLinear(width, math.prod(maps))
        _begin_as_published(self)
        self.output.bias = nn.Parameter(initial_maps.repeat_interleave(math.prod(maps[1:])))

    def forward(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.output(self.hidden(z, labels)).unflatten(1, self.maps)


def _begin_as_published(network: nn.Module) -> None:
    """Glorot & Bengio 2010, biases at zero, for the last layers too."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
