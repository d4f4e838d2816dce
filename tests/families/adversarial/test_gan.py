import pytest
import torch

from bigtrain.families.adversarial.gan import GAN, GANOptions, GANSamplingOptions, non_saturating_generator
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.networks.adversarial.biggan import orthogonal_penalty
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.pictures import to_uint8
from bigtrain.randomness import Draws
from tests.asking import asked, sampled
from tests.runs_of import FAMILIES

SPEC = DataSpec((16, 16), 3, ("a", "b", "c"), (10, 0, 30))

CPU = torch.device("cpu")


def family(**options: object) -> GAN:
    return GAN(GANOptions.model_validate(dict(FAMILIES["gan"]) | options), SPEC)


def networks_of(gan: GAN) -> dict:
    return {name: build_network(gan, name, seed=0) for name in gan.components}


def microbatch(n: int = 6) -> Microbatch:
    images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)).tanh()
    return Microbatch({"image": images, "label": torch.arange(n) % 3}, range(n), Draws(0, step=5), CPU, n)


def test_the_hinge_losses_are_the_papers() -> None:
    gan, batch = family(), microbatch()
    networks = networks_of(gan)
    losses = gan.discriminator_loss(networks, batch)
    fake, labels = gan._fakes(networks, batch, "discriminator", gradients=False)
    real_logits = networks["discriminator"](batch["image"], batch["label"])
    fake_logits = networks["discriminator"](fake, labels)
    expected = (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean()
    torch.testing.assert_close(losses.total, expected)


def test_the_non_saturating_loss_is_minus_log_sigmoid() -> None:
    logits = torch.tensor([-2.0, 0.5, 3.0])
    torch.testing.assert_close(non_saturating_generator(logits), -logits.sigmoid().log().mean())
    losses = family(loss="non_saturating").generator_loss(networks_of(family()), microbatch())
    assert losses.total > 0


def test_the_discriminators_loss_reaches_no_weight_of_the_generator() -> None:
    gan = family()
    networks = networks_of(gan)
    gan.discriminator_loss(networks, microbatch()).total.backward()
    assert all(parameter.grad is None for parameter in networks["generator"].parameters())


@pytest.mark.parametrize(("how", "missing"), [("data", {1}), ("uniform", set())])
def test_fake_labels_follow_the_data_or_are_uniform(how: str, missing: set) -> None:
    labels = family(fake_labels=how)._fake_labels(Draws(0), "labels", range(400))
    assert {0, 1, 2} - set(labels.tolist()) == missing
    if how == "data":
        assert 0.65 < (labels == 2).float().mean() < 0.85


def test_orthogonal_regularisation_is_in_the_generators_phase_only() -> None:
    penalties = [phase.weight_penalty for phase in family().phases]
    assert penalties[0] is None
    networks = networks_of(family())
    assert penalties[1](networks) == orthogonal_penalty(networks["generator"], 1e-4)
    assert [phase.weight_penalty for phase in family(orthogonal_regularisation=0).phases] == [None, None]


@pytest.mark.parametrize(
    "sampling", [{}, {"statistics": "standing", "standing_batches": 2}, {"truncation": 0.5}], ids=str
)
def test_a_sample_depends_on_its_index_and_not_on_its_batch(sampling: dict) -> None:
    gan = family()
    options = GANSamplingOptions(**sampling)
    prepared = gan.prepare_sampling(networks_of(gan), options, seed=3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    whole = sampled(gan, prepared, labels, range(7), 3, options)
    parts = torch.cat([sampled(gan, prepared, labels[i : i + 1], [i], 3, options) for i in range(7)])
    assert (to_uint8(whole).int() - to_uint8(parts).int()).abs().max() <= 1
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


def test_standing_statistics_leave_the_given_network_alone() -> None:
    gan = family()
    networks = networks_of(gan)
    before = {name: value.clone() for name, value in networks["generator"].state_dict().items()}
    prepared = gan.prepare_sampling(networks, GANSamplingOptions(statistics="standing", standing_batches=2), seed=0)
    assert all(torch.equal(networks["generator"].state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(prepared["generator"].norm.running_mean, before["norm.running_mean"])


def test_truncation_draws_the_truncated_normal() -> None:
    z = family().draw_latents(asked({}, range(4000)), GANSamplingOptions(truncation=1.0))
    assert z.abs().max() <= 1.0
    assert z.abs().max() > 0.99
    # The variance of a standard normal cut at +-1: 1 - 2 phi(1) / (2 Phi(1) - 1).
    assert abs(z.var().item() - 0.2912) < 0.01


def test_the_reported_singular_values_are_those_of_the_first_layers() -> None:
    gan = family()
    networks = networks_of(gan)
    for phase, loss in zip(gan.phases, (gan.discriminator_loss, gan.generator_loss), strict=True):
        (name,) = phase.trains
        network = networks[name]
        set_recording(network, True)
        for _ in range(60):
            with torch.no_grad():
                loss(networks, microbatch(3))
            commit(network, torch.tensor(True))
        set_recording(network, False)
        reports = phase.reports(networks)
        first = network.blocks[0].conv1.weight.detach().flatten(1)
        assert float(reports["singular_value/first_block"]) == pytest.approx(
            float(torch.linalg.matrix_norm(first, 2)), rel=0.02
        )
        assert reports["singular_value/largest"] >= reports["singular_value/first_block"]
