"""Likelihoods of pixels: probabilities that sum to one, draws that follow them, and a cross-entropy that is none."""

import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.networks.layers.discretised import as_numbers
from bigtrain.objectives.distributions import AnyPixelLikelihood, DiscretisedLogistic, PixelLikelihood, contents_of

UNION = TypeAdapter(AnyPixelLikelihood)
DISCRETISED: dict[str, Any] = {
    "gaussian, learned": {"kind": "gaussian"},
    "gaussian, fixed": {"kind": "gaussian", "sigma": 0.1},
    "logistic": {"kind": "discretised_logistic", "mixtures": 1},
    "logistics": {"kind": "discretised_logistic", "mixtures": 5},
    "logistic, one scale": {"kind": "logistic"},
}
KINDS = {**DISCRETISED, "bernoulli": {"kind": "bernoulli"}}
each_discretised = pytest.mark.parametrize("given", DISCRETISED.values(), ids=DISCRETISED)
each_kind = pytest.mark.parametrize("given", KINDS.values(), ids=KINDS)


def some_maps(pixels: PixelLikelihood, channels: int, n: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, pixels.maps(channels), 2, 3, generator=generator, dtype=dtype)


@each_discretised
@pytest.mark.parametrize("shift", [-1.5, -1.0, 0.0, 1.0, 1.5], ids="mean {}".format)
@pytest.mark.parametrize("bits", [8, 5, 1])
def test_the_probabilities_of_all_values_sum_to_one(given: dict, bits: int, shift: float) -> None:
    """Near black and white too, where codes that forget the tails or the edges have 0.2 to 1.8."""
    pixels = UNION.validate_python(given | {"bits": bits})
    maps = some_maps(pixels, channels=1)
    rows = maps.unflatten(1, (-1, getattr(pixels, "mixtures", 1)))
    rows[:, 1 if given["kind"] == "discretised_logistic" else 0] += shift  # the means
    values = torch.arange(0, 256, 2 ** (8 - bits))
    assert len(values) == pixels.levels
    images = as_numbers(values, torch.float32).view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    total = pixels.log_probability(maps.expand(len(values), -1, -1, -1), images).exp().sum(0)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=1e-6)


@each_discretised
def test_of_five_bits_eight_neighbouring_values_are_one(given: dict) -> None:
    pixels = UNION.validate_python(given | {"bits": 5})
    maps = some_maps(pixels, channels=1).expand(256, -1, -1, -1)
    images = as_numbers(torch.arange(256), torch.float32).view(256, 1, 1, 1).expand(256, 1, 2, 3)
    found = pixels.log_probability(maps, images).unflatten(0, (32, 8))
    assert torch.equal(found, found[:, :1].expand_as(found))
    assert (found[1:, 0] != found[:-1, 0]).all()


def test_of_eight_bits_no_value_is_taken_for_its_neighbour() -> None:
    gaussian = UNION.validate_python({"kind": "gaussian"})
    images = as_numbers(torch.arange(256), torch.float32).view(1, 1, 16, 16)
    assert gaussian._values(images).flatten().tolist() == list(range(256))


@each_kind
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_and_ranges(given: dict, channels: int) -> None:
    pixels = UNION.validate_python(given)
    maps = some_maps(pixels, channels, n=2, dtype=torch.float32)
    uniforms = torch.rand(2, pixels.uniforms(channels), 2, 3, dtype=torch.float64)
    drawn = pixels.draw(maps, uniforms)
    for images in (pixels.mean(maps), drawn, pixels.log_probability(maps, drawn)):
        assert images.shape == (2, channels, 2, 3)
        assert images.dtype == torch.float32
    assert max(pixels.mean(maps).abs().max(), drawn.abs().max()) <= 1
    assert pixels.initial_maps(channels).shape == (pixels.maps(channels),)


@pytest.mark.parametrize(
    "given", [*KINDS.values(), {"mixtures": 3, "bits": 5}, {"kind": "gaussian", "bits": 3}], ids=str
)
def test_draws_follow_the_probabilities(given: dict) -> None:
    """By Kolmogorov and Smirnov, p = 0.001, at each of six pixels."""
    pixels, n = UNION.validate_python(given), 20_000
    maps = some_maps(pixels, channels=1).expand(n, -1, -1, -1)
    uniforms = torch.rand(n, pixels.uniforms(1), 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = pixels.draw(maps, uniforms)
    numbers = as_numbers(torch.arange(pixels.levels), torch.float32, pixels.levels)
    images = numbers.view(-1, 1, 1, 1).expand(-1, 1, 2, 3)
    expected = pixels.log_probability(maps[: len(numbers)], images).exp().cumsum(0)
    found = torch.stack([(drawn <= float(number) + 1e-6).double().mean(0) for number in numbers])
    assert (found - expected).abs().max() < 1.95 / n**0.5


@each_kind
def test_they_are_computed_in_float32_whatever_autocast_says(given: dict) -> None:
    pixels = UNION.validate_python(given)
    maps = some_maps(pixels, channels=1, dtype=torch.float32)
    images = as_numbers(torch.tensor([7, 200, 255, 0, 30, 90]), torch.float32).view(1, 1, 2, 3)
    expected = pixels.log_probability(maps, images), pixels.mean(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = pixels.log_probability(maps, images), pixels.mean(maps)
        coarse = pixels.log_probability(maps.bfloat16(), images)
    assert all(map(torch.equal, found, expected))
    assert coarse.dtype == torch.float32


@each_kind
def test_what_a_decoder_begins_as_is_a_sensible_distribution(given: dict) -> None:
    pixels = UNION.validate_python(given)
    maps = pixels.initial_maps(3).view(1, -1, 1, 1).expand(256, -1, 2, 3)
    images = as_numbers(torch.arange(256), torch.float32).view(256, 1, 1, 1).expand(256, 3, 2, 3)
    nats = -pixels.log_probability(maps, images).mean()
    # A Gaussian of a narrow, fixed sigma is as far off as that makes it.
    assert nats < math.log(256) + 1 or given.get("sigma")


def test_a_fixed_sigma_is_a_squared_error_and_a_constant() -> None:
    """Where the bins are narrow beside it and the edges far."""
    pixels = UNION.validate_python({"kind": "gaussian", "sigma": 0.2})
    maps = torch.tensor([-0.2, 0.0, 0.1], dtype=torch.float64).view(3, 1, 1, 1)
    images = as_numbers(torch.tensor([120, 130, 140]), torch.float64).view(3, 1, 1, 1)
    density = -0.5 * ((images - maps) / 0.2).square() - math.log(0.2 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(pixels.log_probability(maps, images), density + math.log(2 / 255), rtol=1e-3, atol=0)


def test_bernoulli_is_the_cross_entropy_of_grey_pixels_and_says_that_this_is_no_likelihood() -> None:
    pixels = UNION.validate_python({"kind": "bernoulli"})
    found = pixels.log_probability(torch.tensor(0.3).view(1, 1, 1, 1), torch.tensor(0.5).view(1, 1, 1, 1))
    p = 1 / (1 + math.exp(-0.3))
    assert float(found) == pytest.approx(0.75 * math.log(p) + 0.25 * math.log(1 - p), rel=1e-5)
    assert "no probabilities of grey pixels" in pixels.why_no_likelihood
    sure = UNION.validate_python({"kind": "bernoulli", "black_and_white": True})
    assert sure.why_no_likelihood is None
    sure.check_images(torch.tensor([-1.0, 1.0]))
    with pytest.raises(UserError, match=r"family\.likelihood\.black_and_white: there are pixels that are neither"):
        sure.check_images(torch.tensor([-1.0, 0.2]))


def test_an_image_of_its_own_has_a_number_of_its_own() -> None:
    images = as_numbers(
        torch.randint(0, 256, (500, 1, 6, 6), generator=torch.Generator().manual_seed(0)), torch.float32
    )
    images[1] = images[0]
    images[1, 0, 3, 3] += 2 / 255
    assert len(contents_of(images).unique()) == 500
    assert torch.equal(contents_of(images.double()), contents_of(images))


def test_without_a_kind_it_is_a_mixture_of_logistics() -> None:
    assert UNION.validate_python({"mixtures": 3}) == DiscretisedLogistic(mixtures=3)
