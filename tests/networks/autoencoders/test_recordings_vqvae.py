"""VQ-VAE-2 is that of vq-vae-2-pytorch, by values of the authors' code (tests/recordings/vq_vae_2_pytorch.py)."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from bigtrain.exchange.convert.sources.vq_vae_2 import our_name, our_tensors
from bigtrain.families.autoencoders.vqvae import VQVAE, VQVAEOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Microbatch
from bigtrain.networks.autoencoders.vqvae import Autoencoder, AutoencoderOptions
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.randomness import Draws
from bigtrain.recipe import load_recipe
from bigtrain.sizes import size_of
from tests.recordings.summary import assert_excerpt, assert_summaries, gradients, read, summary
from tests.recordings.vq_vae_2_pytorch import (
    COMMITMENT_WEIGHT,
    IMAGE_SIZE,
    IMAGES,
    LEARNING_RATE,
    VECTORS,
    given_codes,
    images,
    value,
)

RECIPES = Path(__file__).parents[3] / "recipes"
RECORDING = read("vq_vae_2_pytorch")
RECORDED = RECORDING["network"]
SMOOTHING = 1e-5
"""Theirs, in vectors of a step."""
LEVELS = {"t": "top", "b": "bottom"}


def options_of(arguments: dict[str, int]) -> dict[str, Any]:
    """Ours of the arguments to the constructor of theirs, whose decay is always 0.99; their codes never come back."""
    ours = {
        "channel": "channels",
        "n_res_block": "residual_layers",
        "n_res_channel": "residual_channels",
        "embed_dim": "embedding_dim",
        "n_embed": "codebook_size",
    }
    fixed = {"levels": {"bottom": 4, "top": 2}, "codebook_decay": 0.99, "dead_code_threshold": 0}
    return fixed | {ours[name]: size for name, size in arguments.items()}


def family() -> VQVAE:
    options = {
        "kind": "vqvae",
        "autoencoder": options_of(RECORDED["arguments"]),
        "commitment_weight": COMMITMENT_WEIGHT,
        "optimizer": {"lr": LEARNING_RATE},
    }
    return VQVAE(VQVAEOptions.model_validate(options), DataSpec((IMAGE_SIZE, IMAGE_SIZE), 3, ("a",), (IMAGES,)))


def filled(vqvae: VQVAE) -> Autoencoder:
    """Our network with the recorded one's weights and codebooks, in float64."""
    network = Autoencoder(vqvae.options.autoencoder, (IMAGE_SIZE, IMAGE_SIZE), 3, IMAGES).double()
    tensors = our_tensors({key: value(key, shape) for key, shape in RECORDED["shapes"].items()})
    _, unexpected = network.load_state_dict(tensors, strict=False)
    assert not unexpected
    for letter, level in LEVELS.items():
        quantiser = network.quantisers()[level]
        smoothing = SMOOTHING * quantiser.options.codebook_size / VECTORS[letter]
        quantiser.options = quantiser.options.model_copy(update={"codebook_smoothing": smoothing})
    set_recording(network, True)
    return network


def parameters_by_their_names(network: Autoencoder) -> dict[str, torch.nn.Parameter]:
    ours = dict(network.named_parameters())
    return {key: ours[our_name(key)] for key in RECORDED["shapes"] if our_name(key) in ours}


def buffers_by_their_names(network: Autoencoder) -> dict[str, Tensor]:
    """In their orientation and units."""
    state = network.state_dict()
    buffers = {}
    for letter in LEVELS:
        codebook, usage, sums = (
            state[our_name(f"quantize_{letter}.{kind}")] for kind in ("embed", "cluster_size", "embed_avg")
        )
        units = VECTORS[letter] / len(codebook)
        buffers |= {
            f"quantize_{letter}.embed": codebook.t(),
            f"quantize_{letter}.cluster_size": usage * units,
            f"quantize_{letter}.embed_avg": sums.t() * units,
        }
    return buffers


def test_every_tensor_of_theirs_is_one_of_ours() -> None:
    mapped = [our_name(key) for key in RECORDED["shapes"]]
    ours = Autoencoder(
        AutoencoderOptions.model_validate(options_of(RECORDED["arguments"])), (IMAGE_SIZE, IMAGE_SIZE), 3, IMAGES
    )
    readings = ("updates", "used", "epoch_vectors", "epoch_usage")
    left = {"pixel_variance"} | {f"levels.{level}.quantiser.{reading}" for level in (0, 1) for reading in readings}
    assert len(mapped) == len(set(mapped))
    assert set(mapped) == set(ours.state_dict()) - left


def test_two_training_steps_are_the_authors() -> None:
    """Codes, reconstruction, loss, gradients (straight through the codes), and the codebooks' moving averages."""
    vqvae = family()
    network = filled(vqvae)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)
    for number, recorded in enumerate(RECORDED["steps"]):
        x = images(number).requires_grad_()
        with torch.no_grad():
            codes = network.eval().encode(x)
            assert {letter: codes[level].tolist() for letter, level in LEVELS.items()} == recorded["codes"]
            assert_excerpt(network(x).images, recorded["output"], "reconstruction")
        batch = Microbatch({"image": x}, range(IMAGES), Draws(0), x.device, IMAGES)
        losses = vqvae.loss({"autoencoder": network.train()}, batch)
        optimizer.zero_grad()
        losses.total.backward()
        assert losses.total.item() == pytest.approx(recorded["loss"], rel=1e-9)
        assert losses.terms["commitment"].item() == pytest.approx(recorded["latent_loss"], rel=1e-9)
        assert_summaries(gradients({"input": x, **parameters_by_their_names(network)}), recorded["gradients"])
        optimizer.step()
        commit(network, torch.tensor(True))
        moved = {key: summary(key, buffer) for key, buffer in buffers_by_their_names(network).items()}
        assert_summaries(moved, recorded["moved_buffers"])
    with torch.no_grad():
        assert_excerpt(network.eval()(images(2)).images, RECORDED["reconstruction"], "reconstruction after the steps")
        decoded = network.decode({level: given_codes(letter) for letter, level in LEVELS.items()})
        assert_excerpt(decoded, RECORDED["decoded"], "decoded codes")


@pytest.mark.parametrize("name", RECORDING["published"])
def test_the_published_networks_have_the_authors_number_of_parameters(name: str) -> None:
    published = RECORDING["published"][name]
    with torch.device("meta"):
        network = Autoencoder(
            AutoencoderOptions.model_validate(options_of(published["arguments"])), (256, 256), 3, 1000
        )
    assert sum(parameter.numel() for parameter in network.parameters()) == published["parameters"]


def test_the_recipes_network_has_the_authors_number_of_parameters() -> None:
    recipe = load_recipe(RECIPES / "vqvae2_imagenet.yaml")
    options = cast(VQVAEOptions, recipe.family).autoencoder
    with torch.device("meta"):
        network = Autoencoder(options, size_of(recipe.data.image_size), 3, 1000)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    assert parameters == RECORDING["published"]["the paper's"]["parameters"]
