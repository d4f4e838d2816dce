"""The prior family: what it is learned over, how levels follow each other, and what it refuses."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, Encodes, Likelihood, Samples
from bigtrain.families.autoregressive.prior import Prior, PriorOptions, PriorSamplingOptions
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Family, LoadedModel, build_network
from bigtrain.families.phases import Microbatch
from bigtrain.randomness import Draws
from tests.asking import asked, sampled

LEVELS = {"top": CodeLevel(5, (2, 2)), "bottom": CodeLevel(7, (4, 4))}
CODES = DataSpec((8, 8), 3, ("a", "b", "c"), (10, 10, 20), LEVELS, "f" * 64)
PIXELS = DataSpec((4, 4), 3, ("a", "b", "c"), (10, 10, 20))
NETWORK = {"channels": 8, "layers": 2}


def prior(spec: DataSpec, **options: Any) -> Prior:
    section = {"kind": "prior", "optimizer": {"lr": 1e-3}, "network": NETWORK} | options
    return Prior(PriorOptions.model_validate(section), spec)


def top() -> Prior:
    return prior(CODES, level="top", tokenizer="runs/tokenizer")


def bottom() -> Prior:
    return prior(CODES, level="bottom", tokenizer="runs/tokenizer", condition="runs/top")


class Tokenizer(Family, Encodes):
    """Decodes codes to the image whose value is their mean."""

    kind = "tokenizer"

    def __init__(self) -> None:
        self.spec = CODES

    code_levels: Mapping[str, CodeLevel] = {}

    def encode(self, networks: Any, images: Tensor) -> dict[str, Tensor]:
        raise AssertionError("no test encodes")

    def decode(self, networks: Any, codes: Mapping[str, Tensor]) -> Tensor:
        assert list(codes) == ["top", "bottom"]
        means = sum(level.double().mean((1, 2)) for level in codes.values())
        return torch.tanh(means)[:, None, None, None].expand(-1, 3, 8, 8)


def networks_of(family: Prior) -> dict[str, Any]:
    network = build_network(family, "pixelcnn", seed=1).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():  # away from an initialisation that may be flat
            parameter.add_(
                0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            )
    return {"pixelcnn": network}


def microbatch(n: int, codes: bool) -> Microbatch:
    draws = Draws(3)
    values = {}
    for name, level in LEVELS.items():
        drawn = draws.integers(name, range(n * math.prod(level.grid)), level.codebook_size)
        values[name] = drawn.view(n, *level.grid)
    images = draws.integers("images", range(n * 48), 256).view(n, 3, 4, 4).double() / 127.5 - 1
    labels = torch.arange(n) % 3
    fields = {"label": labels} | (values if codes else {"image": images})
    return Microbatch(fields, range(n), draws, torch.device("cpu"), n)


def whole_model() -> tuple[Prior, dict[str, Any]]:
    """The bottom prior with the top one and a tokenizer behind it."""
    first, second = top(), bottom()
    second.attach(
        {
            "tokenizer": LoadedModel(Tokenizer(), {}, "f" * 64),
            "condition": LoadedModel(first, networks_of(first), "0" * 64),
        }
    )
    return second, networks_of(second)


@pytest.mark.parametrize("family", [top(), bottom()], ids=["top", "bottom"])
def test_the_loss_is_the_mean_likelihood_in_nats_per_code(family: Prior) -> None:
    networks, batch = networks_of(family), microbatch(4, codes=True)
    losses = family.loss(networks, batch)
    nats = family.likelihood(networks, batch, Effort(None))["nats"]
    assert nats.dtype == torch.float64
    assert nats.shape == (4,)
    torch.testing.assert_close(losses.total.double(), nats.mean() / family.dimensions)
    torch.testing.assert_close(losses.terms["bits_per_dim"].double(), nats.mean() / family.dimensions / math.log(2))


@pytest.mark.parametrize("mixtures", [None, 2])
def test_bits_per_dim_of_pixels_count_three_channels(mixtures: int | None) -> None:
    family = prior(PIXELS, level="pixels", network=NETWORK | {"mixtures": mixtures})
    assert family.dimensions == 4 * 4 * 3
    networks, batch = networks_of(family), microbatch(4, codes=False)
    losses = family.loss(networks, batch)
    torch.testing.assert_close(
        losses.total.double(), family.likelihood(networks, batch, Effort(None))["nats"].mean() / family.dimensions
    )


def test_the_classes_of_a_conditional_prior_matter_and_those_of_another_do_not() -> None:
    for conditional in (True, False):
        family = prior(CODES, level="top", tokenizer="runs/tokenizer", class_conditional=conditional)
        networks, batch = networks_of(family), microbatch(3, codes=True)
        other = replace(batch, fields={**batch, "label": batch["label"].roll(1)})
        same = torch.equal(
            family.likelihood(networks, batch, Effort(None))["nats"],
            family.likelihood(networks, other, Effort(None))["nats"],
        )
        assert same is not conditional


def test_sampling_goes_from_the_coarsest_level_through_the_decoder() -> None:
    family, networks = whole_model()
    options = PriorSamplingOptions()
    labels = torch.tensor([0, 1, 2, 0])
    prepared = family.prepare_sampling(networks, options, 0)
    values = family.sample_values(prepared, asked({"label": labels}, range(4)), options)
    assert [tuple(value.shape) for value in values.values()] == [(4, 2, 2), (4, 4, 4)]
    images = sampled(family, prepared, labels, range(4), 0, options)
    assert images.shape == (4, 3, 8, 8)
    coarse, networks_of_top = family.attached["condition"].family, family.attached["condition"].networks
    assert isinstance(coarse, Prior)
    alone = coarse.sample_values(
        coarse.prepare_sampling(networks_of_top, options, 0), asked({"label": labels}, range(4)), options
    )
    assert torch.equal(alone["top"], values["top"])


def test_a_sample_does_not_depend_on_its_batch() -> None:
    family, networks = whole_model()
    options = PriorSamplingOptions(temperature=0.9, top_k=4)
    labels = torch.tensor([0, 1, 2, 0, 1])
    together = sampled(family, networks, labels, [7, 3, 30, 4, 11], 5, options)
    for position, index in enumerate([7, 3, 30, 4, 11]):
        assert torch.equal(
            together[position : position + 1],
            sampled(family, networks, labels[position : position + 1], [index], 5, options),
        )


def test_pixels_are_drawn_as_8_bit_values() -> None:
    family = prior(PIXELS, level="pixels")
    networks = networks_of(family)
    images = sampled(family, networks, torch.tensor([0, 2]), range(2), 0, PriorSamplingOptions())
    values = (images.double() + 1) * 127.5
    assert images.shape == (2, 3, 4, 4)
    assert float((values - values.round()).abs().max()) < 1e-3
    assert images.unique().numel() > 10


def test_the_prior_of_an_upper_level_is_no_image() -> None:
    assert top().ability(Samples) is None
    assert top().ability(Likelihood) is not None
    assert list(bottom().require(Samples, "").conditions) == ["label"]
    assert list(prior(PIXELS, level="pixels", class_conditional=False).require(Samples, "").conditions) == []
    assert "no image" in top().why_not(Samples)
    assert "family.level=bottom" in top().why_not(Samples)


def test_codes_of_another_tokenizer_are_refused() -> None:
    with pytest.raises(UserError, match=r"family.tokenizer: runs/tokenizer is not the tokenizer that made the codes"):
        bottom().attach({"tokenizer": LoadedModel(Tokenizer(), {}, "e" * 64)})
    with pytest.raises(UserError, match=r"is a prior, not a tokenizer"):
        bottom().attach({"tokenizer": LoadedModel(top(), {}, "f" * 64)})


def test_a_condition_of_another_level_or_of_other_codes_is_refused() -> None:
    with pytest.raises(UserError, match=r"family.condition: runs/top is not a prior of level top"):
        bottom().attach({"condition": LoadedModel(bottom(), {}, "0" * 64)})
    others = prior(
        DataSpec((8, 8), 3, CODES.classes, CODES.class_counts, LEVELS, "e" * 64), level="top", tokenizer="runs/other"
    )
    with pytest.raises(UserError, match="codes of another tokenizer"):
        bottom().attach({"condition": LoadedModel(others, {}, "0" * 64)})


@pytest.mark.parametrize("classes", [("c", "b", "a"), ("x", "y"), None])
def test_a_condition_of_other_classes_is_refused(classes: tuple[str, ...] | None) -> None:
    """Its codes would be those of other classes than the ones that are asked for, and nothing would show it."""
    spec = CODES if classes is None else replace(CODES, classes=classes, class_counts=(1,) * len(classes))
    other = prior(spec, level="top", tokenizer="runs/tokenizer", class_conditional=classes is not None)
    with pytest.raises(UserError, match=r"family.condition: runs/top has"):
        bottom().attach({"condition": LoadedModel(other, {}, "0" * 64)})


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (PIXELS, {"level": "codes"}, r"data.train holds images; encode them"),
        (CODES, {"level": "pixels"}, r"family.level: pixels, but data.train holds codes"),
        (CODES, {"level": "middle", "tokenizer": "t"}, r"no codes of level middle; it has top, bottom"),
        (CODES, {"level": "top"}, r"family.tokenizer is missing"),
        (
            CODES,
            {"level": "bottom", "tokenizer": "t"},
            r"family.condition is missing: level bottom depends on level top",
        ),
        (CODES, {"level": "top", "tokenizer": "t", "condition": "c"}, r"level top is the coarsest"),
        (PIXELS, {"level": "pixels", "tokenizer": "t"}, r"a prior over pixels has neither"),
        (CODES, {"level": "top", "tokenizer": "t", "network": {"mixtures": 3}}, r"family.network.mixtures"),
        (
            DataSpec((4, 4), 3, ("a",), (9,)),
            {"level": "pixels"},
            r"family.class_conditional: the data have only one class",
        ),
    ],
)
def test_options_that_do_not_fit_the_data_name_their_key(spec: DataSpec, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        prior(spec, **options)


def test_a_mixture_refuses_a_list_of_values_before_it_trains_and_when_it_samples() -> None:
    network = NETWORK | {"mixtures": 2}
    with pytest.raises(UserError, match="top_k and top_p"):
        prior(PIXELS, level="pixels", network=network, sampling={"top_k": 3})
    family = prior(PIXELS, level="pixels", network=network)
    with pytest.raises(UserError, match="top_k and top_p"):
        family.prepare_sampling(networks_of(family), PriorSamplingOptions(top_k=3), 0)


def test_weights_that_are_not_finite_draw_nothing() -> None:
    family = top()
    networks = networks_of(family)
    with torch.no_grad():
        next(networks["pixelcnn"].parameters())[0] = torch.nan
    with pytest.raises(FloatingPointError, match="not finite"):
        family.prepare_sampling(networks, PriorSamplingOptions(), 0)


def test_the_lowest_temperature_draws_the_likeliest_value() -> None:
    family = top()
    networks, labels = networks_of(family), torch.tensor([0, 1])
    cold, coldest = (
        family.sample_values(networks, asked({"label": labels}, range(2)), PriorSamplingOptions(temperature=t))
        for t in (2e-3, 1e-3)
    )
    assert torch.equal(cold["top"], coldest["top"])
    with pytest.raises(ValueError, match="finite"):
        PriorSamplingOptions(temperature=math.inf)


def test_the_bottom_levels_own_codes_do_not_reach_it_through_its_condition() -> None:
    """Another bottom code changes only its own likelihood and those after it; another top code changes them all."""
    family = bottom()
    networks, batch = networks_of(family), microbatch(1, codes=True)

    def likelihoods(fields: Mapping[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return family._nats(networks, replace(batch, fields=fields))[0]

    before = likelihoods(batch)
    changed = {name: value.clone() for name, value in batch.items()}
    changed["bottom"][0, 2, 1] = (changed["bottom"][0, 2, 1] + 1) % 7
    after = likelihoods(changed)
    assert torch.equal(before.flatten()[: 2 * 4 + 1], after.flatten()[: 2 * 4 + 1])
    assert not torch.equal(before, after)
    coarse = {name: value.clone() for name, value in batch.items()}
    coarse["top"][0, 0, 0] = (coarse["top"][0, 0, 0] + 1) % 5
    assert float((likelihoods(coarse) - before).abs().max()) > 0
