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


# ------------------------------------------------------------------------------ classes, reference batches, minibatches


@pytest.mark.parametrize("conditioning", ["concatenation", "batch_norm"])
@pytest.mark.parametrize("norm", ["batch", "virtual", "reference"])
def test_a_generator_that_is_told_the_class_makes_another_image_of_it(conditioning: str, norm: str) -> None:
    if conditioning == "batch_norm" and norm != "batch":
        with pytest.raises(ValueError, match="conditioning: batch_norm goes with norm: batch; take concatenation"):
            GeneratorOptions(conditioning=conditioning, norm=norm)
        return
    options = GeneratorOptions(channels=2, latent=5, conditioning=conditioning, norm=norm, reference_batch=3)
    assert options.class_conditional
    network = options.build((16, 16), 1, 4)
    with torch.no_grad():
        for parameter in network.parameters():  # gains and biases by class start alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = network.eval()(torch.randn(1, 5).expand(3, -1), torch.tensor([0, 3, 3]))
    assert not torch.allclose(images[0], images[1])
    torch.testing.assert_close(images[1], images[2])


@pytest.mark.parametrize("conditioning", ["concatenation", "projection"])
@pytest.mark.parametrize("norm", ["batch", "virtual", "reference", "spectral", "none"])
def test_a_discriminator_that_is_told_the_class_gives_another_logit(conditioning: str, norm: str) -> None:
    options = DiscriminatorOptions(channels=2, conditioning=conditioning, norm=norm, reference_batch=3)
    network = options.build((16, 16), 1, 4, frozenset({"features"}))
    outputs = network(torch.rand(1, 1, 16, 16).expand(3, -1, -1, -1), torch.tensor([0, 3, 3]))
    assert outputs.logits[0] != outputs.logits[1]
    torch.testing.assert_close(outputs.logits[1], outputs.logits[2])
    assert outputs.features.shape == (3, 4, 4, 4)
    assert isinstance(network.embedding, SpectralNorm) == (conditioning == "projection" and norm == "spectral")


def test_concatenation_gives_the_class_to_every_layer() -> None:
    generator = GeneratorOptions(channels=2, latent=5, conditioning="concatenation").build((16, 16), 1, 3)
    assert [layer.conv.in_channels for layer in generator.layers] == [5 + 3, 4 + 3]
    assert generator.conv.in_channels == 2 + 3
    discriminator = DiscriminatorOptions(channels=2, conditioning="concatenation").build(
        (16, 16), 1, 3, frozenset({"class_logits"})
    )
    assert [layer.conv.in_channels for layer in discriminator.layers] == [1 + 3, 2 + 3]
    assert discriminator.conv.in_channels == discriminator.classifier.in_channels == 4 + 3


@pytest.mark.parametrize("norm", ["virtual", "reference"])
def test_with_a_reference_batch_what_a_network_makes_of_a_sample_depends_on_no_other(norm: str) -> None:
    torch.manual_seed(0)
    made = GeneratorOptions(channels=2, latent=5, norm=norm, reference_batch=3).build((16, 16), 1, 0)
    seen = DiscriminatorOptions(channels=2, norm=norm, reference_batch=3).build((16, 16), 1, 0)
    for network, inputs in ((made, torch.randn(4, 5)), (seen, torch.rand(4, 1, 16, 16))):
        whole = network(inputs)
        assert len(whole) == 4
        torch.testing.assert_close(torch.cat([network(one) for one in inputs.split(1)]), whole)
        network.reference.samples.mul_(0.5)
        assert not torch.allclose(network(inputs), whole)
        assert not any(isinstance(module, SyncedBatchNorm) for module in network.modules())
    assert not DiscriminatorOptions(norm=norm).batch_statistics


@pytest.mark.parametrize(
    ("minibatch", "more"),
    [({"kind": "discrimination", "appended_features": 7}, 7), ({"kind": "deviation", "compared_images": None}, 1)],
)
def test_the_last_layer_is_told_how_alike_the_images_are(minibatch: dict, more: int) -> None:
    options = DiscriminatorOptions(channels=2, norm="none", minibatch=minibatch)
    network = options.build((16, 16), 1, 5, frozenset({"class_logits"}))
    assert network.conv.in_channels == network.classifier.in_channels == 4 + more
    assert options.compares_images
    assert not options.batch_statistics
    images = torch.rand(3, 1, 16, 16)
    alike = torch.cat([images[:1], images[:1], images[:1]])
    assert network(images).logits[0] != network(alike).logits[0]
