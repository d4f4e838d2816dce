"""Distributions of latents that one encoder describes and one decoder is given: q(z | x) beside a prior that is fixed.

Gaussian (Kingma & Welling 2014, arXiv:1312.6114), and one of several categories each, which training relaxes (Jang et al. 2017,
arXiv:1611.01144; Maddison et al. 2017, arXiv:1611.00712).
"""

import math
from abc import abstractmethod
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from bigtrain.options import Options, Temperature, Weight, one_of


class LatentOptions(Options):
    """A distribution of `count` latents, which an encoder's `outputs` describe."""

    kind: str
    noise: ClassVar[Literal["normal", "gumbel"]]
    """The distribution of the noise that a draw is made from."""
    relaxed: ClassVar[bool] = False
    """Whether training draws something else than the model's latents, whose probability is not what a bound needs."""

    @abstractmethod
    def outputs(self, count: int) -> int:
        """Of an encoder, for so many latents."""

    @abstractmethod
    def inputs(self, count: int) -> int:
        """Of a decoder."""

    @abstractmethod
    def shape(self, count: int) -> tuple[int, ...]:
        """(latents, ...) of the numbers that describe them."""

    @abstractmethod
    def statistics(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Those of q(z | x), in at least the encoder's precision."""

    @abstractmethod
    def draw(
        self, statistics: tuple[Tensor, ...], noise: Tensor, temperature: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(what the decoder is given [n, inputs], the KL divergence of each latent [n, latents], log q(z|x) - log p(z) [n])."""

    @abstractmethod
    def decoded(self, latents: Tensor) -> Tensor:
        """What the decoder is given, of latents [n, numbers] that are standard normal under the prior."""

    @abstractmethod
    def centre(self, statistics: tuple[Tensor, ...]) -> Tensor:
        """The latents [n, numbers] that q(z | x) is around."""

    def temperature_at(self, step: Tensor) -> Tensor | None:
        """Of relaxed latents at a step (int64 []), []; None where they are not relaxed."""
        return None


class GaussianLatents(LatentOptions):
    """q(z | x) = N(mu, diag sigma^2), p(z) = N(0, I)."""

    kind: Literal["gaussian"] = "gaussian"
    noise = "normal"

    def outputs(self, count: int) -> int:
        return 2 * count

    def inputs(self, count: int) -> int:
        return count

    def shape(self, count: int) -> tuple[int, ...]:
        return (count,)

    def statistics(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """mu and log sigma."""
        mu, log_sigma = outputs.chunk(2, dim=1)
        return mu, log_sigma

    def draw(
        self, statistics: tuple[Tensor, ...], noise: Tensor, temperature: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """z = mu + sigma epsilon (section 2.4)."""
        mu, log_sigma = statistics
        z = mu + log_sigma.exp() * noise
        log_ratio = (z.square() - noise.square()) / 2 - log_sigma
        return z, kl_to_standard_normal(mu, log_sigma), log_ratio.sum(1)

    def decoded(self, latents: Tensor) -> Tensor:
        return latents

    def centre(self, statistics: tuple[Tensor, ...]) -> Tensor:
        return statistics[0]


class ConcreteLatents(LatentOptions):
    """Each latent is one of several categories, uniform under the prior.

    Training relaxes the draw to softmax((log q + g) / temperature), with g Gumbel noise, and takes the KL divergence from the
    logits: that of the categories, which the relaxed draw does not change. Everything else has one category a latent. The
    numbers that describe them are a score for each category, of which the largest counts.
    """

    kind: Literal["concrete"]
    categories: int = Field(default=10, ge=2, le=2**16)
    """Of each latent."""
    temperature: Temperature = 1.0
    """At step 0."""
    least_temperature: Temperature = 0.5
    """What the temperature falls to."""
    annealing: Weight = 3.0e-5
    """Rate r of its fall: max(least_temperature, temperature e^(-r step))."""
    noise = "gumbel"
    relaxed = True

    @model_validator(mode="after")
    def _falls(self) -> "ConcreteLatents":
        if self.least_temperature > self.temperature:
            raise ValueError("least_temperature must be at most temperature")
        return self

    def outputs(self, count: int) -> int:
        return count * self.categories

    def inputs(self, count: int) -> int:
        return count * self.categories

    def shape(self, count: int) -> tuple[int, ...]:
        return (count, self.categories)

    def statistics(self, outputs: Tensor) -> tuple[Tensor]:
        """log q [n, latents, categories]."""
        return (self._by_latent(outputs).log_softmax(-1),)

    def draw(
        self, statistics: tuple[Tensor, ...], noise: Tensor, temperature: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        (log_q,) = statistics
        kl = (log_q.exp() * (log_q + math.log(self.categories))).sum(-1)
        scores = log_q + self._by_latent(noise)
        z = self._one_of(scores) if temperature is None else (scores / temperature).softmax(-1)
        log_ratio = (z * log_q).sum((1, 2)) + log_q.shape[1] * math.log(self.categories)
        return z.flatten(1), kl, log_ratio

    def decoded(self, latents: Tensor) -> Tensor:
        return self._one_of(self._by_latent(latents)).flatten(1)

    def centre(self, statistics: tuple[Tensor, ...]) -> Tensor:
        return statistics[0].flatten(1)

    def temperature_at(self, step: Tensor) -> Tensor:
        fallen = self.temperature * torch.exp(-self.annealing * step.to(torch.get_default_dtype()))
        return fallen.clamp_min(self.least_temperature)

    def _by_latent(self, numbers: Tensor) -> Tensor:
        return numbers.unflatten(1, (-1, self.categories))

    def _one_of(self, scores: Tensor) -> Tensor:
        return F.one_hot(scores.argmax(-1), self.categories).to(scores.dtype)


AnyLatents: Any = one_of(GaussianLatents, ConcreteLatents)


def kl_to_standard_normal(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(N(mu, sigma^2) || N(0, 1)) = (mu^2 + sigma^2 - 1) / 2 - log sigma, elementwise (Kingma & Welling 2014, appendix B)."""
    return (mu.square() + (2 * log_sigma).exp() - 1) / 2 - log_sigma


def normal_log_density(z: Tensor, mu: Tensor, log_sigma: Tensor) -> Tensor:
    """log N(z; mu, sigma^2), elementwise."""
    return -((z - mu) * (-log_sigma).exp()).square() / 2 - log_sigma - math.log(2 * math.pi) / 2
