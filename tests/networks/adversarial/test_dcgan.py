"""DCGAN: parameter counts, sizes, options, initial weights."""

import pytest
import torch
from torch import nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.adversarial.dcgan import DiscriminatorOptions, GeneratorOptions
from bigtrain.networks.layers.normalisation import SpectralNorm, SyncedBatchNorm


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_networks_have_the_published_numbers_of_parameters() -> None:
    """As pytorch/examples/dcgan counts them."""
    with torch.device("meta"):
        networks = [options().build((64, 64), 3, 0) for options in (GeneratorOptions, DiscriminatorOptions)]
    assert [count(network) for network in networks] == [3_576_704, 2_765_568]


def test_biases_take_the_place_of_batch_norm() -> None:
    for norm, parameters in (("batch", 34_432), ("none", 34_401), ("spectral", 34_401)):
        options = DiscriminatorOptions(channels=32, norm=norm)
        network = options.build((16, 16), 1, 0)
        assert count(network) == parameters
        kinds = [type(module) for module in network.modules()]
        assert kinds.count(SyncedBatchNorm) == (1 if norm == "batch" else 0)
        assert kinds.count(SpectralNorm) == (3 if norm == "spectral" else 0)
        assert options.batch_statistics == (norm == "batch")


@pytest.mark.parametrize("side", [8, 16, 32, 128])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_power_of_two_makes_images_and_gives_them_logits(side: int, channels: int) -> None:
    generator = GeneratorOptions(channels=2, latent=5).build((side, side), channels, 0)
    discriminator = DiscriminatorOptions(channels=2).build((side, side), channels, 0)
    images = generator(torch.randn(3, 5))
    assert images.shape == (3, channels, side, side)
    assert images.abs().max() <= 1
    logits = discriminator(images)
    assert logits.shape == (3,)
    logits.square().sum().backward()
    for network in (generator, discriminator):
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize("size", [(4, 4), (24, 24), (32, 16)])
@pytest.mark.parametrize("options", [GeneratorOptions(), DiscriminatorOptions()], ids=["generator", "discriminator"])
def test_another_size_is_refused(options, size: tuple[int, int]) -> None:
    with pytest.raises(
        UserError, match=r"data\.image_size: DCGAN makes squares whose side is a power of two from 8 on"
    ):
        options.check_size(size)


def test_initial_weights_are_normal() -> None:
    torch.manual_seed(0)
    for options in (
        GeneratorOptions(channels=16),
        DiscriminatorOptions(channels=16),
        DiscriminatorOptions(norm="none"),
    ):
        for module in options.build((32, 32), 3, 0).modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.1)
                assert module.bias is None or not module.bias.any()
            elif isinstance(module, SyncedBatchNorm):
                assert module.weight.mean().item() == pytest.approx(1.0, abs=0.02)
                assert 0.01 < module.weight.std() < 0.03
                assert not module.bias.any()


def test_outputs_are_float32_under_autocast() -> None:
    generator, discriminator = (
        options.build((16, 16), 1, 0) for options in (GeneratorOptions(channels=4), DiscriminatorOptions(channels=4))
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        images = generator(torch.randn(4, 100))
        assert images.dtype == discriminator(images).dtype == torch.float32


def test_the_discriminator_gives_what_it_is_asked_for_beside_the_same_logits() -> None:
    options, images = DiscriminatorOptions(channels=2, norm="spectral"), torch.randn(3, 1, 16, 16)
    networks, logits = {}, {}
    for outputs in ((), ("features",), ("class_logits",), ("features", "class_logits")):
        torch.manual_seed(0)
        networks[outputs] = network = options.build((16, 16), 1, 5, frozenset(outputs))
        found = Outputs.of(network(images))
        logits[outputs] = found.logits
        assert (found.features is not None) == ("features" in outputs)
        assert (found.class_logits is not None) == ("class_logits" in outputs)
    assert found.class_logits.shape == (3, 5)
    assert torch.equal(networks["features", "class_logits"].conv(found.features).flatten(), found.logits)
    assert torch.equal(logits["features",], logits[()])
    assert count(networks["features",]) == count(networks[()])
    assert count(networks["class_logits",]) - count(networks[()]) == 5 * (4 * 4 * 4 + 1)


def test_class_logits_are_exact_under_autocast() -> None:
    network = DiscriminatorOptions(channels=2).build((16, 16), 1, 5, frozenset({"class_logits"}))
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(torch.randn(2, 1, 16, 16))
    assert (outputs.logits.dtype, outputs.class_logits.dtype) == (torch.float32, torch.float32)
