"""BigGAN against the paper: parameter counts, and every block against a plain transcription of the figures."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.biggan import (
    DISCRIMINATOR_WIDTHS,
    GENERATOR_WIDTHS,
    Discriminator,
    DiscriminatorBlock,
    DiscriminatorOptions,
    Generator,
    GeneratorBlock,
    GeneratorOptions,
    SelfAttention,
    _off_diagonal,
    latent_size,
    orthogonal_penalty,
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


@pytest.mark.parametrize(
    ("resolution", "classes", "attention", "generator", "discriminator"),
    [(128, 1000, 64, 70_433_988, 87_982_370), (32, 10, 16, 9_416_196, 2_415_170)],
    ids=["ImageNet 128x128", "CIFAR-10"],
)
def test_parameter_counts_are_the_published_ones(resolution, classes, attention, generator, discriminator) -> None:
    with torch.device("meta"):
        g = Generator(GeneratorOptions(attention_resolution=attention), resolution, classes)
        d = Discriminator(DiscriminatorOptions(attention_resolution=attention), resolution, classes)
    assert (count(g), count(d)) == (generator, discriminator)


@pytest.mark.parametrize(("resolution", "latent"), [(16, 60), (32, 80), (64, 100), (128, 120), (256, 140), (512, 160)])
def test_z_has_a_chunk_for_the_first_layer_and_one_for_every_block(resolution: int, latent: int) -> None:
    assert latent_size(GeneratorOptions(), resolution) == latent


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_every_resolution_makes_images_and_judges_them(resolution: int) -> None:
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


@pytest.mark.parametrize(("build", "resolution"), [(small_generator, 32), (small_discriminator, 64)])
def test_attention_follows_the_block_with_the_asked_resolution(build, resolution: int) -> None:
    network, seen = build(resolution, attention=16), []
    network.attention.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[2:]))
    if isinstance(network, Generator):
        network(latents(2, network), torch.tensor([0, 1]))
    else:
        network(torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert seen == [(16, 16)]


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
        assert {layer.spectral_norm_eps for layer in layers} == {1e-3}


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


# ------------------------------------------------------------------------ the figures of the paper, without any rewrite


def plain_conv(x: Tensor, conv: nn.Module) -> Tensor:
    weight = conv.normalised_weight()
    return F.conv2d(x, weight, conv.bias, padding=weight.shape[-1] // 2)


def up(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def plain_generator_block(block: GeneratorBlock, x: Tensor, y: Tensor) -> Tensor:
    """Figure 15b."""
    h = plain_conv(up(block.norm1(x, y).relu()), block.conv1)
    h = plain_conv(block.norm2(h, y).relu(), block.conv2)
    return h + plain_conv(up(x), block.shortcut)


def plain_discriminator_block(block: DiscriminatorBlock, x: Tensor, *, first: bool, downsample: bool) -> Tensor:
    """Figure 15c."""
    h = plain_conv(x if first else x.relu(), block.conv1)
    h = plain_conv(h.relu(), block.conv2)
    shortcut = x if x.shape[1] == h.shape[1] and not downsample else plain_conv(x, block.shortcut)
    return F.avg_pool2d(h, 2) + F.avg_pool2d(shortcut, 2) if downsample else h + shortcut


def plain_attention(block: SelfAttention, x: Tensor) -> Tensor:
    """Zhang et al. 2019, eqs. 1-3, with BigGAN's pooled keys and values."""
    n, channels, height, width = x.shape
    theta = plain_conv(x, block.theta).view(n, channels // 8, height * width)
    phi = F.max_pool2d(plain_conv(x, block.phi), 2).view(n, channels // 8, height * width // 4)
    g = F.max_pool2d(plain_conv(x, block.g), 2).view(n, channels // 2, height * width // 4)
    beta = torch.einsum("ncq,nck->nqk", theta, phi).softmax(-1)
    attended = torch.einsum("nqk,nck->ncq", beta, g).view(n, channels // 2, height, width)
    return block.gamma * plain_conv(attended, block.o) + x


def plain_generator(generator: Generator, z: Tensor, labels: Tensor, attention_after: int) -> Tensor:
    """Figure 15a."""
    y = generator.shared.weight[labels]
    first, *chunks = z.chunk(len(generator.blocks) + 1, dim=1)
    linear = generator.linear
    h = (first @ linear.normalised_weight().t() + linear.bias).view(len(z), -1, 4, 4)
    for index, (block, chunk) in enumerate(zip(generator.blocks, chunks, strict=True)):
        h = plain_generator_block(block, h, torch.cat([y, chunk], 1))
        if index == attention_after:
            h = plain_attention(generator.attention, h)
    return plain_conv(generator.norm(h).relu(), generator.conv).tanh()


def plain_discriminator(network: Discriminator, x: Tensor, labels: Tensor, attention_after: int, down: str) -> Tensor:
    for index, (block, letter) in enumerate(zip(network.blocks, down, strict=True)):
        x = plain_discriminator_block(block, x, first=index == 0, downsample=letter == "T")
        if index == attention_after:
            x = plain_attention(network.attention, x)
    h = x.relu().sum((2, 3))
    psi = h @ network.linear.normalised_weight().t() + network.linear.bias
    return psi[:, 0] + (network.embedding.normalised_weight()[labels] * h).sum(1)


def randomise(network: nn.Module) -> nn.Module:
    """No parameter at a value that hides its place: no zero gamma, no zero bias, no unit gain."""
    for parameter in network.parameters():
        if parameter.dim() < 2:
            nn.init.normal_(parameter, mean=0.5)
    return network.double()


def assert_same_with_gradients(ours: Tensor, plain: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, plain, rtol=1e-10, atol=1e-10)
    weights = torch.randn_like(plain)
    actual, expected = (torch.autograd.grad((out * weights).sum(), inputs) for out in (ours, plain))
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("resolution", "attention", "after"), [(16, 8, 0), (32, 16, 1), (64, 16, 1)])
def test_the_generator_is_the_one_of_the_paper(resolution: int, attention: int, after: int) -> None:
    torch.manual_seed(0)
    generator = randomise(small_generator(resolution, attention=attention))
    z = latents(3, generator).double().requires_grad_()
    labels = torch.tensor([3, 0, 3])
    inputs = [z, *generator.parameters()]
    assert_same_with_gradients(generator(z, labels), plain_generator(generator, z, labels, after), inputs)


@pytest.mark.parametrize(
    ("resolution", "attention", "after", "down"),
    [(16, 8, 0, "TTF"), (32, 16, 0, "TTFF"), (32, 8, 1, "TTFF"), (64, 16, 1, "TTTTF")],
)
def test_the_discriminator_is_the_one_of_the_paper(resolution: int, attention: int, after: int, down: str) -> None:
    torch.manual_seed(0)
    network = randomise(small_discriminator(resolution, attention=attention))
    images = torch.randn(3, 3, resolution, resolution, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([3, 0, 3])
    before = images.detach().clone()
    inputs = [images, *network.parameters()]
    logits = network(images, labels)
    assert_same_with_gradients(logits, plain_discriminator(network, images, labels, after, down), inputs)
    assert torch.equal(images, before), "the discriminator wrote into its input"


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


# ------------------------------------------------------------------------------------------ orthogonal regularisation


@pytest.mark.parametrize("build", [small_generator, small_discriminator])
def test_orthogonal_penalty_has_the_gradient_of_the_reference_code(build) -> None:
    torch.manual_seed(0)
    network = build(16).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    orthogonal_penalty(network, 1e-4).backward()
    for name, parameter in network.named_parameters():
        if parameter.dim() < 2 or name == "shared.weight":
            assert parameter.grad is None, name
            continue
        w = parameter.detach().flatten(1)
        expected = 1e-4 * 2 * ((w @ w.t()) * (1 - torch.eye(len(w), dtype=w.dtype))) @ w
        torch.testing.assert_close(parameter.grad.flatten(1), expected, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("shape", [(40, 3), (9, 4), (5, 40)])
def test_the_short_way_to_the_penalty_of_a_tall_weight_is_exact(shape: tuple[int, int]) -> None:
    rows = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    gram = rows @ rows.t()
    plain = (gram * (1 - torch.eye(len(rows), dtype=torch.float64))).square().sum()
    short = _off_diagonal(rows)
    torch.testing.assert_close(short, plain)
    torch.testing.assert_close(torch.autograd.grad(short, rows), torch.autograd.grad(plain, rows))


def test_orthogonal_penalty_ignores_autocast() -> None:
    generator = small_generator(16)
    nn.init.normal_(generator.linear.weight)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = orthogonal_penalty(generator, 1e-4)
    assert cast.dtype == torch.float32
    assert torch.equal(cast, orthogonal_penalty(generator, 1e-4))
