"""The residual networks: sizes, options, initial weights. Their values are held by test_recordings_resnet.py."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.adversarial.resnet import DiscriminatorOptions, GeneratorOptions
from bigtrain.networks.layers.normalisation import ClassBatchNorm, SpectralNorm
from bigtrain.recipe import load_recipe

RECIPES = Path(__file__).parents[3] / "recipes"


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("size", "smallest"),
    [
        ((8, 8), (4, 4)),
        ((28, 28), (7, 7)),
        ((24, 16), (6, 4)),
        ((48, 48), (6, 6)),
        ((64, 64), (4, 4)),
        ((128, 64), (8, 4)),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_sizes_that_halve_often_enough_make_images_and_get_logits(
    size: tuple[int, int], smallest: tuple[int, int], channels: int
) -> None:
    torch.manual_seed(0)
    generator = GeneratorOptions(channels=2, latent=5, conditioning="batch_norm").build(size, channels, 3)
    discriminator = DiscriminatorOptions(channels=2, conditioning="projection").build(size, channels, 3)
    labels = torch.tensor([0, 2, 2])
    images = generator(torch.randn(3, 5), labels)
    assert images.shape == (3, channels, *size)
    assert images.abs().max() <= 1
    assert generator.smallest == smallest
    logits = discriminator(images, labels)
    assert logits.shape == (3,)
    logits.square().sum().backward()
    for network in (generator, discriminator):
        assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


def test_multipliers_say_the_number_of_blocks_and_their_widths() -> None:
    generator = GeneratorOptions(channels=2, multipliers=[8, 4, 1]).build((20, 12), 3, 0)
    assert [block.conv1.weight.shape[:2] for block in generator.blocks] == [(8, 16), (2, 8)]
    assert generator.smallest == (5, 3)
    options = DiscriminatorOptions(channels=2, multipliers=[1, 3, 3], halvings=1)
    discriminator = options.build((20, 12), 3, 0)
    assert [block.conv2.weight.shape[:2] for block in discriminator.blocks] == [(2, 2), (6, 2), (6, 6)]
    assert [block.halves for block in discriminator.blocks] == [True, False, False]
    assert isinstance(discriminator.blocks[2].shortcut, nn.Identity)
    assert generator(torch.randn(2, 128)).shape == (2, 3, 20, 12)


@pytest.mark.parametrize(
    ("options", "size", "message"),
    [
        (GeneratorOptions(), (4, 4), r"even, from 8 to 1022, not 4; set family\.generator\.multipliers"),
        (GeneratorOptions(), (15, 16), r"even, from 8 to 1022, not 15 x 16"),
        (DiscriminatorOptions(), (2048, 2048), r"even, from 8 to 1022, not 2048; set family\.discriminator\.m"),
        (
            GeneratorOptions(multipliers=[1, 1, 1]),
            (18, 16),
            r"changes the size 2 times takes .* multiples of 4, not 18 x 16",
        ),
        (
            DiscriminatorOptions(multipliers=[1] * 4, halvings=3),
            (20, 16),
            r"changes the size 3 times .* of 8, not 20 x 16",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_refused(options: Any, size: tuple[int, int], message: str) -> None:
    with pytest.raises(UserError, match=rf"data\.image_size: .*{message}"):
        options.check_size(size)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"halvings": 2}, "halvings goes with multipliers, and only with it"),
        ({"multipliers": [1, 1]}, "halvings goes with multipliers, and only with it"),
        ({"multipliers": [1, 1], "halvings": 3}, "halvings: there are only 2 blocks in multipliers"),
    ],
)
def test_halvings_are_of_blocks_that_a_recipe_names(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiscriminatorOptions(**options)


def test_initial_weights_are_those_of_the_authors() -> None:
    """Glorot's uniform ones; those of the 3x3 convolutions in blocks are sqrt(2) times as wide."""
    torch.manual_seed(0)
    networks = [
        GeneratorOptions(channels=32, conditioning="batch_norm").build((16, 16), 3, 10),
        DiscriminatorOptions(channels=32, conditioning="projection").build((16, 16), 3, 10),
        DiscriminatorOptions(channels=32, norm="none", conditioning="projection").build((16, 16), 3, 10),
    ]
    seen = 0
    for name, module in (named for network in networks for named in network.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | SpectralNorm) or name == "embedding":
            fans = nn.init._calculate_fan_in_and_fan_out(module.weight)
            largest = math.sqrt((12 if name.startswith("blocks") and ".conv" in name else 6) / sum(fans))
            assert 0.9 * largest < module.weight.abs().max() <= largest, name
            assert getattr(module, "bias", None) is None or not module.bias.any()
            seen += 1
        elif isinstance(module, ClassBatchNorm):
            assert (module.gain.weight == 1).all()
            assert not module.bias.weight.any()
    assert seen == (2 + 2 * 3) + 2 * (2 + 4 * 2 + 2)


def test_the_discriminator_gives_what_it_is_asked_for_beside_the_same_logits() -> None:
    options, images = DiscriminatorOptions(channels=4), torch.randn(3, 1, 16, 16)
    found, networks = {}, {}
    for outputs in ((), ("features",), ("class_logits",), ("features", "class_logits")):
        torch.manual_seed(0)
        networks[outputs] = options.build((16, 16), 1, 5, frozenset(outputs))
        found[outputs] = Outputs.of(networks[outputs](images))
        assert (found[outputs].features is not None) == ("features" in outputs)
        assert (found[outputs].class_logits is not None) == ("class_logits" in outputs)
    assert torch.equal(found["features",].logits, found[()].logits)
    assert found["class_logits",].class_logits.shape == (3, 5)
    whole = networks["features", "class_logits"]
    everything = found["features", "class_logits"]
    assert torch.equal(whole.linear(everything.features).squeeze(1), everything.logits)
    assert count(networks["class_logits",]) - count(networks[()]) == 5 * 4 + 5


def test_a_mean_over_positions_is_their_sum_divided_by_their_number() -> None:
    features = {}
    for pooling in ("sum", "mean"):
        torch.manual_seed(0)
        network = DiscriminatorOptions(channels=4, pooling=pooling).build((16, 16), 1, 0, frozenset({"features"}))
        features[pooling] = network(torch.ones(2, 1, 16, 16)).features
    torch.testing.assert_close(features["sum"], features["mean"] * 4 * 4)


def test_a_projection_tells_the_classes_apart_and_logits_are_exact_under_autocast() -> None:
    torch.manual_seed(0)
    network = DiscriminatorOptions(channels=4, conditioning="projection").build(
        (16, 16), 1, 5, frozenset({"features", "class_logits"})
    )
    images = torch.randn(1, 1, 16, 16).expand(2, -1, -1, -1)
    outputs = network(images, torch.tensor([0, 3]))
    plain = network.linear(outputs.features).squeeze(1)
    torch.testing.assert_close(
        outputs.logits - plain, (network.embedding(torch.tensor([0, 3])) * outputs.features).sum(1)
    )
    assert outputs.logits[0] != outputs.logits[1]
    with torch.autocast("cpu", torch.bfloat16):
        outputs = network(images, torch.tensor([0, 3]))
    assert {outputs.logits.dtype, outputs.features.dtype, outputs.class_logits.dtype} == {torch.float32}


def test_the_discriminator_leaves_its_input_as_it_is() -> None:
    images = torch.randn(3, 3, 16, 16)
    before = images.clone()
    DiscriminatorOptions(channels=4).build((16, 16), 3, 0)(images)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("recipe", "size", "classes", "counts"),
    [
        ("wgan_gp_cifar10", 32, 10, (1_204_483, 1_053_825)),
        ("wgan_gp_cifar10_classes", 32, 10, (1_218_307, 1_055_115)),
        ("sngan_cifar10", 32, 10, (4_276_739, 1_053_824)),
        ("sngan_cifar10_classes", 32, 10, (4_304_387, 1_055_104)),
        ("sngan_imagenet128", 128, 1000, (41_996_931, 30_041_857)),
    ],
)
def test_the_recipes_train_the_published_networks(
    recipe: str, size: int, classes: int, counts: tuple[int, int]
) -> None:
    """Counted by hand in the authors' code, which is TensorFlow and Chainer."""
    options = load_recipe(RECIPES / f"{recipe}.yaml").family
    with torch.device("meta"):
        made = options.generator.build((size, size), 3, classes)
        seen = options.discriminator.build((size, size), 3, classes, options.asks)
    assert (count(made), count(seen)) == counts
