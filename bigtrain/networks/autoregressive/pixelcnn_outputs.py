"""What a PixelCNN predicts at one position: three kinds of distribution, their likelihoods and how to draw from them.

Every output works on the features of single positions: [..., features], with any leading dimensions. Its values are int64
[..., channels], with one channel for codes and for grey pixels, and three (R, G, B) for pixels in colour; pixels are in 0..255.
A draw applies the inverse distribution
function to uniforms that the caller gives, so that a sample depends on its own uniforms and on nothing else.

Likelihoods and draws are computed in at least float32, under autocast too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bigtrain.networks.layers.discretised import LEVELS, MixtureOfLogistics, as_numbers, draw_index, tempered
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast


@dataclass(frozen=True)
class Sampling:
    """How a distribution is sharpened before drawing from it: first temperature, then top_k, then top_p.

    `temperature` > 0 divides the logits. `top_k` keeps the k most likely values (and those that tie with the last of
    them). `top_p`, in (0, 1], keeps the smallest set of most likely values whose probabilities reach p together. Raises
    ValueError for anything else.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature is {self.temperature}; it must be above 0 (1 leaves the distribution as it is)"
            )
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}; keep at least 1 value, or give None for all")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1, or None for all")

    def sharpen(self, logits: Tensor) -> Tensor:
        """[..., values] -> the same shape, with -inf for what is excluded."""
        logits = tempered(logits, self.temperature)
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            logits = logits.masked_fill(logits < logits.topk(self.top_k).values[..., -1:], -math.inf)
        if self.top_p is not None and self.top_p < 1:
            descending, order = logits.sort(dim=-1, descending=True, stable=True)
            probabilities = descending.softmax(-1)
            before = probabilities.cumsum(-1) - probabilities
            excluded = before >= self.top_p
            excluded[..., 0] = False  # also if rounding would exclude it
            logits = logits.masked_fill(torch.empty_like(excluded).scatter_(-1, order, excluded), -math.inf)
        return logits


class Output(nn.Module):
    """One position's distribution over its values."""

    channels: int
    """Values at a position: 1 code, or the 1 or 3 channels of a pixel."""
    draws: int
    """Number of uniforms that one position needs."""
    width: int
    """Size of `embed`'s vectors."""

    def embed(self, values: Tensor) -> Tensor:
        """int64 [..., channels] -> [..., width], what the network reads of a position, in the weights' dtype."""
        raise NotImplementedError

    def logits(self, features: Tensor, values: Tensor) -> Tensor:
        """The parameters of the distribution, from features [..., f] and values [..., channels] (earlier channels only)."""
        raise NotImplementedError

    def log_probabilities(self, features: Tensor, values: Tensor) -> Tensor:
        """Nats [..., channels]: each channel's log probability given the features and the earlier channels."""
        raise NotImplementedError

    def draw(self, features: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
        """features [..., f] and uniforms [..., draws] in [0, 1) -> int64 [..., channels]."""
        raise NotImplementedError


def _small_linear(inputs: int, outputs: int) -> nn.Linear:
    """A last layer whose weights start near zero, so that the first loss is that of the distribution in its bias."""
    linear = nn.Linear(inputs, outputs)
    nn.init.normal_(linear.weight, std=0.01)
    nn.init.zeros_(linear.bias)
    return linear


def _exact(features: Tensor) -> Tensor:
    return features.to(statistics_dtype(features.dtype))


class CodeSoftmax(Output):
    """One code of K: relu, then a linear map to K logits [..., K]."""

    channels = 1
    draws = 1

    def __init__(self, features: int, codebook_size: int) -> None:
        super().__init__()
        self.width = features
        self.embedding = nn.Embedding(codebook_size, features)
        self.to_logits = _small_linear(features, codebook_size)

    def embed(self, values: Tensor) -> Tensor:
        return self.embedding(values[..., 0])

    def logits(self, features: Tensor, values: Tensor | None = None) -> Tensor:
        with without_autocast(features):
            return self.to_logits(_exact(features).relu())

    def log_probabilities(self, features: Tensor, values: Tensor) -> Tensor:
        return self.logits(features).log_softmax(-1).gather(-1, values)

    def draw(self, features: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
        return draw_index(sampling.sharpen(self.logits(features)), uniforms[..., 0]).unsqueeze(-1)


class PixelOutput(Output):
    """Outputs over pixels of 1 channel or of 3; the network reads each channel as a number in [-1, 1]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = self.width = channels

    def embed(self, values: Tensor) -> Tensor:
        return as_numbers(values, next(self.parameters()).dtype)


class PixelSoftmax(PixelOutput):
    """256 logits a channel, R, then G given R, then B given R and G: [..., channels, 256].

    van den Oord et al. 2016a (arXiv:1601.06759, section 3.3) split the features of every layer by colour. Here only this
    head reads the earlier channels of the same pixel: an embedding of each is added to the hidden features.
    """

    def __init__(self, features: int, channels: int) -> None:
        super().__init__(channels)
        self.features, self.draws = features, channels
        self.hidden = nn.Linear(features, channels * features)
        if channels == 3:
            self.green_given_red = nn.Embedding(LEVELS, features)
            self.blue_given_red = nn.Embedding(LEVELS, features)
            self.blue_given_green = nn.Embedding(LEVELS, features)
            for table in (self.green_given_red, self.blue_given_red, self.blue_given_green):
                nn.init.zeros_(table.weight)
        self.to_logits = nn.ModuleList([_small_linear(features, LEVELS) for _ in range(channels)])

    def _channel(self, channel: int, hidden: Tensor, values: Tensor) -> Tensor:
        """Logits [..., 256] of one channel, from its hidden features [..., f] and the values of those before it."""
        if channel == 1:
            hidden = hidden + self.green_given_red(values[..., 0])
        elif channel == 2:
            hidden = hidden + self.blue_given_red(values[..., 0]) + self.blue_given_green(values[..., 1])
        return self.to_logits[channel](hidden.relu())

    def _hidden(self, features: Tensor) -> tuple[Tensor, ...]:
        return self.hidden(_exact(features).relu()).split(self.features, dim=-1)

    def logits(self, features: Tensor, values: Tensor) -> Tensor:
        with without_autocast(features):
            hidden = self._hidden(features)
            by_channel = [self._channel(channel, hidden[channel], values) for channel in range(self.channels)]
            return torch.stack(by_channel, dim=-2)

    def log_probabilities(self, features: Tensor, values: Tensor) -> Tensor:
        return self.logits(features, values).log_softmax(-1).gather(-1, values.unsqueeze(-1)).squeeze(-1)

    def draw(self, features: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
        with without_autocast(features):
            hidden = self._hidden(features)
            values = torch.zeros(uniforms.shape, dtype=torch.int64, device=features.device)
            for channel in range(self.channels):
                logits = self._channel(channel, hidden[channel], values)
                values[..., channel] = draw_index(sampling.sharpen(logits), uniforms[..., channel])
            return values


class LogisticMixture(PixelOutput):
    """PixelCNN++'s discretised logistics, whose `logits` are as `MixtureOfLogistics` says."""

    def __init__(self, features: int, mixtures: int, channels: int) -> None:
        super().__init__(channels)
        self.draws = 1 + channels
        self.mixture = MixtureOfLogistics(channels, mixtures)
        self.to_logits = _small_linear(features, sum(self.mixture.parts) * mixtures)
        with torch.no_grad():
            self.to_logits.bias.copy_(self.mixture.initial_logits().flatten())

    def logits(self, features: Tensor, values: Tensor | None = None) -> Tensor:
        with without_autocast(features):
            return self.to_logits(_exact(features).relu()).unflatten(-1, (-1, self.mixture.mixtures))

    def log_probabilities(self, features: Tensor, values: Tensor) -> Tensor:
        return self.mixture.log_probabilities(self.logits(features), values)

    def draw(self, features: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
        """`temperature` divides the weights' logits and multiplies the scales. Raises ValueError for top_k and top_p."""
        if sampling.top_k is not None or sampling.top_p is not None:
            raise ValueError("top_k and top_p are for softmax outputs; with mixtures give only a temperature")
        return self.mixture.draw(self.logits(features), uniforms, sampling.temperature)
