"""Layers of latents, beside a port of the authors' Theano code (tests/recordings/iwae.py)."""

from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from bigtrain.families.autoencoders.vae import AnyNetwork
from bigtrain.networks.autoencoders.latents import GaussianLatents
from bigtrain.networks.autoencoders.layered import LayeredModel
from bigtrain.objectives.distributions import Bernoulli
from tests.recordings import iwae
from tests.recordings.formula import pattern

UNION = TypeAdapter(AnyNetwork)
SIZES, WIDTHS = [4, 3], [6, 5]


def build(classes: int = 0, **options: Any) -> LayeredModel:
    torch.manual_seed(0)
    given = {"kind": "layered", "latent_sizes": SIZES, "hidden_features": WIDTHS} | options
    model = UNION.validate_python(given).build((1, 4, 4), classes, GaussianLatents(), torch.zeros(1))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.3)
    return model.double()


def their_names(model: LayeredModel) -> dict[str, nn.Linear]:
    names = {"p0/0": model.decoder.hidden.first, "p0/1": model.decoder.hidden.second, "p0/mean": model.decoder.output}
    gaussians = {f"q{n}": each for n, each in enumerate(model.posteriors)}
    gaussians |= {f"p{n + 1}": each for n, each in enumerate(model.priors)}
    for name, each in gaussians.items():
        names |= {f"{name}/0": each.hidden.first, f"{name}/1": each.hidden.second}
        names |= {f"{name}/mean": each.mean, f"{name}/sigma": each.log_sigma}
    return names


def images(n: int) -> Tensor:
    return pattern("x", (n, 1, 4, 4)).sign()


def test_importance_weights_are_those_of_the_authors_code_and_so_are_the_gradients_of_the_bound() -> None:
    model, x = build(), images(1).expand(3, -1, -1, -1)
    layers = their_names(model)

    def weights(name: str, shape: tuple[int, ...]) -> Tensor:
        layer, part = name.rsplit("/", 1)
        value = layers[layer].weight.T if part == "W" else layers[layer].bias
        assert value.shape == shape, name
        return value

    noise = pattern("noise", (3, 7), 2.0)
    theirs = iwae.log_weights(weights, (x.flatten(1) + 1) / 2, [noise[:, 3:], noise[:, :3]], SIZES, WIDTHS)
    drawn = model(x, None, noise)
    ours = Bernoulli().log_probability(drawn.maps, x).flatten(1).sum(1) - drawn.log_ratio
    torch.testing.assert_close(ours, theirs)
    parameters = dict(model.named_parameters())
    expected = iwae.gradients(theirs, parameters)
    found = torch.autograd.grad(ours.logsumexp(0), list(parameters.values()))
    torch.testing.assert_close(dict(zip(parameters, found, strict=True)), expected)


@pytest.mark.parametrize(
    ("options", "count"), [({}, 425_284), ({"latent_sizes": [100, 50], "hidden_features": [200, 100]}, 521_084)]
)
def test_the_authors_networks_have_as_many_parameters(options: dict[str, Any], count: int) -> None:
    model = UNION.validate_python({"kind": "layered"} | options).build(
        (1, 28, 28), 0, GaussianLatents(), torch.zeros(1)
    )
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_the_divergence_of_the_last_layer_is_in_closed_form_and_their_mean_is_that_of_the_ratio() -> None:
    model, x = build(), images(1).expand(20_000, -1, -1, -1)
    drawn = model(x, None, torch.randn(20_000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert [kl.shape[1] for kl in drawn.kl] == SIZES[::-1]
    difference = sum(kl.sum(1) for kl in drawn.kl) - drawn.log_ratio
    assert difference.mean().abs() < 4 * difference.std() / 20_000**0.5
    assert drawn.kl[0].min() >= 0, "a divergence and not an estimate"
    weights = (-drawn.log_ratio).exp()
    assert (weights.mean() - 1).abs() < 4 * weights.std() / 20_000**0.5, "p / q averages to one under q"


def test_the_latents_that_a_posterior_is_around_give_its_maps_without_noise_and_the_class_reaches_all() -> None:
    model, x = build(classes=3, latent_sizes=[4, 3, 2], hidden_features=[6, 5, 4]), images(2)
    labels = torch.tensor([0, 2])
    centre = model.centre(x, labels)
    drawn = model(x, labels, torch.zeros_like(centre))
    torch.testing.assert_close(model.decode(centre, labels), drawn.maps)
    for part in (*model.posteriors, *model.priors, model.decoder):
        assert part.hidden.by_class.weight.shape[0] == 3
    assert not torch.allclose(model.decode(centre, 2 - labels), drawn.maps)


def test_the_maps_begin_at_the_logit_of_the_mean_image() -> None:
    model, mean = build(), pattern("mean", (1, 4, 4))
    model.initialise(images(2), None, torch.zeros(2, 7), Bernoulli().maps_of_mean(mean))
    torch.testing.assert_close(2 * model.decoder.output.bias.sigmoid() - 1, mean.flatten(), rtol=0, atol=0.002)


def test_every_layer_has_a_width() -> None:
    with pytest.raises(ValueError, match="latent_sizes and hidden_features must have a number for each layer"):
        UNION.validate_python({"kind": "layered", "latent_sizes": [4, 3]})
