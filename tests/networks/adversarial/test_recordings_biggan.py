"""BigGAN's networks are those of BigGAN-PyTorch, by values of the authors' code (tests/recordings/biggan_pytorch.py)."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigtrain.exchange.convert.sources.biggan_pytorch import our_name, our_tensors
from bigtrain.networks.adversarial.biggan import (
    GENERATOR_WIDTHS,
    Discriminator,
    DiscriminatorOptions,
    Generator,
    GeneratorOptions,
)
from bigtrain.networks.layers.normalisation import SpectralNorm
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.objectives.orthogonal import Orthogonal
from bigtrain.recipe import load_recipe
from tests.recordings.biggan_pytorch import BATCH_NORM_EPS, ORTHOGONAL_STRENGTH, SPECTRAL_NORM_EPS, inputs, value
from tests.recordings.summary import assert_excerpt, assert_summaries, gradients, objective, read, summary

RECIPES = Path(__file__).parents[3] / "recipes"
RECORDING = read("biggan_pytorch")
NETWORKS = RECORDING["networks"]


def build(name: str, arguments: dict[str, Any]) -> nn.Module:
    """Our network of the arguments to the constructor of theirs."""
    kind, _, resolution = name.partition("_")
    size, component = int(resolution), kind[0].upper()
    sizes = size, arguments["n_classes"]
    attention = int(arguments[f"{component}_attn"]) or None
    if kind == "discriminator":
        # Their widths for 32x32 are 4 D_ch, ours 2 channels.
        channels = arguments["D_ch"] * (2 if size == 32 else 1)
        options = DiscriminatorOptions(
            channels=channels, attention_resolution=attention, spectral_norm_eps=SPECTRAL_NORM_EPS
        )
        return Discriminator(options, *sizes)
    chunks = 1 + len(GENERATOR_WIDTHS[size][0])
    return Generator(
        GeneratorOptions(
            channels=arguments["G_ch"],
            latent_per_block=arguments["dim_z"] // chunks,
            class_embedding=arguments["shared_dim"],
            attention_resolution=attention,
            batch_norm_eps=BATCH_NORM_EPS,
            spectral_norm_eps=SPECTRAL_NORM_EPS,
        ),
        *sizes,
    )


def filled(name: str) -> nn.Module:
    """Our small network with the recorded one's weights and buffers, in float64."""
    recorded = NETWORKS[name]
    network = build(name, recorded["arguments"]).double()
    network.load_state_dict(our_tensors({key: value(key, shape) for key, shape in recorded["shapes"].items()}))
    set_recording(network, True)
    return network


def by_their_names(network: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """Our parameters, which all have the shapes of theirs."""
    ours = dict(network.named_parameters())
    names = {key: our_name(key) for key in NETWORKS[name]["shapes"]}
    return {key: ours[mapped] for key, mapped in names.items() if mapped in ours}


def output_of(network: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
    """In the shape of theirs: their logits are [n, 1]."""
    output = network(x, labels)
    return output.unsqueeze(1) if output.dim() == 1 else output


def assert_step(network: nn.Module, name: str, recorded: Mapping[str, Any]) -> None:
    x, labels = inputs(name, NETWORKS[name]["arguments"])
    network.zero_grad()
    output = output_of(network, x, labels)
    objective(output).backward()
    assert_excerpt(output, recorded["output"], "output")
    assert_summaries(gradients({"input": x, **by_their_names(network, name)}), recorded["gradients"])


def buffers_by_their_names(network: nn.Module, name: str) -> dict[str, Tensor]:
    """Ours as theirs; sv0 is the sigma of the last training forward."""
    state, shapes = network.state_dict(), NETWORKS[name]["shapes"]
    layers = {key: module for key, module in network.named_modules() if isinstance(module, SpectralNorm)}
    buffers = {}
    for key in NETWORKS[name]["moved_buffers"]:
        ours = our_name(key)
        if ours is None:
            sibling = our_name(key.removesuffix("sv0") + "u0")
            assert sibling is not None
            buffers[key] = layers[sibling.removesuffix(".u")].noted_sigma.reshape(shapes[key])
        else:
            buffers[key] = state[ours].reshape(shapes[key])
    return buffers


@pytest.mark.parametrize("name", NETWORKS)
def test_every_tensor_of_theirs_is_one_of_ours(name: str) -> None:
    mapped = [our_name(key) for key in NETWORKS[name]["shapes"] if not key.endswith("sv0")]
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == set(build(name, NETWORKS[name]["arguments"]).state_dict())


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_moved_statistics_are_the_authors(name: str) -> None:
    """A training step, another training forward, an evaluation. Statistics move in forward there, and here at the commit."""
    network, recorded = filled(name), NETWORKS[name]
    assert_step(network, name, recorded["training"])
    commit(network, torch.tensor(True))
    buffers = buffers_by_their_names(network, name)
    assert_summaries({key: summary(key, buffer) for key, buffer in buffers.items()}, recorded["moved_buffers"])
    x, labels = inputs(name, recorded["arguments"])
    assert_excerpt(output_of(network, x, labels), recorded["second_training_output"], "second output")
    commit(network, torch.tensor(True))
    assert_step(network.eval(), name, recorded["evaluation"])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_orthogonal_penalty_has_the_gradient_that_the_authors_add(name: str) -> None:
    network = filled(name)
    Orthogonal(weight=ORTHOGONAL_STRENGTH).penalty(network).backward()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    ours = gradients(by_their_names(network, name))
    assert_summaries(ours, NETWORKS[name]["orthogonal_regularisation"])


@pytest.mark.parametrize("name", RECORDING["published"])
def test_the_published_networks_have_the_authors_number_of_parameters(name: str) -> None:
    published = RECORDING["published"][name]
    with torch.device("meta"):
        network = build(name, published["arguments"])
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]


@pytest.mark.parametrize(
    ("recipe", "name"),
    [
        ("biggan_imagenet", "generator_128"),
        ("biggan_imagenet", "discriminator_128"),
        ("biggan_cifar10", "generator_32"),
    ],
)
def test_the_recipes_networks_have_the_authors_number_of_parameters(recipe: str, name: str) -> None:
    """Not CIFAR-10's discriminator: their table for 32x32 calls every block 16x16, and so puts attention behind each."""
    options = load_recipe(RECIPES / f"{recipe}.yaml")
    component = name.partition("_")[0]
    kind = {"generator": Generator, "discriminator": Discriminator}[component]
    build = partial(kind, getattr(options.family, component), options.data.image_size)
    with torch.device("meta"):
        network = build(RECORDING["published"][name]["arguments"]["n_classes"])
    assert sum(parameter.numel() for parameter in network.parameters()) == RECORDING["published"][name]["parameters"]
