"""The networks are those of pix2pix, by values of the authors' code (tests/recordings/pix2pix.py)."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigtrain.exchange.convert.sources.pix2pix import our_discriminator_name, our_generator_name
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.networks.translation.patch_discriminator import PatchDiscriminator, PatchOptions
from bigtrain.networks.translation.unet import UNet, UNetOptions
from bigtrain.recipe import load_recipe
from tests.recordings.pix2pix import depth_of, images, noise, size_of, value
from tests.recordings.summary import assert_excerpt, assert_summaries, gradients, objective, read, summary

RECIPES = Path(__file__).parents[3] / "recipes"
RECORDING = read("pix2pix")
NETWORKS = RECORDING["networks"]
GENERATORS = [name for name in NETWORKS if name.startswith("generator")]


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Our network of the arguments to the constructor of theirs."""
    size = size_of(name), size_of(name)
    if name in GENERATORS:
        blocks = tuple(NETWORKS[name]["dropout_blocks"])
        options = UNetOptions(
            depth=depth_of(name), channels=arguments["ngf"], norm=arguments["norm"], dropout_blocks=blocks
        )
        return UNet(options, size, 3, 3)
    layers, channels = arguments["n_layers_D"], arguments["ndf"]
    return PatchDiscriminator(PatchOptions(layers=layers, channels=channels, norm=arguments["norm"]), size, 6)


def our_name(name: str, theirs: str) -> str | None:
    if name in GENERATORS:
        return our_generator_name(theirs, depth_of(name))
    return our_discriminator_name(theirs, NETWORKS[name]["arguments"]["n_layers_D"])


def names(name: str) -> dict[str, str]:
    """Our names by theirs."""
    mapped = {theirs: our_name(name, theirs) for theirs in NETWORKS[name]["shapes"]}
    return {theirs: ours for theirs, ours in mapped.items() if ours is not None}


def filled(name: str) -> nn.Module:
    """Our small network with the recorded one's weights and buffers, in float64."""
    network, shapes = build(name, NETWORKS[name]["arguments"]).double(), NETWORKS[name]["shapes"]
    network.load_state_dict({ours: value(theirs, shapes[theirs]) for theirs, ours in names(name).items()})
    set_recording(network, True)
    return network


def output_of(network: nn.Module, x: Tensor) -> Tensor:
    """In the shape of theirs: their logits are [n, 1, h, w]."""
    if isinstance(network, UNet):
        return network(x, [noise(block, (0, *shape)) for block, shape in network.noise_shapes.items()])
    return network(x).unsqueeze(1)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_moved_statistics_are_the_authors(name: str) -> None:
    network, recorded = filled(name), NETWORKS[name]
    x = images("images", 3 if name in GENERATORS else 6, size_of(name)).requires_grad_()
    output = output_of(network, x)
    objective(output).backward()
    assert_excerpt(output, recorded["training"]["output"], "output")
    parameters = dict(network.named_parameters())
    theirs = {key: parameters[ours] for key, ours in names(name).items() if ours in parameters}
    assert len(theirs) == len(parameters)
    assert_summaries(gradients({"input": x, **theirs}), recorded["training"]["gradients"])
    commit(network, torch.tensor(True))
    state = network.state_dict()
    moved = {key: summary(key, state[ours]) for key, ours in names(name).items() if ours not in parameters}
    assert_summaries(moved, recorded["moved_buffers"])


@pytest.mark.parametrize("name", GENERATORS)
def test_each_image_of_a_batch_becomes_what_the_authors_test_makes_of_it_alone(name: str) -> None:
    with torch.no_grad():
        outputs = output_of(filled(name).eval(), images("images", 3, size_of(name)))
    for output, recorded in zip(outputs.split(1), NETWORKS[name]["test"], strict=True):
        assert_excerpt(output, recorded, "output")


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_theirs_is_one_of_ours(name: str) -> None:
    mapped = list(names(name).values())
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == set(build(name, NETWORKS[name]["arguments"]).state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_published_networks_have_the_authors_number_of_parameters(name: str) -> None:
    published = RECORDING["published"][name]
    with torch.device("meta"):
        network = build(name, published["arguments"])
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]


@pytest.mark.parametrize(("component", "name"), [("generator", "generator_256"), ("discriminator", "discriminator_70")])
def test_the_recipes_networks_have_the_authors_number_of_parameters(component: str, name: str) -> None:
    recipe = load_recipe(RECIPES / "pix2pix_facades.yaml")
    options = getattr(recipe.family, component)
    build = partial(UNet, options) if component == "generator" else partial(PatchDiscriminator, options)
    with torch.device("meta"):
        network = build((256, 256), *((3, 3) if component == "generator" else (6,)))
    assert sum(parameter.numel() for parameter in network.parameters()) == RECORDING["published"][name]["parameters"]
    assert component == "discriminator" or list(options.dropout_blocks) == NETWORKS[name]["dropout_blocks"]


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        ("model.model.2.weight", 8),
        ("model.model.3.model.1.weight", 8),
        ("model.model.1.model.6.weight", 2),
        ("conv", 8),
    ],
)
def test_a_name_that_their_generator_does_not_have_is_an_error(name: str, depth: int) -> None:
    with pytest.raises(ValueError, match=name):
        our_generator_name(name, depth)


@pytest.mark.parametrize(
    ("name", "layers"), [("model.12.weight", 3), ("model.1.weight", 3), ("net.0.weight", 3), ("model.0.weight", 0)]
)
def test_a_name_that_their_discriminator_does_not_have_is_an_error(name: str, layers: int) -> None:
    with pytest.raises(ValueError, match=name):
        our_discriminator_name(name, layers)
