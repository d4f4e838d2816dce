from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bigtrain.families.adversarial.bigan import BiGAN, BiGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.networks.adversarial.pair_discriminator import PairDiscriminator
from bigtrain.options import kind_of, members_of
from bigtrain.randomness import Draws
from tests.asking import asked, reconstructed
from tests.runs_of import FAMILIES

SPEC = DataSpec((16, 16), 1, ("a", "b"), (10, 30))
CPU = torch.device("cpu")
DISCRIMINATORS: Any = members_of(BiGANOptions.model_fields["discriminator"].annotation)
UNCONDITIONAL = {"dense_dcgan": {"conditioning": "none"}}
SMALL = {"kind": "dcgan", "channels": 4}


def family(**options: object) -> BiGAN:
    plain = {"penalties": {}, "encoder": {"channels": 4}}
    return BiGAN(BiGANOptions.model_validate(dict(FAMILIES["bigan"]) | plain | options), SPEC)


def networks_of(bigan: BiGAN) -> dict[str, Any]:
    return {name: build_network(bigan, name, seed=0) for name in bigan.components}


def microbatch(n: int = 6) -> Microbatch:
    images = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)).tanh()
    return Microbatch({"image": images}, range(n), Draws(0, step=5), CPU, n)


def logits_of(discriminator: PairDiscriminator, images: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """By hand."""
    on_images = discriminator.trunk(images)
    h = latents
    for layer in discriminator.of_latents:
        h = F.leaky_relu(h @ layer.linear.weight.T + layer.linear.bias, 0.2)
    h = torch.cat([on_images.features.flatten(1), h], 1)
    for layer in discriminator.of_pairs:
        h = F.leaky_relu(h @ layer.linear.weight.T + layer.linear.bias, 0.2)
    return on_images.logits + (h @ discriminator.linear.weight.T + discriminator.linear.bias)[:, 0]


@pytest.mark.parametrize("calls", ["joint", "separate"])
def test_each_side_is_told_apart_as_pairs_and_the_makers_take_both_terms_reversed(calls: str) -> None:
    bigan, batch = family(discriminator_calls=calls), microbatch()
    networks, x = networks_of(bigan), batch["image"]
    encoder, generator, discriminator = (networks[name] for name in ("encoder", "generator", "discriminator"))
    for phase, loss, sign in (("discriminator", bigan.discriminator_loss, 1), ("generator", bigan.generator_loss, -1)):
        z = batch.draws.normal(f"{phase}/z", batch.indices, (6,))
        encoded, made = logits_of(discriminator, x, encoder(x)), logits_of(discriminator, generator(z), z)
        expected = F.softplus(-sign * encoded).mean() + F.softplus(sign * made).mean()
        for network in networks.values():
            network.zero_grad()
        losses = loss(networks, batch)
        torch.testing.assert_close(losses.total, expected)
        losses.total.backward()
        learns = ("discriminator",) if phase == "discriminator" else ("generator", "encoder")
        assert all(parameter.grad is not None for name in learns for parameter in networks[name].parameters())
        if phase == "discriminator":
            assert all(
                parameter.grad is None for name in ("generator", "encoder") for parameter in networks[name].parameters()
            )
    assert [tuple(each.trains) for each in bigan.phases] == [("discriminator",), ("generator", "encoder")]
    assert [each.batch for each in bigan.phases] == ["new", "new"]


def test_a_stochastic_encoder_draws_in_the_game_and_encodes_by_its_mean() -> None:
    ali, batch = family(encoder={"channels": 8, "stochastic": True}), microbatch()
    networks, x = networks_of(ali), batch["image"]
    mean, log_variance = networks["encoder"](x).split(ali.latent_size, 1)
    for phase, loss, sign in (("discriminator", ali.discriminator_loss, 1), ("generator", ali.generator_loss, -1)):
        noise = batch.draws.normal(f"{phase}/encoding", batch.indices, (ali.latent_size,))
        encoded = logits_of(networks["discriminator"], x, mean + log_variance.exp().sqrt() * noise)
        z = batch.draws.normal(f"{phase}/z", batch.indices, (ali.latent_size,))
        made = logits_of(networks["discriminator"], networks["generator"](z), z)
        losses = loss(networks, batch)
        torch.testing.assert_close(losses.total, F.softplus(-sign * encoded).mean() + F.softplus(sign * made).mean())
        losses.total.backward()
        assert (networks["encoder"].conv.weight.grad is not None) == (phase == "generator")
    ready = ali.prepare_sampling(networks, ali.sampling, 0)
    latents = ali.encode_latents(ready, asked({"image": x}, range(6)))
    torch.testing.assert_close(latents, ready["encoder"](x)[:, : ali.latent_size])
    torch.testing.assert_close(reconstructed(ali, ready, x), ready["generator"](latents))


def test_the_hinge_game_of_the_makers_is_linear() -> None:
    bigan, batch = family(objective={"kind": "hinge"}), microbatch()
    networks = networks_of(bigan)
    z = batch.draws.normal("generator/z", batch.indices, (6,))
    encoded = networks["discriminator"](batch["image"], networks["encoder"](batch["image"]))
    made = networks["discriminator"](networks["generator"](z), z)
    torch.testing.assert_close(bigan.generator_loss(networks, batch).total, encoded.mean() - made.mean())


def test_a_reconstruction_is_what_the_generator_makes_of_the_encoders_latents() -> None:
    bigan = family()
    networks = networks_of(bigan)
    ready = bigan.prepare_sampling(networks, bigan.sampling, 0)
    assert not any(network.training for network in ready.values())
    images = microbatch()["image"]
    latents = bigan.encode_latents(ready, asked({"image": images}, range(6)))
    assert latents.shape == (6, bigan.latent_size)
    torch.testing.assert_close(reconstructed(bigan, ready, images), ready["generator"](ready["encoder"](images)))


JUDGES = [{"kind": "dcgan", "norm": "spectral"}, *({"kind": kind_of(each)} for each in DISCRIMINATORS)]


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: "-".join(judge.values()))
def test_every_discriminator_of_images_can_judge_pairs(judge: dict[str, str]) -> None:
    discriminator = judge | UNCONDITIONAL.get(judge["kind"], {})
    bigan = family(discriminator=discriminator, augmentation={"kind": "diffaug"})
    networks = networks_of(bigan)
    assert bigan.discriminator_loss(networks, microbatch()).total.isfinite()
    reports = bigan.phases[0].reports
    assert (reports is not None) == ("norm" in judge)
    assert reports is None or "singular_value/largest" in reports(networks)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"generator": SMALL | {"conditioning": "batch_norm"}},
            "generator: the networks of bigan are not told classes; set generator.cond",
        ),
        ({"auxiliary_classifier": {}}, "auxiliary_classifier: the networks of bigan are not told classes"),
        ({"penalties": {"gradient_penalty": {}}}, "gradient_penalty is of images alone"),
        ({"penalties": {"top_k": {}}}, "top_k is of images alone"),
        ({"penalties": {"latent_consistency": {}}}, "latent_consistency is of images alone"),
        ({"discriminator": SMALL | {"norm": "virtual"}}, "a reference batch is of images alone"),
        ({"generator_batches": 2}, "as many pairs of either kind"),
        ({"objective": {"kind": "least_squares"}}, "objective"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        family(**options)
