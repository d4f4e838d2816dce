"""The residual networks are StudioGAN's, by values of that code (tests/recordings/studiogan_resnet.py): the authors' own cannot
run beside today's torch, so of theirs there are the counts of parameters (test_resnet.py).

Not the spectral norm in evaluation: theirs stops the power iteration there, ours makes it without keeping it.
"""

from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.networks.adversarial.resnet import DiscriminatorOptions, GeneratorOptions
from bigtrain.networks.layers.statistics import commit, set_recording
from tests.networks.adversarial.studiogan_resnet_names import our_names, our_tensors
from tests.recordings.studiogan_resnet import BATCH_NORM_EPS, SPECTRAL_NORM_EPS, inputs, value
from tests.recordings.summary import assert_excerpt, assert_summaries, objective, read, summary

RECORDING = read("studiogan_resnet")
NETWORKS = RECORDING["networks"]


def build(arguments: dict[str, Any]) -> nn.Module:
    """Our network of the arguments to the constructor of theirs."""
    size = (arguments["img_size"], arguments["img_size"])
    if "z_dim" in arguments:
        # Their widths for 32x32 are 4 g_conv_dim, or 2 d_conv_dim.
        generator = GeneratorOptions(
            channels=arguments["g_conv_dim"] * (4 if size == (32, 32) else 1),
            latent=arguments["z_dim"],
            conditioning={"W/O": "none", "cBN": "batch_norm"}[arguments["g_cond_mtd"]],
            batch_norm_eps=BATCH_NORM_EPS,
        )
        return generator.build(size, 3, arguments["num_classes"])
    discriminator = DiscriminatorOptions(
        channels=arguments["d_conv_dim"] * (2 if size == (32, 32) else 1),
        inner_width="output",
        norm="spectral" if arguments["apply_d_sn"] else "none",
        conditioning={"W/O": "none", "PD": "projection"}[arguments["d_cond_mtd"]],
        spectral_norm_eps=SPECTRAL_NORM_EPS,
    )
    return discriminator.build(size, 3, arguments["num_classes"])


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_moved_statistics_are_those_of_the_code(name: str) -> None:
    recorded = NETWORKS[name]
    network, (x, labels) = build(recorded["arguments"]).double(), inputs(recorded["arguments"])
    theirs = {key: value(key, shape) for key, shape in recorded["shapes"].items()}
    names = our_names(theirs)
    assert len(names) == len(set(names.values()))
    network.load_state_dict(our_tensors(theirs))
    set_recording(network, True)
    given = (x, labels) if name.endswith("_classes") else (x,)
    output = network(*given)
    objective(output).backward()
    assert_excerpt(output, recorded["training"]["output"], "output")
    of_ours = {name: parameter.grad for name, parameter in network.named_parameters()}
    for name, gradient in of_ours.items():
        if name.endswith((".gain.weight", ".bias.weight")):  # of tables of classes, in the shape of their matrices
            of_ours[name] = gradient.t()
    found = {theirs: of_ours[own] for theirs, own in names.items() if own in of_ours} | {"input": x.grad}
    assert_summaries(
        {key: summary(key, gradient) for key, gradient in found.items()}, recorded["training"]["gradients"]
    )
    commit(network, torch.tensor(True))
    state = network.state_dict()
    moved = {key: summary(key, state[names[key]]) for key in recorded["moved_buffers"]}
    assert_summaries(moved, recorded["moved_buffers"])
    if "evaluation" in recorded:
        assert_excerpt(network.eval()(*given), recorded["evaluation"], "evaluation")


@pytest.mark.parametrize("name", RECORDING["published"])
def test_the_published_networks_have_the_codes_number_of_parameters(name: str) -> None:
    published = RECORDING["published"][name]
    with torch.device("meta"):
        network = build(published["arguments"])
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]
