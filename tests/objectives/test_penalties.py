"""Penalties on gradients: their values, their schedule, and what they leave alone. Their gradients: test_gradients.py."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bigtrain.networks.adversarial.architecture import Outputs
from bigtrain.networks.layers.statistics import commit
from bigtrain.objectives.inputs import Inputs
from bigtrain.objectives.penalties import (
    DRAGAN,
    R1,
    R2,
    Drift,
    GANPenalties,
    GradientPenalty,
    NormPenalty,
    Penalties,
    Penalty,
    image_gradients,
)
from bigtrain.randomness import Draws
from tests.objectives.critics import CHANNELS, CLASSES, CRITICS, SIZE, build

SAMPLES = 4
DRAW = partial(Draws(0).uniform, indices=range(SAMPLES))


def inputs(seed: int, samples: int = SAMPLES) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(samples, CHANNELS, SIZE, SIZE, generator=generator) * 2 - 1
    return images, torch.randint(CLASSES, (samples,), generator=generator)


class Plane(nn.Module):
    """<w, x>: its gradient is w at every x."""

    def __init__(self, norm: float) -> None:
        super().__init__()
        weight = torch.randn(CHANNELS * SIZE * SIZE)
        self.weight = nn.Parameter(norm * weight / weight.norm())

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


class Bowl(nn.Module):
    """|x|^2 / 2: its gradient is x."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return images.square().flatten(1).sum(1) / 2


def test_zero_centred_penalties_are_half_the_mean_of_squared_norms() -> None:
    real, fake = inputs(0), inputs(1)
    for penalty, (images, _) in ((R1(), real), (R2(), fake)):
        expected = images.square().flatten(1).sum(1).mean() / 2
        torch.testing.assert_close(penalty.value(Bowl(), real, fake, DRAW), expected)


@pytest.mark.parametrize(("norm", "target"), [(3.0, 1.0), (0.5, 1.0), (3.0, 4.0)])
def test_the_gradient_penalty_is_two_sided(norm: float, target: float) -> None:
    value = GradientPenalty(target=target).value(Plane(norm), inputs(0), inputs(1), DRAW)
    assert value.item() == pytest.approx((norm - target) ** 2, rel=1e-5)


@pytest.mark.parametrize("penalty", [GradientPenalty, DRAGAN])
@pytest.mark.parametrize(("norm", "expected"), [(3.0, 2.0), (0.5, 0.0)])
def test_a_one_sided_penalty_leaves_norms_below_its_target_alone(
    penalty: type[NormPenalty], norm: float, expected: float
) -> None:
    value = penalty(one_sided=True).value(Plane(norm), inputs(0), inputs(1), DRAW)
    assert value.item() == pytest.approx(expected**2, rel=1e-5)


def test_dragan_looks_around_real_images() -> None:
    real, fake, seen = inputs(0), inputs(1), []

    class Seeing(Bowl):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            seen.append((images.detach(), labels))
            return super().forward(images, labels)

    DRAGAN(noise=0.3).value(Seeing(), real, fake, DRAW)
    ((images, labels),) = seen
    most = 0.3 * real[0].std(correction=0)
    shares = ((images - real[0]) / most).flatten(1)
    epsilon = DRAW("dragan/epsilon").float()
    assert shares.min() >= 0
    torch.testing.assert_close(shares.amax(1), epsilon, rtol=0.02, atol=0.02)
    torch.testing.assert_close(shares.mean(1), epsilon / 2, rtol=0.1, atol=0.01)
    assert torch.equal(labels, real[1])


def test_drift_is_the_mean_square_of_real_logits() -> None:
    logits = torch.tensor([1.0, -2.0, 3.0])
    terms = GANPenalties(drift=Drift(weight=0.5)).terms_on_logits(
        0, Bowl(), inputs(0), inputs(1), (logits, -logits), DRAW
    )
    torch.testing.assert_close(terms, {"drift": torch.tensor(0.5 * 14 / 3)})


def test_each_sample_is_mixed_by_a_number_of_its_own_and_keeps_the_class_of_the_real_image() -> None:
    real, fake, seen = inputs(0), inputs(1), []

    class Seeing(Bowl):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            seen.append((images.detach(), labels))
            return super().forward(images, labels)

    GradientPenalty().value(Seeing(), real, fake, DRAW)
    ((images, labels),) = seen
    shares = ((images - fake[0]) / (real[0] - fake[0])).flatten(1)
    torch.testing.assert_close(shares.mean(1), DRAW("epsilon").float(), rtol=1e-3, atol=1e-3)
    assert shares.std(1).max() < 1e-2
    assert torch.equal(labels, real[1])


def test_a_gradient_of_zero_makes_no_nan() -> None:
    critic = Plane(0.0)
    GradientPenalty().value(critic, inputs(0), inputs(1), DRAW).backward()
    assert critic.weight.grad.isfinite().all()


def test_a_map_of_logits_is_penalised_as_its_mean() -> None:
    class Maps(Bowl):
        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return super().forward(images, labels)[:, None, None, None].expand(-1, 1, 5, 7)

    torch.testing.assert_close(image_gradients(Maps(), inputs(0)), image_gradients(Bowl(), inputs(0)))


def test_a_lazy_penalty_has_the_mean_of_one_at_every_step() -> None:
    real, fake = inputs(0), inputs(1)
    always, lazy = Penalties(r1=R1(weight=2.0)), Penalties(r1=R1(weight=2.0, every=16))
    critic = build("convolution")
    values = [lazy.terms(step, critic, real, fake, DRAW)["r1"].item() for step in range(32)]
    assert [step for step, value in enumerate(values) if value] == [0, 16]
    assert sum(values) / 32 == pytest.approx(always.terms(5, critic, real, fake, DRAW)["r1"].item())


def test_penalties_without_weight_are_not_computed() -> None:
    penalties = Penalties.model_validate({"r1": None, "r2": {"weight": 0}, "gradient_penalty": {"weight": 3}})
    assert list(penalties.on_gradients) == ["gradient_penalty"]


@pytest.mark.parametrize("key", ["r1", "r2", "gradient_penalty", "dragan", "orthogonal", "drift", "lecam"])
def test_a_negative_weight_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=r"weight\n.*greater than or equal to 0"):
        GANPenalties.model_validate({key: {"weight": -1}})


def test_penalties_on_logits_without_weight_are_not_computed() -> None:
    penalties = GANPenalties.model_validate({key: {"weight": 0} for key in ("drift", "lecam")})
    assert penalties.terms_on_logits(0, Bowl(), inputs(0), inputs(1), (torch.ones(2), torch.ones(2)), DRAW) == {}
    assert penalties.moving_averages == {}


@pytest.mark.parametrize("critic", CRITICS)
def test_a_penalty_records_no_statistics(critic: str) -> None:
    network, other = build(critic), None
    other = copy.deepcopy(network)
    for one, penalised in ((network, True), (other, False)):
        one(*inputs(0))
        if penalised:
            R1().value(one, inputs(1), inputs(2), DRAW).backward()
        commit(one, torch.tensor(True))
    for name, tensor in other.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor), name


@pytest.mark.parametrize("penalty", [R1(), DRAGAN(), GradientPenalty(one_sided=True)], ids=lambda p: type(p).__name__)
def test_autocast_lowers_the_precision_of_the_network_alone(penalty: Penalty) -> None:
    gradients = []
    for bf16 in (False, True):
        critic = build("biggan")
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = penalty.value(critic, inputs(0), inputs(1), DRAW)
        assert value.dtype == torch.float32
        value.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in critic.parameters() if p.grad is not None]))
    exact, cast = gradients
    assert 0 < (cast - exact).norm() / exact.norm() < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", ["biggan", "outputs"])
def test_a_compiled_discriminator_is_penalised_by_its_plain_forward(name: str) -> None:
    plain, compiled = build(name), build(name)
    compiled.compile(backend="aot_eager")
    for critic in (plain, compiled):
        Outputs.of(critic(*inputs(0))).logits.sum().backward()
        R1().value(critic, inputs(0), inputs(1), DRAW).backward()
    for (parameter, expected), found in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-4, msg=parameter)
