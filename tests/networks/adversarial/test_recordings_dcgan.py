"""DCGAN's networks are those of PyTorch's examples, by values of that code (tests/recordings/pytorch_dcgan.py)."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.networks.adversarial.dcgan import DiscriminatorOptions, GeneratorOptions
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.recipe import load_recipe
from tests.networks.adversarial.pytorch_dcgan_names import our_discriminator_name, our_generator_name
from tests.recordings.pytorch_dcgan import SIZE, SMALL, inputs, value
from tests.recordings.summary import assert_excerpt, assert_summaries, gradients, objective, read, summary

RECIPES = Path(__file__).parents[3] / "recipes"
RECORDING = read("pytorch_dcgan")
NETWORKS = RECORDING["networks"]
OUR_NAME = {"generator": our_generator_name, "discriminator": our_discriminator_name}


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    if name == "generator":
        options = GeneratorOptions(channels=arguments["ngf"], latent=arguments["nz"])
        return options.build((SIZE, SIZE), arguments["nc"], 0)
    return DiscriminatorOptions(channels=arguments["ndf"]).build((SIZE, SIZE), arguments["nc"], 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_moved_statistics_are_those_of_the_code(name: str) -> None:
    recorded, x = NETWORKS[name], inputs(name)
    names = {theirs: OUR_NAME[name](theirs) for theirs in recorded["shapes"]}
    network = build(name, SMALL[name]).double()
    # Strict: every tensor of ours is filled, and each of theirs is used once.
    network.load_state_dict({ours: value(theirs, recorded["shapes"][theirs]) for theirs, ours in names.items()})
    set_recording(network, True)
    output = network(x)
    objective(output).backward()
    assert_excerpt(output, recorded["training"]["output"], "output")
    ours = dict(network.named_parameters())
    parameters = {theirs: ours[own] for theirs, own in names.items() if own in ours}
    assert_summaries(gradients({"input": x, **parameters}), recorded["training"]["gradients"])
    commit(network, torch.tensor(True))
    state = network.state_dict()
    moved = {theirs: summary(theirs, state[names[theirs]]) for theirs in recorded["moved_buffers"]}
    assert_summaries(moved, recorded["moved_buffers"])
    assert_excerpt(network.eval()(x), recorded["evaluation"], "evaluation")


@pytest.mark.parametrize("name", NETWORKS)
def test_names_that_their_network_has_not_are_refused(name: str) -> None:
    for theirs in (
        "13.weight",
        "2.bias",
        "main.weight",
        "conv.weight",
        "4.running_mean" if name == "discriminator" else "5.weight",
    ):
        with pytest.raises(ValueError, match=f"{theirs}: their {name} has no such tensor"):
            OUR_NAME[name](theirs)
    assert OUR_NAME[name]("main.6.num_batches_tracked" if name == "discriminator" else "1.num_batches_tracked") is None


def test_the_recipe_for_lsun_trains_the_published_networks() -> None:
    options = load_recipe(RECIPES / "dcgan_lsun64.yaml").family
    with torch.device("meta"):
        networks = {name: getattr(options, name).build((64, 64), 3, 0) for name in NETWORKS}
    found = {name: sum(parameter.numel() for parameter in network.parameters()) for name, network in networks.items()}
    assert found == {name: recorded["parameters"] for name, recorded in RECORDING["published"].items()}
