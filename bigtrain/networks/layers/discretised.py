"""Distributions of pixels of a few bits: continuous ones, whose mass is collected in as many bins as there are levels, 2^bits.

With 256 levels the value v of 0 .. 255 is the number x = v / 127.5 - 1 in [-1, 1]. Its probability is the difference of the
distribution function over the bin x -+ 1/255; the bins of 0 and 255 include the tails. So the 256 probabilities sum to one, at
every scale and near black and white too, and a negative log probability is a code length in nats. With fewer levels the bins
are wider: the first value is -1 and the last 1 in any case.

Everything is computed in at least float32. Draws apply the inverse distribution function to uniforms that the caller gives, so
that a sample depends on its own uniforms and on nothing else.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LEVELS = 256
"""Values of a pixel's channel."""

SMALLEST_LOG_SCALE = -7.0
"""Smallest log scale of a logistic (PixelCNN++): e^-7 is a ninth of the distance between two values of a pixel."""


def as_numbers(values: Tensor, dtype: torch.dtype, levels: int = LEVELS) -> Tensor:
    """0 .. levels - 1 -> [-1, 1]."""
    return values.to(dtype) / ((levels - 1) / 2) - 1


def as_values(numbers: Tensor, levels: int = LEVELS) -> Tensor:
    """The nearest values, int64; numbers outside of [-1, 1] become the first and the last."""
    return ((numbers.clamp(-1, 1) + 1) * ((levels - 1) / 2)).round().to(torch.int64)


def draw_index(logits: Tensor, uniforms: Tensor) -> Tensor:
    """The smallest index whose distribution function exceeds u: [..., values] and [...] in [0, 1) -> int64 [...].

    In float64, and u * total is kept below total, so that no index of probability 0 can be drawn by rounding.
    """
    distribution = logits.softmax(-1).cumsum(-1, dtype=torch.float64)
    total = distribution[..., -1:]
    target = torch.minimum(uniforms.unsqueeze(-1) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(distribution, target, right=True).squeeze(-1)


def tempered(logits: Tensor, temperature: float) -> Tensor:
    """Logits [..., values] divided by `temperature` > 0. The largest becomes 0, so that a low one cannot overflow."""
    return logits if temperature == 1 else (logits - logits.amax(-1, keepdim=True)) / temperature


def normal_log_probability(x: Tensor, mean: Tensor, log_deviation: Tensor, levels: int = LEVELS) -> Tensor:
    """The log probability of the number x under a normal distribution in bins (Ho et al. 2020, eq. 13). Elementwise, in the
    dtype of `mean`.

    Exact. The code of DDPM and iDDPM approximates the distribution function and clamps the probability from below; with that,
    a variational bound would no longer be a bound.
    """
    # In float64, because the gradient of log_ndtr is the exponential of a difference of squares: far out in the tail float32
    # has no correct digit of it, and at last no finite value. That would reach the weights even where a caller computes the
    # result and does not use it.
    centred, precision = x.double() - mean.double(), (-log_deviation.double()).exp()
    half = 1 / (levels - 1)
    lower, upper = (centred - half) * precision, (centred + half) * precision
    # By symmetry every interval is mirrored into the lower tail, where the logarithms keep their digits.
    mirrored = lower + upper > 0
    below, above = torch.where(mirrored, -upper, lower), torch.where(mirrored, -lower, upper)
    log_above = torch.special.log_ndtr(above)
    # Both ends may round to the same probability; the gradient of log 0 would be NaN.
    ratio = (torch.special.log_ndtr(below) - log_above).clamp(max=-1e-300)
    between = log_above + torch.log(-torch.expm1(ratio))
    first, last = torch.special.log_ndtr(upper), torch.special.log_ndtr(-lower)
    return _with_tails(x, first, between, last, levels).to(mean.dtype)


def logistic_log_probability(x: Tensor, mean: Tensor, log_scale: Tensor, levels: int = LEVELS) -> Tensor:
    """The same under a logistic distribution (Salimans et al. 2017, section 2.1), whose log scale is at least
    SMALLEST_LOG_SCALE.

    Exact, unlike the published code, at every scale: sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - e^(b - a)).
    """
    inverse_scale = (-log_scale.clamp_min(SMALLEST_LOG_SCALE)).exp()
    half = 1 / (levels - 1)
    upper = (x - mean + half) * inverse_scale
    lower = (x - mean - half) * inverse_scale
    to_the_left, to_the_right = F.logsigmoid(upper), F.logsigmoid(-lower)
    between = to_the_left + to_the_right + (-torch.expm1(-2 * half * inverse_scale)).log()
    return _with_tails(x, to_the_left, between, to_the_right, levels)


def _with_tails(x: Tensor, first: Tensor, between: Tensor, last: Tensor, levels: int) -> Tensor:
    edge = 1 - 1 / (levels - 1)  # only the first and the last number are further from 0
    return torch.where(x < -edge, first, torch.where(x > edge, last, between))


@dataclass(frozen=True)
class MixtureOfLogistics:
    """PixelCNN++'s distribution of a pixel of 1 or 3 channels (Salimans et al. 2017, arXiv:1701.05517, sections 2.1 and 2.2).

    One component is drawn for the whole pixel; in it R, G, B are logistic, rounded to `levels`, and the means of G and B are
    linear in the earlier channels: mu_G + alpha R, mu_B + beta R + gamma G, with numbers in [-1, 1] and coefficients in
    (-1, 1). Its `logits` are [..., 10, mixtures]: weights, 3 means, 3 log scales, 3 coefficients before their tanh. With one
    channel [..., 3, mixtures]: weights, means, log scales.
    """

    channels: int
    mixtures: int
    levels: int = LEVELS

    @property
    def parts(self) -> list[int]:
        """Rows of the logits: weights, means, log scales, coefficients."""
        return [1, self.channels, self.channels, self.channels * (self.channels - 1) // 2]

    def initial_logits(self) -> Tensor:
        """[rows, mixtures]: broad components, evenly spaced over the values, whose nats are within about one of log `levels`
        per channel."""
        logits = torch.zeros(sum(self.parts), self.mixtures)
        _, means, log_scales, _ = logits.split(self.parts)
        means[:] = torch.linspace(-1, 1, 2 * self.mixtures + 1)[1::2]
        log_scales[:] = -1.0
        return logits

    def log_probabilities(self, logits: Tensor, values: Tensor) -> Tensor:
        """Nats [..., channels]: each channel's log probability given the earlier channels, of values int64 [..., channels]."""
        weights, means, log_scales, coefficients = logits.split(self.parts, dim=-2)
        numbers = as_numbers(values, logits.dtype, self.levels)
        earlier = numbers.unsqueeze(-2)
        by_channel = [self._mean(means, coefficients, earlier, channel) for channel in range(self.channels)]
        mean = torch.stack(by_channel, dim=-2)
        by_component = logistic_log_probability(numbers.unsqueeze(-1), mean, log_scales, self.levels)
        # log p(R), log p(R, G), log p(R, G, B), each summed over the components; their differences are conditional.
        joint = (weights.log_softmax(-1) + by_component.cumsum(-2)).logsumexp(-1)
        return joint - F.pad(joint[..., :-1], (1, 0))

    def mean(self, logits: Tensor) -> Tensor:
        """[..., channels] in [-1, 1]: the mean of the components' means, each kept in the range."""
        weights, means, _, coefficients = logits.split(self.parts, dim=-2)
        numbers = torch.zeros_like(means).movedim(-1, -2)
        for channel in range(self.channels):
            numbers[..., channel] = self._mean(means, coefficients, numbers, channel).clamp(-1, 1)
        return (weights.softmax(-1).movedim(-1, -2) * numbers).sum(-2)

    def draw(self, logits: Tensor, uniforms: Tensor, temperature: float = 1.0) -> Tensor:
        """Values int64 [..., channels] from uniforms [..., 1 + channels] in [0, 1). `temperature` divides the logits of the
        weights and multiplies the scales."""
        component = draw_index(tempered(logits[..., 0, :], temperature), uniforms[..., 0])
        chosen = component[..., None, None].expand(*component.shape, sum(self.parts), 1)
        _, means, log_scales, coefficients = logits.gather(-1, chosen).split(self.parts, dim=-2)
        scales = log_scales.clamp_min(SMALLEST_LOG_SCALE).exp() * temperature
        noise = scales[..., 0] * torch.logit(uniforms[..., 1:]).to(scales.dtype)
        values = torch.zeros_like(uniforms[..., 1:], dtype=torch.int64)
        for channel in range(self.channels):
            earlier = as_numbers(values, scales.dtype, self.levels).unsqueeze(-2)
            mean = self._mean(means, coefficients, earlier, channel)[..., 0]
            values[..., channel] = as_values(mean + noise[..., channel], self.levels)
        return values

    @staticmethod
    def _mean(means: Tensor, coefficients: Tensor, numbers: Tensor, channel: int) -> Tensor:
        """The components' means [..., mixtures] of one channel, given the earlier channels' numbers in [-1, 1]: [..., mixtures,
        channels], or [..., 1, channels] where they are the same in all components."""
        mean = means[..., channel, :]
        for earlier in range(channel):
            # The coefficients in the published order: G on R, B on R, B on G.
            mean = mean + coefficients[..., channel - 1 + earlier, :].tanh() * numbers[..., earlier]
        return mean
