"""BigGAN: sizes and options, initial weights. Its values are held by test_recordings_biggan.py."""

import pytest
import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.biggan import (
    DISCRIMINATOR_WIDTHS,
    GENERATOR_WIDTHS,
    Discriminator,
    DiscriminatorOptions,
    Generator,
    GeneratorOptions,
    SelfAttention,
    latent_size,
)
from bigtrain.networks.layers.normalisation import ConditionalBatchNorm, SpectralNorm

RESOLUTIONS = sorted(GENERATOR_WIDTHS)
LATENT_PER_BLOCK = 3


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def small_generator(resolution: int, classes: int = 4, attention: int | None = 8) -> Generator:
    options = GeneratorOptions(
        channels=8, latent_per_block=LATENT_PER_BLOCK, class_embedding=6, attention_resolution=attention
    )
    return Generator(options, resolution, classes)


def latents(samples: int, generator: Generator) -> Tensor:
    return torch.randn(samples, LATENT_PER_BLOCK * (1 + len(generator.blocks)))


def small_discriminator(resolution: int, classes: int = 4, attention: int | None = 8) -> Discriminator:
    return Discriminator(DiscriminatorOptions(channels=8, attention_resolution=attention), resolution, classes)


# ------------------------------------------------------------------------------------------------- sizes and options


def test_cifar10s_networks_have_studiogans_numbers_of_parameters() -> None:
    """BigGAN-PyTorch has no such discriminator: it would put attention behind every block."""
    with torch.device("meta"):
        generator = Generator(GeneratorOptions(attention_resolution=16), 32, 10)
        discriminator = Discriminator(DiscriminatorOptions(attention_resolution=16), 32, 10)
    assert (count(generator), count(discriminator)) == (9_416_196, 2_415_170)


@pytest.mark.parametrize(("resolution", "latent"), [(16, 60), (32, 80), (64, 100), (128, 120), (256, 140), (512, 160)])
def test_z_has_a_chunk_for_the_first_layer_and_one_for_every_block(resolution: int, latent: int) -> None:
    assert latent_size(GeneratorOptions(), resolution) == latent


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_resolution_makes_images_and_gives_them_logits(resolution: int) -> None:
    torch.manual_seed(0)
    channels = 8 if resolution <= 64 else 1  # the largest in the time of a test
    attention = 8 if resolution <= 64 else None
    options = GeneratorOptions(channels=channels, attention_resolution=attention)
    generator = Generator(options, resolution, 3)
    discriminator = Discriminator(
        DiscriminatorOptions(channels=channels, attention_resolution=attention), resolution, 3
    )
    labels = torch.tensor([0, 2])
    images = generator(torch.randn(2, latent_size(options, resolution)), labels)
    assert images.shape == (2, 3, resolution, resolution)
    assert images.abs().max() <= 1
    logits = discriminator(images, labels)
    assert logits.shape == (2,)
    logits.sum().backward()
    for network in (generator, discriminator):
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def test_tables_agree_with_the_resolutions_they_stand_for() -> None:
    assert list(DISCRIMINATOR_WIDTHS) == list(GENERATOR_WIDTHS)
    for resolution, (inputs, outputs) in GENERATOR_WIDTHS.items():
        assert 4 * 2 ** len(outputs) == resolution
        assert inputs[1:] == outputs[:-1]
        widths, halvings = DISCRIMINATOR_WIDTHS[resolution]
        assert halvings < len(widths), "the last block keeps its resolution"
        assert resolution >> halvings == (8 if resolution == 32 else 4)


@pytest.mark.parametrize("component", ["generator", "discriminator"])
def test_attention_where_there_are_no_features_names_the_key_and_the_choices(component: str) -> None:
    build, choices = {"generator": (small_generator, "8, 16"), "discriminator": (small_discriminator, "4, 8")}[
        component
    ]
    with pytest.raises(UserError, match=rf"family\.{component}\.attention_resolution: .* 64; choose {choices} or null"):
        build(16, attention=64)


def test_attention_on_features_that_8_does_not_divide_names_the_key() -> None:
    with pytest.raises(UserError, match=r"family\.discriminator\.channels: .* 6 features"):
        Discriminator(DiscriminatorOptions(channels=3, attention_resolution=16), 32, 4)


@pytest.mark.parametrize(
    "build", [small_generator, small_discriminator, lambda resolution: latent_size(GeneratorOptions(), resolution)]
)
def test_a_resolution_without_a_table_names_the_key_and_the_choices(build) -> None:
    with pytest.raises(UserError, match=r"data\.image_size: .* 48; choose one of 16, 32, 64, 128, 256, 512"):
        build(48)


@pytest.mark.parametrize(
    ("build", "resolution", "attention", "after"),
    [(small_generator, 32, 16, 1), (small_discriminator, 64, 16, 1), (small_discriminator, 32, 8, 1)],
)
def test_attention_follows_the_first_block_with_the_asked_resolution(build, resolution, attention, after) -> None:
    network, seen = build(resolution, attention=attention), []
    assert network.attention_after == after
    network.attention.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[2:]))
    if isinstance(network, Generator):
        network(latents(2, network), torch.tensor([0, 1]))
    else:
        network(torch.randn(2, 3, resolution, resolution), torch.tensor([0, 1]))
    assert seen == [(attention, attention)]


def test_every_option_reaches_the_layer_that_it_names() -> None:
    options = GeneratorOptions(
        channels=8,
        attention_resolution=8,
        batch_norm_eps=1e-4,
        batch_norm_momentum=0.2,
        spectral_norm_eps=1e-3,
    )
    generator = Generator(options, 16, 4)
    norms = [generator.norm, *(m.norm for m in generator.modules() if isinstance(m, ConditionalBatchNorm))]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-4, 0.2)}
    discriminator = Discriminator(
        DiscriminatorOptions(channels=8, attention_resolution=8, spectral_norm_eps=1e-3), 16, 4
    )
    for network in (generator, discriminator):
        layers = [module for module in network.modules() if isinstance(module, SpectralNorm)]
        assert len(layers) > 10
        assert {layer.eps for layer in layers} == {1e-3}


# ---------------------------------------------------------------------------------------------------- initial weights


def matrices(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().flatten(1) for name, p in network.named_parameters() if p.dim() >= 2}


@pytest.mark.parametrize("build", [small_generator, small_discriminator])
def test_orthogonal_init_makes_every_weight_orthogonal_and_every_bias_zero(build) -> None:
    network = build(16)
    for name, matrix in matrices(network).items():
        short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
        torch.testing.assert_close(short @ short.t(), torch.eye(len(short)), rtol=0, atol=1e-5, msg=name)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name


@pytest.mark.parametrize("build", [Generator, Discriminator])
def test_n02_init_draws_normal_weights_of_standard_deviation_002(build) -> None:
    torch.manual_seed(0)
    options = {Generator: GeneratorOptions, Discriminator: DiscriminatorOptions}[build]
    network = build(options(channels=8, attention_resolution=8, init="n02"), 16, 40)
    for name, matrix in matrices(network).items():
        if matrix.numel() > 1000:
            assert matrix.std() == pytest.approx(0.02, rel=0.1), name
    assert not any(p.any() for name, p in network.named_parameters() if name.endswith("bias") and p.dim() == 1)


@pytest.mark.parametrize("build", [small_generator, small_discriminator])
def test_initial_weights_are_a_function_of_torchs_seed(build) -> None:
    states = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        states.append(build(16).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["linear.weight"], states[2]["linear.weight"])
    assert not torch.equal(states[0]["blocks.0.conv1.u"], states[2]["blocks.0.conv1.u"])


# ------------------------------------------------------------------------------------- what a forward does and does not


@pytest.mark.parametrize("variant", ["brock", "studiogan"])
def test_the_discriminator_leaves_its_input_as_it_is(variant: str) -> None:
    """ReLUs work in place where they can."""
    images = torch.randn(3, 3, 16, 16)
    before = images.clone()
    options = DiscriminatorOptions(variant=variant, channels=8, attention_resolution=8)
    Discriminator(options, 16, 4)(images, torch.tensor([3, 0, 3]))
    assert torch.equal(images, before)


def test_the_sums_that_make_a_logit_stay_float32_under_autocast() -> None:
    network, seen = small_discriminator(16), []
    for layer in (network.linear, network.embedding):
        layer.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    network.linear.register_forward_hook(lambda module, args, output: seen.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(torch.rand(2, 3, 16, 16), torch.tensor([0, 1]))
    assert seen == [torch.float32] * 3


def test_attention_starts_as_the_identity() -> None:
    block = SelfAttention(16, eps=1e-6)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)
