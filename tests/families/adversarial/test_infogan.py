import math

import pytest
import torch
import torch.nn.functional as F

from bigtrain.families.adversarial.infogan import InfoGAN, InfoGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.randomness import Draws
from tests.runs_of import FAMILIES

SPEC = DataSpec((16, 16), 1, ("a",), (40,))
CPU = torch.device("cpu")


def family(**options: object) -> InfoGAN:
    return InfoGAN(InfoGANOptions.model_validate(dict(FAMILIES["infogan"]) | options), SPEC)


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
