"""`variant: studiogan` is StudioGAN's BigGAN, by values of the authors' code (tests/recordings/studiogan.py).

Not in evaluation: theirs stops the power iteration there, ours makes it without keeping it, as BigGAN-PyTorch.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.exchange.convert.sources.studiogan import our_names, our_tensors
from bigtrain.networks.adversarial.biggan import Discriminator, DiscriminatorOptions, GeneratorOptions
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.recipe import load_recipe
from tests.recordings.studiogan import inputs, value
from tests.recordings.summary import assert_excerpt, assert_summaries, gradients, objective, read, summary

RECIPES = Path(__file__).parents[3] / "recipes"
RECORDING = read("studiogan")
NETWORKS = RECORDING["networks"]


def build(arguments: dict[str, Any], variant: str = "studiogan") -> nn.Module:
    resolution = arguments["img_size"]
    options = DiscriminatorOptions(
        variant=variant, channels=arguments["d_conv_dim"], attention_resolution=resolution // 2
    )
    return Discriminator(options, resolution, arguments["num_classes"])


def filled(name: str, variant: str = "studiogan") -> nn.Module:
    """Our small network with the recorded one's weights and directions, in float64."""
    network = build(NETWORKS[name]["arguments"], variant).double()
    network.load_state_dict(our_tensors({key: value(key, shape) for key, shape in NETWORKS[name]["shapes"].items()}))
    set_recording(network, True)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_theirs_is_one_of_ours(name: str) -> None:
    mapped = our_names(NETWORKS[name]["shapes"])
    assert len(mapped) == len(set(mapped.values()))
    assert set(mapped.values()) == set(build(NETWORKS[name]["arguments"]).state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_moved_directions_are_the_authors(name: str) -> None:
    network, recorded = filled(name), NETWORKS[name]
    x, labels = inputs(recorded["arguments"])
    output = network(x, labels)
    objective(output).backward()
    assert_excerpt(output, recorded["training"]["output"], "output")
    names, ours = our_names(recorded["shapes"]), dict(network.named_parameters())
    parameters = {theirs: ours[name] for theirs, name in names.items() if name in ours}
    assert_summaries(gradients({"input": x, **parameters}), recorded["training"]["gradients"])
    commit(network, torch.tensor(True))
    state = network.state_dict()
    moved = {theirs: summary(theirs, state[names[theirs]]) for theirs in recorded["moved_buffers"]}
    assert_summaries(moved, recorded["moved_buffers"])
    assert_excerpt(network(x, labels), recorded["second_training_output"], "second output")


def test_the_papers_discriminator_is_another() -> None:
    x, labels = inputs(NETWORKS["discriminator_32"]["arguments"])
    ours, theirs = (filled("discriminator_32", variant)(x, labels) for variant in ("brock", "studiogan"))
    assert not torch.allclose(ours, theirs, rtol=1e-2)


@pytest.mark.parametrize("name", RECORDING["published"])
def test_the_published_networks_have_the_authors_number_of_parameters(name: str) -> None:
    published = RECORDING["published"][name]
    with torch.device("meta"):
        network = build(published["arguments"])
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]


@pytest.mark.parametrize("name", RECORDING["published_generators"])
def test_the_published_generators_have_the_authors_number_of_parameters(name: str) -> None:
    published = RECORDING["published_generators"][name]
    arguments, size = published["arguments"], published["arguments"]["img_size"]
    options = GeneratorOptions(
        variant="studiogan",
        channels=arguments["g_conv_dim"],
        latent_per_block=arguments["z_dim"] // 5,
        class_embedding=arguments["g_shared_dim"],
        attention_resolution=size,
    )
    with torch.device("meta"):
        network = options.build((size, size), 3, arguments["num_classes"])
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]


def test_the_recipe_for_cifar10_trains_it() -> None:
    options = load_recipe(RECIPES / "biggan_cifar10.yaml").family.discriminator
    assert options.variant == "studiogan"
    with torch.device("meta"):
        network = options.build((32, 32), 3, 10)
    expected = RECORDING["published"]["discriminator_32"]["parameters"]
    assert sum(parameter.numel() for parameter in network.parameters()) == expected
