"""Distributions of pixels: each is one, to rounding, and is exact where published codes approximate it."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import logistic, norm
from torch import Tensor

from bigtrain.networks.layers.discretised import (
    SMALLEST_LOG_SCALE,
    MixtureOfLogistics,
    as_numbers,
    as_values,
    logistic_log_probability,
    normal_log_probability,
)

BINS = {"normal": (normal_log_probability, norm), "logistic": (logistic_log_probability, logistic)}
each_kind = pytest.mark.parametrize(("log_probability", "exact"), BINS.values(), ids=BINS)
ALL = as_numbers(torch.arange(256), torch.float64)


def float64(*numbers: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(number, dtype=torch.float64) for number in numbers)


def test_numbers_and_values_are_each_others_inverse() -> None:
    values = torch.arange(256)
    assert as_numbers(values, torch.float32)[[0, 255]].tolist() == [-1, 1]
    assert torch.equal(as_values(as_numbers(values, torch.float32)), values)
    assert as_values(torch.tensor([-3.0, 7.0])).tolist() == [0, 255]


def test_fewer_levels_have_black_and_white_too() -> None:
    assert as_numbers(torch.arange(4), torch.float64, 4).tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1])
    assert torch.equal(as_values(as_numbers(torch.arange(32), torch.float32, 32), 32), torch.arange(32))
    assert as_values(torch.tensor([-3.0, 0.1, 7.0]), 2).tolist() == [0, 1, 1]


@each_kind
@pytest.mark.parametrize("scale", [0.0011, 0.02, 1.0, 30.0])
@pytest.mark.parametrize("mean", [-1.3, -1.0, -0.996, 0.0, 0.4, 0.996, 1.0])
@pytest.mark.parametrize("levels", [256, 32, 2])
def test_the_probabilities_of_all_values_sum_to_one(
    log_probability, exact, levels: int, mean: float, scale: float
) -> None:
    numbers = as_numbers(torch.arange(levels), torch.float64, levels)
    total = log_probability(numbers, *float64(mean, math.log(scale)), levels).exp().sum()
    assert float(total) == pytest.approx(1, abs=1e-9)


@each_kind
def test_a_bin_of_few_levels_holds_those_of_more_that_lie_in_it(log_probability, exact) -> None:
    """The edges of 4 levels, -2/3, 0 and 2/3, are edges of 10 levels too."""
    coarse, fine = (
        log_probability(as_numbers(torch.arange(n), torch.float64, n), *float64(0.2, -2.0), n).exp() for n in (4, 10)
    )
    torch.testing.assert_close(coarse[0], fine[:2].sum())
    torch.testing.assert_close(coarse[1], fine[2:5].sum())


@each_kind
def test_a_bins_probability_is_the_difference_of_the_distribution_function(log_probability, exact) -> None:
    found = log_probability(ALL, *float64(0.3, math.log(0.1))).exp()
    edges = np.concatenate([[-np.inf], (ALL[1:].numpy() + ALL[:-1].numpy()) / 2, [np.inf]])
    expected = np.diff(exact.cdf(edges, 0.3, 0.1))
    torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-9, atol=1e-12)


@each_kind
def test_it_is_exact_far_into_the_tails(log_probability, exact) -> None:
    """Where published codes stop at log 1e-12, and so would call a bound what is none."""
    scale = 0.002
    level = round(1.5 * 127.5) / 127.5 - 1
    lower, upper = (level - 1 / 255) / scale, (level + 1 / 255) / scale
    expected = np.log1p(-np.exp(exact.logsf(upper) - exact.logsf(lower))) + exact.logsf(lower)
    for sign in (1, -1):
        found = log_probability(*float64(sign * level, 0.0, math.log(scale)))
        assert float(found) == pytest.approx(expected, rel=1e-9)
        assert found < -200


@each_kind
def test_the_gradient_is_finite_even_where_it_is_not_selected(log_probability, exact) -> None:
    mean = torch.tensor([[-1e4], [0.0], [1e4]], requires_grad=True)
    log_scale = torch.tensor([-6.0, 0.0, 6.0], requires_grad=True)
    sum(log_probability(torch.tensor(x), mean, log_scale).sum() for x in (-1.0, 0.0, 1.0)).backward()
    assert mean.grad.isfinite().all()
    assert log_scale.grad.isfinite().all()


def test_a_logistic_is_never_narrower_than_the_smallest_scale() -> None:
    narrow, narrowest = (logistic_log_probability(ALL, *float64(0.1, s)) for s in (-50.0, SMALLEST_LOG_SCALE))
    assert torch.equal(narrow, narrowest)


# ---------------------------------------------------------------------------------------------------------- mixtures


def some_logits(channels: int, n: int = 1, mixtures: int = 3) -> tuple[MixtureOfLogistics, Tensor]:
    mixture = MixtureOfLogistics(channels, mixtures)
    generator = torch.Generator().manual_seed(0)
    return mixture, torch.randn(n, sum(mixture.parts), mixtures, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0], ids=["near black", "between", "near white"])
def test_the_mixtures_256_probabilities_sum_to_one(shift: float) -> None:
    mixture, logits = some_logits(1)
    logits[:, 1] += shift
    nats = mixture.log_probabilities(logits.expand(256, -1, -1), torch.arange(256).unsqueeze(1))
    assert float(nats.exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_channels_of_a_colour_sum_to_one_each_given_the_earlier_ones() -> None:
    mixture, logits = some_logits(3)
    for channel in range(3):
        values = torch.tensor([[200, 30, 90]]).repeat(256, 1)
        values[:, channel] = torch.arange(256)
        nats = mixture.log_probabilities(logits.expand(256, -1, -1), values)
        assert float(nats[:, channel].exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_initial_mixture_is_about_uniform() -> None:
    mixture = MixtureOfLogistics(1, 5)
    logits = mixture.initial_logits()
    nats = mixture.log_probabilities(logits.expand(256, -1, -1), torch.arange(256).unsqueeze(1))
    assert (nats + math.log(256)).abs().mean() < 1


@pytest.mark.parametrize("channels", [1, 3])
def test_the_mixtures_mean_is_that_of_its_draws(channels: int) -> None:
    """Where components lie inside the range."""
    draws = 20_000
    mixture, logits = some_logits(channels)
    weights, means, log_scales, coefficients = logits.split(mixture.parts, dim=-2)
    logits = torch.cat([weights, means.tanh() / 3, log_scales - 4, coefficients], dim=-2)
    uniforms = torch.rand(draws, 1 + channels, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = as_numbers(mixture.draw(logits.expand(draws, -1, -1), uniforms), torch.float64)
    error = (drawn.mean(0) - mixture.mean(logits)[0]).abs() / (drawn.std(0) / draws**0.5)
    assert error.max() < 4


def test_the_mixtures_mean_stays_in_the_range() -> None:
    mixture, logits = some_logits(3)
    assert mixture.mean(100 * logits).abs().max() <= 1
