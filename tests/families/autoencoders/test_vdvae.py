import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, Likelihood
from bigtrain.families.autoencoders.vdvae import VDVAE, VDVAEOptions, VDVAESamplingOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Microbatch
from bigtrain.networks.layers.discretised import as_numbers
from bigtrain.randomness import Draws
from tests.training.small_steps import small_networks

SPEC = DataSpec((8, 8), 1, ("a", "b"), (30, 34))
NETWORK = {
    "encoder": "8x1,8d2,4x1,4d4,1x1", "decoder": "1x1,4m1,4x1,8m4", "width": 8, "latent_channels": 2, "bottleneck": 0.5,
}  # fmt: skip
LATENTS = {"1x1": 2, "4x4": 2 * 2 * 16, "8x8": 2 * 64}


def family(spec: DataSpec = SPEC, **options: Any) -> VDVAE:
    known = {"kind": "vdvae", "optimizer": {"lr": 1e-3}, "network": NETWORK, "likelihood": {"mixtures": 2}}
    return VDVAE(VDVAEOptions.model_validate(known | options), spec)


def networks_of(vdvae: VDVAE) -> dict[str, nn.Module]:
    """Untrained, but for numbers where a fresh network has zeros."""
    return small_networks(vdvae)


def microbatch(n: int = 6, draws: Draws | None = None) -> Microbatch:
    values = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    fields = {"image": as_numbers(values, torch.float32), "label": torch.arange(n) % 2}
    return Microbatch(fields, range(n), draws or Draws(0), torch.device("cpu"), n)


# --------------------------------------------------------------------------------------------- the loss and the bound


def test_the_loss_is_the_bound_in_nats_a_dimension() -> None:
    vdvae, batch = family(), microbatch()
    networks = networks_of(vdvae)
    epsilons = batch.draws.normal("vdvae/epsilon", batch.indices, (sum(LATENTS.values()),))
    maps, kl = networks["vdvae"](batch["image"], None, epsilons)
    nll = -vdvae.options.likelihood.log_probability(maps, batch["image"]).sum((1, 2, 3)).mean()
    losses = vdvae.loss(networks, batch)
    total = nll + kl.sum(1).mean()
    torch.testing.assert_close(losses.total, total / 64)
    torch.testing.assert_close(losses.terms["bits_per_dim"], total.detach() / (64 * math.log(2)))
    for name, nats in zip(LATENTS, kl.unbind(1), strict=True):
        torch.testing.assert_close(losses.terms[f"kl_{name}"], nats.mean().detach())


def test_images_that_are_made_black_and_white_are_what_is_modelled() -> None:
    vdvae, batch = family(likelihood={"kind": "bernoulli", "binarise": "per_step"}), microbatch()
    networks = networks_of(vdvae)
    epsilons = batch.draws.normal("vdvae/epsilon", batch.indices, (sum(LATENTS.values()),))
    seen = vdvae.options.likelihood.seen(batch["image"], batch.draws, batch.indices)
    assert set(seen.unique().tolist()) == {-1.0, 1.0}
    maps, kl = networks["vdvae"](seen, None, epsilons)
    nll = -vdvae.options.likelihood.log_probability(maps, seen).sum((1, 2, 3)).mean()
    torch.testing.assert_close(vdvae.loss(networks, batch).total, (nll + kl.sum(1).mean()) / 64)
    assert vdvae.likelihood_protocol(Effort(), 0)["binarise"] == "per_step"
    assert vdvae.draws_in_reconstruction


def test_the_bounds_terms_are_its_sum_and_its_mean_over_draws_is_the_losses() -> None:
    vdvae, batch = family(), microbatch()
    networks = networks_of(vdvae)
    found = vdvae.likelihood(networks, batch, Effort())
    assert found["kl"].shape == (6, 3)
    torch.testing.assert_close(found["nats"], found["nll"] + found["kl"].sum(1))
    assert all(values.dtype == torch.float64 for values in found.values())
    bounds = [vdvae.likelihood(networks, microbatch(draws=Draws(s)), Effort())["nats"].mean() for s in range(30)]
    losses = [64 * vdvae.loss(networks, microbatch(draws=Draws(s))).total.detach().double() for s in range(30)]
    difference = torch.stack(bounds).mean() - torch.stack(losses).mean()
    error = (torch.stack(bounds).var() / 30 + torch.stack(losses).var() / 30).sqrt()
    assert difference.abs() < 4 * error


def test_more_importance_samples_give_a_tighter_bound() -> None:
    """On average over draws (Burda et al. 2016, theorem 1)."""
    vdvae = family()
    networks = networks_of(vdvae)

    def mean_bound(samples: int) -> torch.Tensor:
        seeds = [
            vdvae.likelihood(networks, microbatch(draws=Draws(s)), Effort(samples=samples))["nats"] for s in range(10)
        ]
        return torch.stack(seeds).mean()

    elbo, two, many = mean_bound(1), mean_bound(2), mean_bound(20)
    assert many < two < elbo


@pytest.mark.parametrize("samples", [1, 3])
def test_a_samples_bound_does_not_depend_on_its_batch(samples: int) -> None:
    vdvae, batch = family(class_conditional=True), microbatch()
    networks = networks_of(vdvae)
    whole = vdvae.likelihood(networks, batch, Effort(samples=samples))["nats"]
    part = replace(batch, fields={name: values[4:] for name, values in batch.fields.items()}, indices=[4, 5])
    torch.testing.assert_close(vdvae.likelihood(networks, part, Effort(samples=samples))["nats"], whole[4:])


def test_the_protocol_names_the_bound_its_samples_and_the_bits() -> None:
    facts = {"likelihood": "variational", "likelihood_samples": 1, "bits": 8, "seed": 7}
    assert family().likelihood_protocol(Effort(), 7) == facts
    assert family().likelihood_protocol(Effort(samples=64), 0)["likelihood"] == "importance_weighted"
    with pytest.raises(UserError, match="the likelihood of a vdvae has no use for it"):
        family().check_effort(Effort(evaluations=3))


def test_the_encoder_sees_all_bits_and_the_bound_is_of_those_that_are_asked_for() -> None:
    vdvae, batch = family(likelihood={"mixtures": 2, "bits": 5}), microbatch()
    networks = networks_of(vdvae)
    assert vdvae.likelihood_protocol(Effort(), 0)["bits"] == 5
    values = ((batch["image"] + 1) * 127.5).round().long()
    blurred = replace(batch, fields={**batch.fields, "image": as_numbers(values >> 3 << 3, torch.float32)})
    assert not torch.equal(vdvae.encode_latents(networks, batch), vdvae.encode_latents(networks, blurred))
    epsilons = torch.zeros(6, vdvae.latent_size)
    maps, _ = networks["vdvae"](batch["image"], None, epsilons)
    of_all, of_five = (vdvae.pixels.log_probability(maps, each["image"]) for each in (batch, blurred))
    assert torch.equal(of_all, of_five)


# --------------------------------------------------------------------------------------------------- samples and latents


def test_a_temperature_is_the_deviation_of_all_latents_or_of_those_of_one_size() -> None:
    vdvae, batch = family(), microbatch()
    drawn = vdvae.draw_latents(batch, VDVAESamplingOptions())
    torch.testing.assert_close(vdvae.draw_latents(batch, VDVAESamplingOptions(temperature=0.5)), 0.5 * drawn)
    each = VDVAESamplingOptions(temperatures=(1.0, 0.7, 0.1))
    factors = [t for t, size in zip(each.temperatures, LATENTS.values(), strict=True) for _ in range(size)]
    torch.testing.assert_close(vdvae.draw_latents(batch, each), drawn * torch.tensor(factors))
    with pytest.raises(UserError, match=r"^temperatures: there are 2 for the 3 sizes of maps \(1x1, 4x4, 8x8\)"):
        vdvae.prepare_sampling({}, VDVAESamplingOptions(temperatures=(1.0, 0.7)), 0)
    with pytest.raises(UserError, match=r"^family\.sampling\.temperatures: there are 1 for the 3 sizes"):
        family(sampling={"temperatures": [1.0]})


def test_pixels_are_drawn_or_are_what_the_distribution_is_around() -> None:
    vdvae, batch = family(likelihood={"mixtures": 2, "bits": 5}), microbatch()
    networks = networks_of(vdvae)
    drawn = vdvae.sample(networks, batch, VDVAESamplingOptions())
    levels = (drawn + 1) * 15.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    mean = vdvae.sample(networks, batch, VDVAESamplingOptions(draw_pixels=False))
    assert (drawn - mean).abs().mean() > 0.1


def test_levels_are_all_latents_of_a_size() -> None:
    assert family().level_sizes == LATENTS
    assert family().latent_size == sum(LATENTS.values())


def test_with_all_levels_kept_an_image_is_reconstructed_and_with_none_a_sample_is_drawn() -> None:
    vdvae, batch = family(class_conditional=True), microbatch()
    networks, sampling = networks_of(vdvae), VDVAESamplingOptions(draw_pixels=False)
    redrawn = [vdvae.redraw(networks, batch, kept, sampling) for kept in range(4)]
    torch.testing.assert_close(redrawn[0], vdvae.sample(networks, batch, sampling))
    torch.testing.assert_close(redrawn[3], vdvae.reconstruct(networks, batch))
    distances = [(each - redrawn[3]).abs().mean() for each in redrawn]
    assert min(distances[:3]) > 0


def test_a_level_that_is_kept_is_the_images_whatever_is_drawn_after_it() -> None:
    vdvae, batch = family(), microbatch()
    networks = networks_of(vdvae)
    own = vdvae.encode_latents(networks, batch)[:, : LATENTS["1x1"]]
    seen = []
    vdvae.decode_latents = lambda networks, latents, batch, sampling: seen.append(latents)
    for seed in range(2):
        vdvae.redraw(networks, microbatch(draws=Draws(seed)), 1, vdvae.sampling)
    assert torch.equal(seen[0][:, :2], own)
    assert torch.equal(seen[1][:, :2], own)
    assert (seen[0][:, 2:] != seen[1][:, 2:]).all()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_options_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        family(sampling={"temperature": 0.0})
    with pytest.raises(
        ValueError, match=r"family\.network\.encoder: begins with maps of 8 x 8, and data\.image_size is 8 x 6"
    ):
        family(replace(SPEC, size=(8, 6)))
    with pytest.raises(ValueError, match=r"family\.class_conditional: the data have only one class"):
        family(replace(SPEC, classes=("a",), class_counts=(64,)), class_conditional=True)
    grey = family(likelihood={"kind": "bernoulli"})
    assert grey.ability(Likelihood) is None
    assert "bits_per_dim" not in grey.loss(networks_of(grey), microbatch()).terms


def test_an_unconditional_model_reads_no_labels() -> None:
    assert (tuple(family().reads), tuple(family().conditions)) == (("image",), ())
    assert tuple(family(class_conditional=True).reads) == ("image", "label")
