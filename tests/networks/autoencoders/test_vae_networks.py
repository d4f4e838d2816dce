import math
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from bigtrain.families.autoencoders.vae import AnyNetwork
from bigtrain.networks.autoencoders.latents import GaussianLatents
from bigtrain.networks.autoencoders.vae import Autoencoder

UNION = TypeAdapter(AnyNetwork)
NETWORKS = {
    "convolutional": {"kind": "convolutional", "channels": 8, "multipliers": [1, 2], "latent_size": 3},
    "fully connected": {"kind": "fully_connected", "hidden_features": 16, "latent_size": 3},
}
each = pytest.mark.parametrize("given", NETWORKS.values(), ids=NETWORKS)


def build(
    given: dict[str, Any], image: tuple[int, int, int] = (1, 8, 8), classes: int = 0, maps: Tensor | None = None
) -> Autoencoder:
    torch.manual_seed(0)
    options = UNION.validate_python(given)
    return options.build(image, classes, GaussianLatents(), torch.zeros(2) if maps is None else maps)


def parameters(network: Autoencoder) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_textbooks_network_has_its_parameters() -> None:
    """784-400-20-400-784, as in PyTorch's examples."""
    network = build({"kind": "fully_connected"}, (1, 28, 28), maps=torch.zeros(1))
    assert parameters(network) == 652_824
    classes = build({"kind": "fully_connected"}, (1, 28, 28), classes=10, maps=torch.zeros(1))
    assert parameters(classes) == 652_824 + 2 * 10 * 400


@each
@pytest.mark.parametrize("image", [(1, 8, 8), (3, 6, 10)], ids=str)
@pytest.mark.parametrize("classes", [0, 4])
def test_shapes(given: dict, image: tuple[int, int, int], classes: int) -> None:
    network = build(given, image, classes)
    labels = torch.tensor([0, 3]) if classes else None
    x = torch.rand(2, *image)
    assert [each.shape for each in network.encode(x, labels)] == [(2, 3), (2, 3)], "mu, log sigma"
    drawn = network(x, labels, torch.randn(2, 3))
    assert drawn.maps.shape == (2, 2, *image[1:])
    assert [kl.shape for kl in drawn.kl] == [(2, 3)]
    assert drawn.log_ratio.shape == (2,)


@each
def test_the_latents_are_the_mean_and_the_noise_times_the_deviation(given: dict) -> None:
    network, x, epsilon = build(given), torch.rand(2, 1, 8, 8), torch.randn(2, 3)
    mu, log_sigma = network.encode(x, None)
    assert torch.equal(network(x, None, epsilon).maps, network.decode(mu + log_sigma.exp() * epsilon, None))


@each
def test_the_class_reaches_the_encoder_and_the_decoder(given: dict) -> None:
    network, x, z = build(given, classes=4), torch.rand(2, 1, 8, 8), torch.randn(2, 3)
    zeros, ones = torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64)
    assert not torch.allclose(network.encode(x, zeros)[0], network.encode(x, ones)[0])
    assert not torch.allclose(network.decode(z, zeros), network.decode(z, ones))


@each
def test_an_untrained_decoders_maps_are_near_those_that_it_is_given(given: dict) -> None:
    initial = torch.tensor([5.0, -3.0])
    maps = build(given, maps=initial).decode(torch.randn(4, 3), None)
    assert (maps - initial.view(2, 1, 1)).abs().max() < 1


@each
def test_the_posterior_and_the_maps_are_in_float32_under_autocast(given: dict) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        made = build(given)(torch.rand(2, 1, 8, 8), None, torch.randn(2, 3))
    assert {tensor.dtype for tensor in (made.maps, *made.kl, made.log_ratio)} == {torch.float32}


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (28, 28)], ids=str)
def test_a_convolutional_network_halves_as_often_as_it_has_levels(size: tuple[int, int]) -> None:
    options = UNION.validate_python({"channels": 4, "multipliers": [1, 2, 3]})
    options.check_size(size)
    output = build({"channels": 4, "multipliers": [1, 2, 3]}, (1, *size)).encoder.rest[-1]
    assert output.in_features == 4 * 3 * math.prod(size) // 16
    with pytest.raises(
        ValueError, match=r"3 levels need a data\.image_size that is divisible by 4, and 16 x 18 is not"
    ):
        options.check_size((16, 18))
