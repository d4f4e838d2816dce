"""Likelihoods of images, given the maps that a decoder makes: p(x | maps), a product over pixels.

Images are x [n, C, h, w] of the 256 numbers in [-1, 1]; maps are [n, maps, h, w]. Each gives probabilities of the values of
pixels (networks/layers/discretised.py), so that bits per dimension may be compared, between them and with other models of as
many bits; only `bernoulli` does not. The Gaussian too is rounded to bins: its density at a pixel, which a squared error is the
logarithm of, is not a probability and may be above one.

Computed in at least float32, whatever autocast says.
"""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.networks.layers.discretised import (
    SMALLEST_LOG_SCALE,
    MixtureOfLogistics,
    as_numbers,
    as_values,
    logistic_log_probability,
    normal_log_probability,
)
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.options import Depth, Options, one_of
from bigtrain.randomness import Draws, Indices

Of = Callable[..., Tensor]


def _exact(method: Of) -> Of:
    """The method, given its maps in at least float32 and without autocast."""

    @wraps(method)
    def computed(self: "PixelLikelihood", maps: Tensor, *others: Tensor) -> Tensor:
        with without_autocast(maps):
            return method(self, maps.to(statistics_dtype(maps.dtype)), *others)

    return computed


class PixelLikelihood(Options):
    """A family of distributions of images."""

    kind: str

    @abstractmethod
    def maps(self, channels: int) -> int:
        """The number of maps that describe images of so many channels."""

    def initial_maps(self, channels: int) -> Tensor:
        """[maps]: what a decoder's maps begin as, the same at every pixel."""
        return torch.zeros(self.maps(channels))

    def uniforms(self, channels: int) -> int:
        """The number of uniforms that a draw of one pixel takes."""
        return channels

    @abstractmethod
    def log_probability(self, maps: Tensor, images: Tensor) -> Tensor:
        """Nats [n, C, h, w] of each value; their sum over an image is its log likelihood."""

    @abstractmethod
    def mean(self, maps: Tensor) -> Tensor:
        """The image that the distribution is around, [n, C, h, w] in [-1, 1]: its mean, but for what wide tails beyond black
        and white take from it or add."""

    @abstractmethod
    def draw(self, maps: Tensor, uniforms: Tensor) -> Tensor:
        """Images [n, C, h, w] from uniforms in [0, 1), float64 [n, `uniforms`, h, w]."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """How many values of a channel have probabilities."""

    @property
    def why_no_likelihood(self) -> str | None:
        """Why these are no probabilities of images, and what to do, as a message for the user; None if they are."""
        return None

    def check_images(self, images: Tensor) -> None:
        """Raises UserError for images that this is no likelihood of; may wait for the device."""

    def seen(self, images: Tensor, draws: Draws, indices: Indices) -> Tensor:
        """The images that are modelled; `indices` number those that are given."""
        return images

    @property
    def seen_draws(self) -> bool:
        """Whether `seen` draws anything that another seed draws otherwise."""
        return False

    def facts(self) -> dict[str, Any]:
        """What a likelihood's protocol says of the images that are modelled: bits of a value, and what else there is."""
        return {"bits": int(math.log2(self.levels))}

    def maps_of_mean(self, mean: Tensor) -> Tensor | None:
        """The maps [maps, h, w] that are right for images of this mean [C, h, w], where they depend on nothing else."""
        return None


class Discretised(PixelLikelihood):
    """Of images whose 8-bit values v are seen as floor(v / 2^(8 - bits)), one of 2^bits levels."""

    bits: int = Field(default=8, ge=1, le=8)
    """Bits of a value that count, the highest; bits/dim of different numbers of bits do not compare."""

    @property
    def levels(self) -> int:
        return 2**self.bits

    def _values(self, images: Tensor) -> Tensor:
        """int64 in 0 .. levels - 1."""
        return as_values(images) >> (8 - self.bits)


class DiscretisedLogistic(Discretised):
    """A mixture of logistics, rounded (Salimans et al. 2017, PixelCNN++): three maps for each component of a grey image, ten
    for each of one in colour, whose channels depend on each other."""

    kind: Literal["discretised_logistic"] = "discretised_logistic"
    mixtures: Depth = 10
    """Components."""

    def maps(self, channels: int) -> int:
        return sum(self._mixture(channels).parts) * self.mixtures

    def initial_maps(self, channels: int) -> Tensor:
        return self._mixture(channels).initial_logits().flatten()

    def uniforms(self, channels: int) -> int:
        return 1 + channels

    @_exact
    def log_probability(self, maps: Tensor, images: Tensor) -> Tensor:
        mixture = self._mixture(images.shape[1])
        values = self._values(images.movedim(1, -1))
        return mixture.log_probabilities(self._logits(maps), values).movedim(-1, 1)

    @_exact
    def mean(self, maps: Tensor) -> Tensor:
        channels = 1 if maps.shape[1] == self.maps(1) else 3
        return self._mixture(channels).mean(self._logits(maps)).movedim(-1, 1)

    @_exact
    def draw(self, maps: Tensor, uniforms: Tensor) -> Tensor:
        mixture = self._mixture(uniforms.shape[1] - 1)
        values = mixture.draw(self._logits(maps), uniforms.movedim(1, -1))
        return as_numbers(values, maps.dtype, self.levels).movedim(-1, 1)

    def _mixture(self, channels: int) -> MixtureOfLogistics:
        return MixtureOfLogistics(channels, self.mixtures, self.levels)

    def _logits(self, maps: Tensor) -> Tensor:
        """[n, rows x mixtures, h, w] -> [n, h, w, rows, mixtures]."""
        return maps.movedim(1, -1).unflatten(-1, (-1, self.mixtures))


class Gaussian(Discretised):
    """A normal distribution, rounded: a map of means for each channel and, where it is learned, one of log sigma."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: float | None = Field(default=None, ge=1e-4, le=1e4)
    """Standard deviation of pixels in [-1, 1], everywhere the same (a squared error is divided by 2 sigma^2); null: learned,
    for every pixel."""

    def maps(self, channels: int) -> int:
        return channels if self.sigma is not None else 2 * channels

    @_exact
    def log_probability(self, maps: Tensor, images: Tensor) -> Tensor:
        x = as_numbers(self._values(images), maps.dtype, self.levels)
        return normal_log_probability(x, *self._mu_and_log_sigma(maps), self.levels)

    @_exact
    def mean(self, maps: Tensor) -> Tensor:
        return self._mu_and_log_sigma(maps)[0].clamp(-1, 1)

    @_exact
    def draw(self, maps: Tensor, uniforms: Tensor) -> Tensor:
        mu, log_sigma = self._mu_and_log_sigma(maps)
        values = as_values(mu + log_sigma.exp() * torch.special.ndtri(uniforms), self.levels)
        return as_numbers(values, maps.dtype, self.levels)

    def _mu_and_log_sigma(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """[n, C, h, w] each. A learned log sigma is at least that of the narrowest logistic."""
        if self.sigma is not None:
            return maps, torch.full_like(maps, math.log(self.sigma))
        mu, log_sigma = maps.chunk(2, dim=1)
        return mu, log_sigma.clamp_min(SMALLEST_LOG_SCALE)


class Logistic(Discretised):
    """A logistic, rounded (Kingma et al. 2016, arXiv:1606.04934, appendix C): a map of means for each channel, and one of the
    log scale that all channels share."""

    kind: Literal["logistic"]

    def maps(self, channels: int) -> int:
        return channels + 1

    def initial_maps(self, channels: int) -> Tensor:
        """Broad, around grey."""
        return torch.tensor([0.0] * channels + [-1.0])

    @_exact
    def log_probability(self, maps: Tensor, images: Tensor) -> Tensor:
        x = as_numbers(self._values(images), maps.dtype, self.levels)
        return logistic_log_probability(x, maps[:, :-1], maps[:, -1:].expand_as(x), self.levels)

    @_exact
    def mean(self, maps: Tensor) -> Tensor:
        return maps[:, :-1].clamp(-1, 1)

    @_exact
    def draw(self, maps: Tensor, uniforms: Tensor) -> Tensor:
        scale = maps[:, -1:].clamp_min(SMALLEST_LOG_SCALE).exp()
        values = as_values(maps[:, :-1] + scale * torch.logit(uniforms).to(maps.dtype), self.levels)
        return as_numbers(values, maps.dtype, self.levels)


class Bernoulli(PixelLikelihood):
    """Black or white: a map of the logits of white for each channel, as in textbooks.

    Of a grey pixel, (1 + x) / 2 white, it gives the cross-entropy, with which autoencoders are trained but which is the
    probability of nothing. So bits per dimension are measured only of pixels that are black or white, or are made so.
    """

    kind: Literal["bernoulli"] = "bernoulli"
    black_and_white: bool = False
    """Whether all pixels are black or white."""
    binarise: Literal["static", "per_step"] | None = None
    """Makes a grey pixel white with probability (1 + x) / 2: static: an image always in the same way, which depends on its
    pixels alone; per_step: anew whenever it is looked at, and in an evaluation by its number in the split; null: not."""

    @model_validator(mode="after")
    def _black_and_white_is_one_or_the_other(self) -> "Bernoulli":
        if self.black_and_white and self.binarise is not None:
            raise ValueError(
                "binarise: is for grey images, and black_and_white says that there are none; leave one of them out"
            )
        return self

    def maps(self, channels: int) -> int:
        return channels

    @property
    def levels(self) -> int:
        return 2

    @_exact
    def log_probability(self, maps: Tensor, images: Tensor) -> Tensor:
        return -F.binary_cross_entropy_with_logits(maps, (images.to(maps.dtype) + 1) / 2, reduction="none")

    @_exact
    def mean(self, maps: Tensor) -> Tensor:
        return 2 * maps.sigmoid() - 1

    @_exact
    def draw(self, maps: Tensor, uniforms: Tensor) -> Tensor:
        return 2 * (uniforms < maps.sigmoid()).to(maps.dtype) - 1

    @property
    def why_no_likelihood(self) -> str | None:
        if self.black_and_white or self.binarise is not None:
            return None
        return (
            "family.likelihood: bernoulli gives no probabilities of grey pixels; take kind: discretised_logistic or gaussian, "
            "or binarise: static, or, if the images are black and white, black_and_white: true"
        )

    def seen(self, images: Tensor, draws: Draws, indices: Indices) -> Tensor:
        if self.binarise is None:
            return images
        of, numbers = (draws.fixed, contents_of(images)) if self.binarise == "static" else (draws, indices)
        uniforms = of.uniform("pixels/binarise", numbers, tuple(images.shape[1:]))
        return 2 * (uniforms < (images.double() + 1) / 2).to(images.dtype) - 1

    @property
    def seen_draws(self) -> bool:
        return self.binarise == "per_step"

    def facts(self) -> dict[str, Any]:
        return super().facts() | ({} if self.binarise is None else {"binarise": self.binarise})

    def maps_of_mean(self, mean: Tensor) -> Tensor:
        return torch.logit(((mean + 1) / 2).clamp(0.001, 0.999))

    def check_images(self, images: Tensor) -> None:
        if bool((images.abs() < 1).any()):
            raise UserError(
                "family.likelihood.black_and_white: there are pixels that are neither; threshold the images, or set it to false"
            )


def contents_of(images: Tensor) -> Tensor:
    """A number of each image [n, ...] that depends on its 8-bit values alone: int64 [n], the same on every device. Two images
    that differ in one pixel have different numbers, and any two others but by a chance of 2^-63."""
    values = as_values(images.flatten(1)) + 1
    places = torch.arange(1, values.shape[1] + 1, device=images.device)
    # Products of odd numbers, as in splitmix64; integers wrap around, so their sum is the same in any order.
    mixed = places * -7046029254386353131
    mixed = (mixed ^ (mixed >> 29)) * -4658895280553007687
    return (values * (mixed | 1)).sum(1) & (2**63 - 1)


AnyPixelLikelihood: Any = one_of(DiscretisedLogistic, Gaussian, Logistic, Bernoulli)
