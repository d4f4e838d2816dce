"""The network is VDVAE's, by values of the authors' code (tests/recordings/vdvae.py)."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.networks.autoencoders.vdvae import VeryDeepOptions, VeryDeepVAE, decoder_blocks
from bigtrain.networks.layers.discretised import as_numbers
from bigtrain.objectives.distributions import DiscretisedLogistic
from bigtrain.recipe import load_recipe
from tests.networks.autoencoders.openai_vdvae_names import our_name, our_tensor
from tests.recordings.summary import assert_excerpt, assert_summaries, gradients, read, summary
from tests.recordings.vdvae import DEVIATION, IMAGES, KEPT, MEAN, TEMPERATURES, noise, pixels, value

RECIPES = Path(__file__).parents[3] / "recipes"
RECORDING = read("vdvae")
NETWORKS, PUBLISHED = RECORDING["networks"], RECORDING["published"]
each = pytest.mark.parametrize("name", NETWORKS)
OURS = {
    "width": "width", "zdim": "latent_channels", "bottleneck_multiple": "bottleneck", "no_bias_above": "largest_bias",
    "enc_blocks": "encoder", "dec_blocks": "decoder",
}  # fmt: skip


def options_of(arguments: dict[str, Any]) -> VeryDeepOptions:
    ours = {OURS[key]: given for key, given in arguments.items() if key in OURS}
    return VeryDeepOptions(**ours, input_mean=MEAN, input_deviation=DEVIATION)


def build(arguments: dict[str, Any]) -> VeryDeepVAE:
    return VeryDeepVAE(options_of(arguments), 3, 0, 10 * arguments["num_mixtures"])


def names(name: str) -> dict[str, str]:
    """Our names by theirs."""
    arguments = NETWORKS[name]["arguments"]
    sides = sorted({block.side for block in decoder_blocks(arguments["dec_blocks"])})
    sides = [side for side in sides if side <= arguments["no_bias_above"]]
    return {theirs: our_name(theirs, sides) for theirs in NETWORKS[name]["shapes"]}


def filled(name: str) -> VeryDeepVAE:
    network, shapes = build(NETWORKS[name]["arguments"]).double(), NETWORKS[name]["shapes"]
    weights = {ours: our_tensor(theirs, value(theirs, shapes[theirs])) for theirs, ours in names(name).items()}
    network.load_state_dict(weights)
    return network


def images_of(name: str) -> Tensor:
    return as_numbers(pixels(NETWORKS[name]["arguments"]["image_size"]), torch.float64)


def epsilons_of(network: VeryDeepVAE) -> Tensor:
    parts = [noise(block, (IMAGES, *shape)).flatten(1) for block, shape in enumerate(network.shapes)]
    return torch.cat(parts, dim=1)


def features_of(network: VeryDeepVAE) -> list[Tensor]:
    """Where the last layer's input goes."""
    found: list[Tensor] = []
    network.decoder.last.register_forward_pre_hook(lambda module, inputs: found.append(inputs[0]))
    return found


@each
def test_the_bound_its_parts_and_all_gradients_are_the_authors(name: str) -> None:
    network, recorded, images = filled(name), NETWORKS[name], images_of(name)
    features = features_of(network)
    maps, kl = network(images, None, epsilons_of(network))
    pixels = DiscretisedLogistic(mixtures=recorded["arguments"]["num_mixtures"])
    dimensions = images[0].numel()
    log_likelihood = pixels.log_probability(maps, images)
    assert log_likelihood.min() > math.log(1e-5), "below, the authors' is the density in the middle of the bin"
    distortion = -log_likelihood.flatten(1).sum(1).mean() / dimensions
    rate = kl.sum(1).mean() / dimensions
    found = {"elbo": distortion + rate, "distortion": distortion, "rate": rate}
    assert {key: float(nats.detach()) for key, nats in found.items()} == pytest.approx(recorded["bound"], rel=1e-9)
    (distortion + rate).backward()
    assert_excerpt(features[0], recorded["features"], "features")
    parameters = dict(network.named_parameters())
    theirs = {}
    for key, ours in names(name).items():
        leaf = torch.empty(recorded["shapes"][key], dtype=torch.float64)
        leaf.grad = _in_their_order(key, parameters[ours].grad)
        theirs[key] = leaf
    assert len(theirs) == len(parameters)
    assert_summaries(gradients(theirs), recorded["gradients"])


def _in_their_order(theirs: str, gradient: Tensor) -> Tensor:
    """The inverse of `our_tensor`."""
    numbers = our_tensor(theirs, torch.arange(len(gradient), dtype=torch.float64)).long()
    result = torch.empty_like(gradient)
    result[numbers] = gradient
    return result


@each
def test_the_divergence_of_every_block_is_the_authors(name: str) -> None:
    network, recorded = filled(name), NETWORKS[name]
    by_side: dict[int, Tensor] = {}
    for (_, side, _), block in zip(network.shapes, recorded["kl"], strict=True):
        by_side[side] = by_side.get(side, 0) + torch.tensor(block, dtype=torch.float64)
    _, kl = network(images_of(name), None, epsilons_of(network))
    for side, nats in zip(by_side, kl.unbind(1), strict=True):
        dot, norm = (float(number) for number in by_side[side])
        found = summary("kl", nats)
        assert found[0] == pytest.approx(dot, rel=1e-9)
        assert found[1] <= norm * (1 + 1e-9), "the norm of a sum is at most the sum of the norms"


@each
def test_what_is_drawn_at_a_temperature_is_the_authors(name: str) -> None:
    network = filled(name)
    features = features_of(network)
    for temperature in TEMPERATURES:
        network.generated(None, temperature * epsilons_of(network))
    for found, recorded in zip(features, NETWORKS[name]["drawn"], strict=True):
        assert_excerpt(found, recorded, "features")


@each
def test_what_is_drawn_around_an_images_coarsest_latents_is_the_authors(name: str) -> None:
    """Theirs draw the latents that are kept from the posterior."""
    network = filled(name)
    features = features_of(network)
    noises = [noise(block, (IMAGES, *shape)) for block, shape in enumerate(network.shapes)]
    with torch.no_grad():
        latents, encoded = [], {each.shape[2]: each for each in network.encoder(images_of(name), None)}

        def posterior(number: int, block: Any, x: Tensor, prior: Any) -> Tensor:
            mu, log_sigma = block.posterior_of(x, encoded[x.shape[2]])
            latents.append(mu + log_sigma.exp() * noises[number])
            return latents[-1]

        network.decoder(IMAGES, None, posterior)

        def kept(number: int, block: Any, x: Tensor, prior: Any) -> Tensor:
            mu, log_sigma = prior
            if number < KEPT:
                return latents[number]
            return mu + TEMPERATURES[-1] * log_sigma.exp() * noise(number - KEPT, mu.shape)

        network.decoder(IMAGES, None, kept)
    assert_excerpt(features[-1], NETWORKS[name]["kept"], "features")


@each
def test_every_tensor_of_theirs_is_one_of_ours(name: str) -> None:
    mapped = list(names(name).values())
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == set(build(NETWORKS[name]["arguments"]).state_dict())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_networks_have_the_authors_number_of_parameters(name: str) -> None:
    with torch.device("meta"):
        network = build(PUBLISHED[name]["arguments"])
    assert sum(parameter.numel() for parameter in network.parameters()) == PUBLISHED[name]["parameters"]


@pytest.mark.parametrize("name", ["cifar10", "imagenet64", "ffhq256"])
def test_the_recipes_networks_are_the_published_ones(name: str) -> None:
    family = load_recipe(RECIPES / f"vdvae_{name}.yaml").family
    published = PUBLISHED[name]["arguments"]
    whitening = {"input_mean": MEAN, "input_deviation": DEVIATION}
    assert family.network.model_copy(update=whitening) == options_of(published)
    assert family.likelihood.mixtures == published["num_mixtures"]
    assert family.likelihood.bits == (5 if name == "ffhq256" else 8)


@pytest.mark.parametrize(
    "theirs",
    [
        "decoder.bias_xs.3",
        "encoder.enc_blocks.0.c5.weight",
        "decoder.dec_blocks.1.c1.bias",
        "gain",
        "encoder.blocks.0.c1.bias",
    ],
)
def test_a_name_that_their_network_does_not_have_is_an_error(theirs: str) -> None:
    with pytest.raises(ValueError, match=theirs):
        our_name(theirs, [1, 4, 8])
