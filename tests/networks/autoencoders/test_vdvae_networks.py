"""The networks of very deep VAEs beside what the paper says, and blocks that do not follow each other."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from bigtrain.networks.autoencoders import vdvae
from bigtrain.networks.autoencoders.vdvae import VeryDeepOptions, VeryDeepVAE, sampled_divergence

GIVEN = {"encoder": "8x1,8d2,4x1,4d4,1x1", "decoder": "1x1,4m1,4x1,8m4", "width": 8, "latent_channels": 2}


def network(classes: int = 0, **options: object) -> VeryDeepVAE:
    """With numbers where a fresh one has zeros, which would hide what lies behind them."""
    torch.manual_seed(0)
    made = VeryDeepVAE(VeryDeepOptions.model_validate(GIVEN | options), 1, classes, 3)
    with torch.no_grad():
        for parameter in made.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return made


def inputs(n: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and epsilons of the latents of 4 blocks."""
    torch.manual_seed(1)
    return torch.rand(n, 1, 8, 8) * 2 - 1, torch.randn(n, 2 * (1 + 16 + 16 + 64))


def test_at_first_the_prior_is_standard_normal_and_the_blocks_are_almost_identities() -> None:
    """Section 3.3: last convolutions are scaled by the number of blocks, those of priors are zero."""
    torch.manual_seed(0)
    made = VeryDeepVAE(VeryDeepOptions.model_validate(GIVEN | {"width": 64}), 1, 0, 3)
    for block in made.decoder.blocks:
        assert not block.prior.conv4.weight.any()
        bound = 1 / math.sqrt(block.residual.conv4.weight[0].numel()) / math.sqrt(4)
        assert 0.9 * bound < block.residual.conv4.weight.abs().max() <= bound
    biases = [parameter for name, parameter in made.named_parameters() if name.endswith("bias") and "conv" in name]
    assert not any(bias.any() for bias in biases)


def test_divergences_are_those_of_normal_distributions_and_the_sampled_one_is_them_on_average() -> None:
    torch.manual_seed(0)
    mu, log_sigma, prior_mu, prior_log_sigma = torch.randn(4, 5, dtype=torch.float64)
    q, p = Normal(mu, log_sigma.exp()), Normal(prior_mu, prior_log_sigma.exp())
    epsilon = torch.randn(100_000, 5, dtype=torch.float64)
    moments = (mu, log_sigma), (prior_mu, prior_log_sigma)
    exact = vdvae.kl_divergence(*moments, epsilon)
    torch.testing.assert_close(exact, kl_divergence(q, p))
    z = mu + log_sigma.exp() * epsilon
    sampled = sampled_divergence(*moments, epsilon)
    torch.testing.assert_close(sampled, q.log_prob(z) - p.log_prob(z))
    assert ((sampled.mean(0) - exact).abs() < 4 * sampled.std(0) / len(epsilon) ** 0.5).all()


def test_decoding_what_an_image_was_encoded_as_takes_the_posteriors_means() -> None:
    made = network()
    images, epsilons = inputs()
    found = made.epsilons_of(images, None)
    maps, _ = made(images, None, torch.zeros_like(epsilons))
    torch.testing.assert_close(made.generated(None, found), maps)
    assert found.shape == epsilons.shape


def test_divergences_are_summed_by_side() -> None:
    made = network()
    images, epsilons = inputs()
    _, kl = made(images, None, epsilons)
    assert kl.shape == (3, 3)
    assert (kl > 0).all()
    # At the coarsest size there is one block, whose input is the learned picture.
    block, features = made.decoder.blocks[0], made.encoder(images, None)
    x = made.decoder.begin_1.expand(3, -1, -1, -1)
    nats = vdvae.kl_divergence(block.posterior_of(x, features[-1]), block.prior_of(x)[0], epsilons)
    torch.testing.assert_close(kl[:, 0], nats.flatten(1).sum(1))


def test_a_class_is_told_to_encoder_and_decoder() -> None:
    made = network(classes=3)
    images, epsilons = inputs()
    labels, others = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])
    maps = made.generated(labels, epsilons)
    assert not torch.allclose(made.generated(others, epsilons), maps)
    assert not torch.allclose(made.epsilons_of(images, labels), made.epsilons_of(images, others))
    more = sum(p.numel() for p in made.parameters()) - sum(p.numel() for p in network().parameters())
    assert more == 2 * 3 * 8


def test_under_autocast_moments_and_maps_are_float32_and_a_divergence_from_itself_is_zero() -> None:
    made = network()
    images, epsilons = inputs()
    expected, _ = made(images, None, epsilons)
    with torch.autocast("cpu", torch.bfloat16):
        maps, kl = made(images, None, epsilons)
        (mu, log_sigma), added = made.decoder.blocks[0].prior_of(torch.zeros(1, 8, 1, 1))
    assert {tensor.dtype for tensor in (maps, mu, log_sigma, added, kl)} == {torch.float32}
    torch.testing.assert_close(maps, expected, rtol=0.1, atol=0.05)
    assert vdvae.kl_divergence((mu, log_sigma), (mu, log_sigma), mu).abs().max() == 0


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("encoder", "8x1,4x1", "4x1 follows maps of 8 pixels"),
        ("encoder", "8x1,8d3", "8d3: maps of 8 pixels cannot be made 3 times smaller"),
        ("encoder", "8x1,8d1", "8d1: maps of 8 pixels cannot be made 1 times smaller"),
        ("encoder", "8x1,8m4", "'8m4' is not of the form 32x11 .blocks. or 32d2"),
        ("encoder", "", "'' is not of the form"),
        ("encoder", "8x1001", "more than 1000 blocks"),
        ("decoder", "1x1,4x1", "4x1 follows maps of 1 pixels; 4m1 would enlarge them"),
        ("decoder", "1x1,4m2", "4m2 follows maps of 1 pixels, of which it is no whole multiple"),
        ("decoder", "4m1", "4m1 follows maps of no pixels"),
        ("decoder", "3x1,4m3", "4m3 follows maps of 3 pixels, of which it is no whole multiple"),
        ("decoder", "1x0", "'1x0' is not of the form 32x11 .blocks. or 32m16"),
    ],
)
def test_blocks_that_do_not_follow_each_other_are_refused_in_a_sentence(key: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VeryDeepOptions.model_validate(GIVEN | {key: text})


def test_a_bottleneck_without_channels_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"bottleneck: 0\.25 of width 3 leaves no channel; enlarge one of them"):
        VeryDeepOptions.model_validate(GIVEN | {"width": 3})


@pytest.mark.parametrize(
    ("size", "options", "message"),
    [
        ((16, 16), {}, r"family\.network\.encoder: begins with maps of 8 x 8, and data\.image_size is 16; change one"),
        ((8, 4), {}, r"family\.network\.encoder: begins with maps of 8 x 8, and data\.image_size is 8 x 4; change one"),
        (
            (8, 8),
            {"decoder": "1x1,4m1"},
            r"family\.network\.decoder: ends with maps of 4 x 4, and data\.image_size is 8",
        ),
        (
            (8, 8),
            {"decoder": "1x1,2m1,8m2"},
            r"family\.network\.decoder: has maps of 2 pixels, and family\.network\.encoder has none of that size",
        ),
    ],
)
def test_images_of_another_size_are_refused_in_a_sentence(
    size: tuple[int, int], options: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        VeryDeepOptions.model_validate(GIVEN | options).check_size(size)
