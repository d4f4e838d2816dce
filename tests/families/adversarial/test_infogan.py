import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bigtrain.families.adversarial.infogan import InfoGAN, InfoGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.networks.adversarial.code_reader import count_features
from bigtrain.objectives.latent_codes import LatentCodes
from bigtrain.options import kind_of, members_of
from bigtrain.randomness import Draws
from tests.asking import asked
from tests.runs_of import FAMILIES

SPEC = DataSpec((16, 16), 1, ("a",), (40,))
CPU = torch.device("cpu")
DISCRIMINATORS: Any = members_of(InfoGANOptions.model_fields["discriminator"].annotation)
UNCONDITIONAL = {"dense_dcgan": {"conditioning": "none"}}


def family(**options: object) -> InfoGAN:
    return InfoGAN(InfoGANOptions.model_validate(dict(FAMILIES["infogan"]) | options), SPEC)


def test_codes_are_drawn_by_number_and_each_as_likely_as_the_others() -> None:
    codes = LatentCodes(categories=[4, 2], uniform_codes=3)
    drawn = codes.draw(Draws(0), "z", range(4000))
    first, second, numbers = drawn.split([4, 2, 3], 1)
    for one_hot in (first, second):
        assert set(one_hot.unique().tolist()) == {0, 1}
        assert (one_hot.sum(1) == 1).all()
        assert (one_hot.mean(0) - 1 / one_hot.shape[1]).abs().max() < 0.03
    assert numbers.abs().max() <= 1
    assert (numbers.var(0) - 1 / 3).abs().max() < 0.02
    torch.testing.assert_close(codes.draw(Draws(0), "z", [7, 3]), drawn[[7, 3]], rtol=0, atol=0)


@pytest.mark.parametrize("truncation", [None, 0.5])
def test_samples_have_noise_and_codes(truncation: float | None) -> None:
    gan = family()
    latents = gan.draw_latents(asked({}, range(64)), gan.sampling.model_copy(update={"truncation": truncation}))
    noise, codes = latents.split([5, 7], 1)
    assert (noise.abs().max() <= 0.5) == (truncation is not None)
    assert torch.equal(codes, gan.options.latent_codes.draw(Draws(0), "sample/z", range(64)))


@pytest.mark.parametrize("architecture", DISCRIMINATORS, ids=kind_of)
def test_features_are_counted_in_every_discriminator(architecture: Any) -> None:
    kind = kind_of(architecture)
    options = architecture.model_validate({"kind": kind} | UNCONDITIONAL.get(kind, {}))
    features = options.build((16, 16), 3, 1, frozenset({"features"}))(torch.zeros(2, 3, 16, 16)).features
    assert features.flatten(1).shape == (2, count_features(options, (16, 16), 3))


def test_both_players_minimise_what_is_not_read_of_the_codes() -> None:
    gan = family(information_weight=0.5)
    networks = {name: build_network(gan, name, seed=0) for name in gan.components}
    images = torch.randn(6, 1, 16, 16, generator=torch.Generator().manual_seed(0)).tanh()
    batch = Microbatch({"image": images}, range(6), Draws(0), CPU, 6)
    for phase, loss in (("discriminator", gan.discriminator_loss), ("generator", gan.generator_loss)):
        losses = loss(networks, batch)
        z = gan.draw_z(batch.draws, f"{phase}/z", batch.indices)
        assert z.shape == (6, 12)
        read = networks["reader"](networks["discriminator"](networks["generator"](z)).features)
        nats = sum(F.cross_entropy(read[:, at], z[:, 5:][:, at].argmax(1)) for at in (slice(4), slice(4, 6)))
        squares = (read[:, 6] - z[:, 11]).square().mean() / 2
        torch.testing.assert_close(losses.terms["unread_categories"], 0.5 * nats)
        torch.testing.assert_close(losses.terms["unread_numbers"], 0.5 * squares)
        torch.testing.assert_close(losses.terms["information"], math.log(4) + math.log(2) - nats.detach())
        losses.total.backward()
        assert all(parameter.grad is not None for parameter in networks["reader"].parameters())


def test_a_traversal_has_a_row_for_each_category_and_each_number() -> None:
    latents = torch.randn(3, 12)
    rows = list(family().varied(latents))
    assert len(rows) == 4 + 2 + 1
    for row in rows[:6]:
        torch.testing.assert_close(row[:, :5], latents[:, :5])
    assert rows[2][:, 5:9].tolist() == [[0, 0, 1, 0]] * 3
    assert rows[5][:, 9:11].tolist() == [[0, 1]] * 3
    assert rows[6][:, 11].tolist() == [-2, 0, 2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"generator": {"kind": "dcgan", "channels": 4, "latent": 7}}, "generator.latent: 7 latents are too few"),
        ({"latent_codes": {"categories": [], "uniform_codes": 0}}, "there is no code at all"),
        (
            {"discriminator": {"kind": "dcgan", "channels": 4, "conditioning": "projection"}},
            "discriminator.conditioning: none",
        ),
        ({"penalties": {"latent_consistency": {}}}, "latent_consistency moves all latents"),
        ({"objective": {"kind": "wasserstein", "clip": 0.01}}, "clip would bound the weights that read codes"),
    ],
)
def test_mistakes_are_named(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        family(**options)
