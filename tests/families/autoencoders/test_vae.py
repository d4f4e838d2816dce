import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, InitialisedByData, Likelihood
from bigtrain.families.autoencoders.vae import VAE, VAEOptions, VAESamplingOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.networks.autoencoders.latents import kl_to_standard_normal
from bigtrain.networks.layers.discretised import as_numbers
from bigtrain.randomness import Draws
from tests.training.slopes import slopes

SPEC = DataSpec((8, 8), 1, ("a", "b"), (30, 34))
IAF = {"kind": "iaf", "channels": 4, "latent_size": 2, "blocks": [1, 1]}
LAYERED = {"kind": "layered", "latent_sizes": [4, 2], "hidden_features": [6, 5]}
NETWORK = {"kind": "convolutional", "channels": 4, "multipliers": [1, 2], "latent_size": 3}


def family(spec: DataSpec = SPEC, **options: Any) -> VAE:
    known = {"kind": "vae", "optimizer": {"lr": 1e-3}, "network": NETWORK, "likelihood": {"mixtures": 2}}
    return VAE(VAEOptions.model_validate(known | options), spec)


def networks_of(vae: VAE, spread: float = 0.3) -> dict[str, nn.Module]:
    """Untrained, but for a last layer that is wide enough for the latents to matter."""
    network = build_network(vae, "vae", seed=0)
    if vae.options.network.kind == "iaf":
        generator = torch.Generator().manual_seed(0)
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.5, generator=generator)
        return {"vae": network}
    nn.init.normal_(network.decoder.rest[-1].weight, std=spread, generator=torch.Generator().manual_seed(0))
    return {"vae": network}


def microbatch(n: int = 6, draws: Draws | None = None) -> Microbatch:
    values = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    fields = {"image": as_numbers(values, torch.float32), "label": torch.arange(n) % 2}
    return Microbatch(fields, range(n), draws or Draws(0), torch.device("cpu"), n)


def float64(vae: VAE, batch: Microbatch) -> tuple[Networks, Microbatch]:
    image = batch["image"].double()
    return {"vae": networks_of(vae)["vae"].double()}, replace(batch, fields={**batch.fields, "image": image})


# -------------------------------------------------------------------------------------------------------- the loss


def test_the_divergence_is_that_of_a_monte_carlo_estimate() -> None:
    mu, log_sigma = torch.tensor([[0.5, -1.2, 0.0]]), torch.tensor([[-0.7, 0.2, 0.0]])
    q = Normal(mu, log_sigma.exp())
    z = mu + log_sigma.exp() * torch.randn(200_000, 3, generator=torch.Generator().manual_seed(0))
    ratios = q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)
    error = (ratios.mean(0) - kl_to_standard_normal(mu, log_sigma)[0]).abs()
    assert (error <= 4 * ratios.std(0) / len(z) ** 0.5 + 1e-7).all()
    assert kl_to_standard_normal(mu, log_sigma)[0, 2] == 0


def test_the_loss_is_the_bound_in_nats_a_dimension() -> None:
    vae, batch = family(), microbatch()
    networks = networks_of(vae)
    epsilon = batch.draws.normal("vae/epsilon", batch.indices, (3,))
    mu, log_sigma = networks["vae"].encode(batch["image"], None)
    maps = networks["vae"](batch["image"], None, epsilon).maps
    kl = kl_to_standard_normal(mu, log_sigma).sum(1).mean()
    nll = -vae.options.likelihood.log_probability(maps, batch["image"]).sum((1, 2, 3)).mean()
    losses = vae.loss(networks, batch)
    torch.testing.assert_close(losses.total, (nll + kl) / 64)
    torch.testing.assert_close(losses.terms["bits_per_dim"], (nll + kl).detach() / (64 * math.log(2)))
    weighted = family(beta=4.0).loss(networks, batch)
    torch.testing.assert_close(weighted.total, (nll + 4 * kl) / 64)
    assert weighted.terms == losses.terms, "the bound that is logged has no beta"


def test_free_bits_floor_each_latents_divergence_and_what_is_logged_is_the_true_one() -> None:
    vae, batch = family(), microbatch()
    networks = networks_of(vae)
    mu, log_sigma = networks["vae"].encode(batch["image"], None)
    kl = kl_to_standard_normal(mu, log_sigma).mean(0)
    floor = float(kl.detach().median())
    losses = family(free_bits=floor, beta=2.0).loss(networks, batch)
    torch.testing.assert_close(64 * losses.total, losses.terms["nll"] + 2 * kl.clamp_min(floor).sum())
    torch.testing.assert_close(losses.terms["kl"], kl.sum().detach())
    assert kl.clamp_min(floor).sum() > kl.sum()


def test_a_latent_within_its_free_bits_is_not_pushed_towards_the_prior() -> None:
    vae, batch = family(free_bits=100.0, beta=3.0), microbatch()
    networks = networks_of(vae)
    vae.loss(networks, batch).total.backward()
    free = {name: parameter.grad.clone() for name, parameter in networks["vae"].named_parameters()}
    networks["vae"].zero_grad()
    family(beta=0.0).loss(networks, batch).total.backward()
    for name, parameter in networks["vae"].named_parameters():
        torch.testing.assert_close(free[name], parameter.grad)


def test_a_layer_has_free_bits_together() -> None:
    vae, batch = family(), microbatch()
    networks = networks_of(vae)
    kl = float(vae.loss(networks, batch).terms["kl"])
    for floor, counted in ((0.5 * kl, kl), (2 * kl, 2 * kl)):
        losses = family(free_bits=floor, free_bits_of="layer").loss(networks, batch)
        torch.testing.assert_close(float(64 * losses.total.detach()), float(losses.terms["nll"]) + counted)
        assert float(losses.terms["kl"]) == kl, "the true one is logged"


def test_free_bits_of_maps_of_latents_are_a_channels() -> None:
    vae, batch = family(network=IAF), microbatch()
    networks = networks_of(vae)
    noise = vae._noise(batch, "vae")
    kl = torch.cat([kl.sum((2, 3)).mean(0) for kl in networks["vae"](batch["image"], None, noise).kl])
    floor = float(kl.detach().median())
    losses = family(network=IAF, free_bits=floor).loss(networks, batch)
    torch.testing.assert_close(64 * losses.total, losses.terms["nll"] + kl.clamp_min(floor).sum())
    layers = [losses.terms["kl_layer_0"], losses.terms["kl_layer_1"]]
    torch.testing.assert_close(torch.stack(layers), kl.detach().view(2, 2).sum(1))


def test_the_weight_of_the_divergence_grows_with_the_step() -> None:
    vae = family(beta=2.0, beta_warmup_steps=100)
    networks = networks_of(vae)
    for step, beta in ((0, 0.0), (25, 0.5), (100, 2.0), (5000, 2.0)):
        losses = vae.loss(networks, microbatch(draws=Draws(0, step)))
        assert float(losses.terms["beta"]) == beta
        torch.testing.assert_close(64 * losses.total.detach(), losses.terms["nll"] + beta * losses.terms["kl"])


def test_with_several_samples_the_loss_is_the_importance_weighted_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is the likelihood's, of the same noise."""
    vae, batch = family(importance_samples=3, class_conditional=True), microbatch()
    networks = networks_of(vae)
    of_training = vae._noise(batch, "vae", 3).view(6, 3, -1).double()
    monkeypatch.setattr(vae, "_held_out_noise", lambda batch, k: of_training[:, k])
    expected = vae.likelihood(networks, batch, Effort(samples=3))["nats"].mean()
    losses = vae.loss(networks, batch)
    torch.testing.assert_close(64 * losses.total.double(), expected)
    torch.testing.assert_close(losses.terms["bits_per_dim"].double(), expected / (64 * math.log(2)))


def test_the_true_likelihood_of_categories_is_between_the_bounds_and_is_found_by_many_samples() -> None:
    """Beside the sum over all nine codes."""
    vae = family(network=NETWORK | {"latent_size": 2}, latents={"kind": "concrete", "categories": 3})
    batch, networks = microbatch(3), networks_of(vae, spread=0.2)
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    maps = networks["vae"].decode(torch.nn.functional.one_hot(codes, 3).flatten(1).float(), None).double()
    log_px = [
        vae.options.likelihood.log_probability(maps, x.expand(9, -1, -1, -1)).sum((1, 2, 3)).logsumexp(0) - math.log(9)
        for x in batch["image"].unsqueeze(1)
    ]
    found = vae.likelihood(networks, batch, Effort(samples=400))["nats"]
    torch.testing.assert_close(found, -torch.stack(log_px), rtol=0, atol=0.3)
    elbo = torch.stack([vae.likelihood(networks, microbatch(3, Draws(s)), Effort())["nats"] for s in range(40)])
    assert (elbo.mean(0) > -torch.stack(log_px)).all()
    losses = vae.loss(networks, microbatch(draws=Draws(0, step=10**9)))
    assert losses.terms["temperature"] == 0.5
    assert losses.total.isfinite()


@pytest.mark.parametrize("binarise", ["static", "per_step"])
def test_grey_images_are_made_black_and_white(binarise: str) -> None:
    vae = family(likelihood={"kind": "bernoulli", "binarise": binarise})
    grey = microbatch(200)
    grey = (
        replace(grey, fields={"image": grey["image"][:1].expand(200, -1, -1, -1)}) if binarise == "per_step" else grey
    )
    seen = vae.images(grey)
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    if binarise == "per_step":
        assert ((seen.mean(0) - grey["image"][0]).abs() < 0.35).all(), "white with probability (1 + x) / 2"
        assert not torch.equal(vae.images(replace(grey, draws=Draws(0, step=1))), seen)
        part = replace(grey, fields={"image": grey["image"][:2]}, indices=[5, 7])
        assert torch.equal(vae.images(part), seen[[5, 7]]), "by the number, not by the place in the batch"
    else:
        assert (seen.mean() - grey["image"].mean()).abs() < 0.03
        assert ((seen * grey["image"]).mean() - grey["image"].square().mean()).abs() < 0.03
        moved = replace(grey, fields={"image": grey["image"].flip(0)}, draws=Draws(9, step=4))
        assert torch.equal(vae.images(moved), seen.flip(0)), "an image always in the same way"
        assert not torch.equal(seen[0], seen[1])
    assert vae.draws_in_reconstruction == (binarise == "per_step")
    assert vae.ability(Likelihood) is vae


def test_networks_that_see_data_first_begin_with_them() -> None:
    likelihood = {"kind": "bernoulli", "binarise": "static"}
    vae, plain = family(network=LAYERED, likelihood=likelihood), family()
    assert vae.ability(InitialisedByData) is vae
    assert plain.ability(InitialisedByData) is None
    networks = {"vae": build_network(vae, "vae", seed=0)}
    batches = [microbatch(4), microbatch(4)]
    vae.initialise(networks, batches)
    mean = vae.images(batches[0]).mean(0).flatten()
    torch.testing.assert_close(2 * networks["vae"].decoder.output.bias.sigmoid() - 1, mean, rtol=0, atol=0.003)


@pytest.mark.parametrize("likelihood", [{"mixtures": 2}, {"kind": "gaussian"}, {"kind": "bernoulli"}], ids=str)
@pytest.mark.parametrize("free_bits", [0.0, 0.02])
def test_gradients_are_those_of_finite_differences(likelihood: dict, free_bits: float) -> None:
    vae = family(likelihood=likelihood, class_conditional=True, free_bits=free_bits, beta=0.7)
    networks, batch = float64(vae, microbatch(3))
    torch.testing.assert_close(*slopes(vae, networks, batch, 1e-6), rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------------------ likelihood


def test_the_bounds_terms_are_its_sum_and_its_mean_over_draws_is_the_losses() -> None:
    vae, batch = family(), microbatch()
    networks = networks_of(vae)
    found = vae.likelihood(networks, batch, Effort())
    torch.testing.assert_close(found["nats"], found["nll"] + found["kl"])
    by_channel = found.pop("kl_by_channel")
    torch.testing.assert_close(by_channel.sum(1), found["kl"])
    assert all(values.dtype == torch.float64 and values.shape == (6,) for values in found.values())
    bounds = [vae.likelihood(networks, microbatch(draws=Draws(s)), Effort())["nats"].mean() for s in range(50)]
    losses = [64 * vae.loss(networks, microbatch(draws=Draws(s))).total.detach().double() for s in range(50)]
    difference = torch.stack(bounds).mean() - torch.stack(losses).mean()
    error = (torch.stack(bounds).var() / 50 + torch.stack(losses).var() / 50).sqrt()
    assert difference.abs() < 4 * error


def test_more_importance_samples_give_a_tighter_bound() -> None:
    """On average over draws (Burda et al. 2016, theorem 1), and at K = 1 the mean is that of the variational bound."""
    vae = family()
    networks = networks_of(vae, spread=1.0)

    def mean_bound(samples: int) -> Tensor:
        seeds = [
            vae.likelihood(networks, microbatch(draws=Draws(s)), Effort(samples=samples))["nats"] for s in range(10)
        ]
        return torch.stack(seeds).mean()

    elbo, two, many = mean_bound(1), mean_bound(2), mean_bound(20)
    assert many < two < elbo
    assert elbo - many > 1


def test_with_many_samples_the_bound_is_the_likelihood() -> None:
    """Beside the integral over a single latent, by its values on a grid."""
    vae, batch = family(network=NETWORK | {"latent_size": 1}), microbatch(2)
    networks = networks_of(vae, spread=0.1)
    grid = torch.linspace(-6, 6, 401).unsqueeze(1)
    maps = networks["vae"].decode(grid, None).double()
    log_prior = Normal(0.0, 1.0).log_prob(grid[:, 0].double()) + math.log(12 / 400)
    log_px = [
        (vae.options.likelihood.log_probability(maps, x.expand(401, -1, -1, -1)).sum((1, 2, 3)) + log_prior).logsumexp(
            0
        )
        for x in batch["image"].unsqueeze(1)
    ]
    found = vae.likelihood(networks, batch, Effort(samples=400))["nats"]
    torch.testing.assert_close(found, -torch.stack(log_px), rtol=0, atol=0.05)


@pytest.mark.parametrize("samples", [1, 5])
def test_a_samples_bound_does_not_depend_on_its_batch(samples: int) -> None:
    vae, batch = family(class_conditional=True), microbatch()
    networks = networks_of(vae)
    whole = vae.likelihood(networks, batch, Effort(samples=samples))["nats"]
    part = replace(batch, fields={name: values[4:] for name, values in batch.fields.items()}, indices=[4, 5])
    torch.testing.assert_close(vae.likelihood(networks, part, Effort(samples=samples))["nats"], whole[4:])


def test_the_protocol_names_the_bound_and_the_number_of_its_samples() -> None:
    vae = family()
    facts = {"likelihood": "variational", "likelihood_samples": 1, "bits": 8, "seed": 7}
    assert vae.likelihood_protocol(Effort(), 7) == facts
    assert vae.likelihood_protocol(Effort(samples=64), 0)["likelihood"] == "importance_weighted"
    binary = family(likelihood={"kind": "bernoulli", "binarise": "static"}).likelihood_protocol(Effort(), 7)
    assert binary == facts | {"bits": 1, "binarise": "static"}
    vae.check_effort(Effort(samples=64))
    with pytest.raises(UserError, match="the likelihood of a vae has no use for it"):
        vae.check_effort(Effort(evaluations=3))


def test_bernoullis_cross_entropy_of_grey_pixels_is_trained_with_but_is_no_likelihood() -> None:
    vae, batch = family(likelihood={"kind": "bernoulli"}), microbatch()
    assert set(vae.loss(networks_of(vae), batch).terms) == {"nll", "kl", "active"}
    with pytest.raises(
        UserError, match=r"family\.likelihood: bernoulli gives no probabilities of grey pixels; take kind"
    ):
        vae.require(Likelihood, "evaluation.metrics: bits_per_dim")
    sure = family(likelihood={"kind": "bernoulli", "black_and_white": True})
    assert sure.ability(Likelihood) is sure
    with pytest.raises(UserError, match="there are pixels that are neither"):
        sure.likelihood(networks_of(sure), batch, Effort())


# --------------------------------------------------------------------------------------------- samples and latents


def test_the_temperature_is_the_deviation_of_the_latents() -> None:
    vae, batch = family(), microbatch()
    cold = vae.draw_latents(batch, VAESamplingOptions(temperature=0.5))
    torch.testing.assert_close(cold, 0.5 * vae.draw_latents(batch, VAESamplingOptions()))


def test_a_sample_is_the_mean_of_its_pixels_or_drawn_from_them() -> None:
    vae, batch = family(), microbatch()
    networks = networks_of(vae)
    latents = vae.draw_latents(batch, vae.sampling)
    mean = vae.sample(networks, batch, VAESamplingOptions())
    torch.testing.assert_close(mean, vae.options.likelihood.mean(networks["vae"].decode(latents, None)).detach())
    drawn = vae.sample(networks, batch, VAESamplingOptions(draw_pixels=True))
    levels = (drawn + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert (drawn - mean).abs().mean() > 0.1


def test_a_reconstruction_is_decoded_from_the_encoded_mean_given_the_class() -> None:
    vae, batch = family(class_conditional=True), microbatch()
    networks = networks_of(vae)
    mu = vae.encode_latents(networks, batch)
    expected = vae.decode_latents(networks, mu, batch, VAESamplingOptions())
    assert torch.equal(vae.reconstruct(networks, batch), expected)
    swapped = replace(batch, fields={**batch.fields, "label": 1 - batch["label"]})
    assert not torch.allclose(vae.reconstruct(networks, swapped), expected)


# ------------------------------------------------------------------------------------------------------- bad input


def test_options_that_make_no_sense_are_refused() -> None:
    for wrong in ({"beta": -1.0}, {"free_bits": -0.1}, {"sampling": {"temperature": 0.0}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            family(**wrong)
    with pytest.raises(ValueError, match=r"3 levels need a data\.image_size that is divisible by 4, and 8 x 6 is not"):
        family(replace(SPEC, size=(8, 6)), network={"multipliers": [1, 1, 1]})
    concrete = {"kind": "concrete"}
    with pytest.raises(
        ValueError, match=r"family\.latents: the network iaf has latents of the kind gaussian, not concrete"
    ):
        family(network=IAF, latents=concrete)
    with pytest.raises(ValueError, match=r"family\.importance_samples: .* which relaxed latents have not"):
        family(importance_samples=2, latents=concrete)
    for key, value in (("beta", 0.5), ("beta_warmup_steps", 10), ("free_bits", 0.1)):
        with pytest.raises(ValueError, match=rf"family\.{key}: the importance-weighted bound has no KL divergence"):
            family(importance_samples=2, **{key: value})
    with pytest.raises(ValueError, match="binarise: is for grey images"):
        family(likelihood={"kind": "bernoulli", "binarise": "static", "black_and_white": True})
    with pytest.raises(UserError, match=r"^family\.sampling\.temperature: latents that are categories have none"):
        family(latents=concrete, sampling={"temperature": 0.5})
    with pytest.raises(UserError, match=r"^temperature: latents that are categories have none"):
        family(latents=concrete).prepare_sampling({}, VAESamplingOptions(temperature=0.5), 0)
    with pytest.raises(ValueError, match=r"family\.class_conditional: the data have only one class"):
        family(replace(SPEC, classes=("a",), class_counts=(64,)), class_conditional=True)


def test_an_unconditional_model_reads_no_labels_and_says_what_it_is() -> None:
    vae = family()
    assert (tuple(vae.reads), tuple(vae.conditions)) == (("image",), ())
    assert (tuple(family(class_conditional=True).reads)) == ("image", "label")
