from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bigtrain.data.points import points
from bigtrain.errors import UserError
from bigtrain.families.abilities import Samples
from bigtrain.families.adversarial.gan_options import AdversarialGame
from bigtrain.families.adversarial.point_gan import PointGAN, PointGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.panels import Arrows, Dots, Plane
from bigtrain.families.phases import Microbatch
from bigtrain.options import kind_of, members_of
from bigtrain.randomness import Draws

SPEC = DataSpec((0, 0), 1, ("a",), (64,), fields={"point": {"kind": "array", "shape": [2]}})
GAMES = [str(kind_of(member)) for member in members_of(AdversarialGame)]
PENALTIES: list[dict[str, Any]] = [
    {"r1": {}, "r2": {}},
    {"gradient_penalty": {}},
    {"dragan": {}, "drift": {}, "lecam": {"start_step": 1}, "latent_consistency": {}, "orthogonal": {"weight": 0.1}},
]  # fmt: skip


@pytest.fixture
def float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def family(**options: Any) -> PointGAN:
    known = {"kind": "point_gan", "generator_optimizer": {"lr": 1e-3}, "discriminator_optimizer": {"lr": 1e-3}}
    return PointGAN(PointGANOptions.model_validate(known | options), SPEC)


def microbatch(step: int = 1) -> Microbatch:
    real = torch.from_numpy(points("gaussians8", "train")[0][64 * step : 64 * step + 64])
    return Microbatch({"point": real}, range(64), Draws(0, step=step), torch.device("cpu"), 64)


@pytest.mark.parametrize("penalties", PENALTIES, ids=lambda penalties: "+".join(penalties))
@pytest.mark.parametrize("game", GAMES)
def test_every_game_gives_every_weight_a_finite_gradient(game: str, penalties: dict[str, Any]) -> None:
    discriminator = {"kind": "autoencoder"} if game == "energy_based" else {}
    gan = family(objective={"kind": game}, penalties=penalties, discriminator=discriminator)
    networks = {name: build_network(gan, name, 0) for name in gan.components}
    for name, loss in (("discriminator", gan.discriminator_loss), ("generator", gan.generator_loss)):
        parameters = dict(networks[name].named_parameters())
        total = loss(networks, microbatch()).total
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
        found = {at: gradient for at, gradient in zip(parameters, gradients, strict=True) if gradient is not None}
        assert found.keys() | {"out.bias"} == parameters.keys()  # a penalty on gradients does not feel the last bias
        assert all(gradient.isfinite().all() for gradient in found.values())
        assert any(gradient.abs().max() > 0 for gradient in found.values())


def test_the_networks_have_the_stated_counts() -> None:
    gans = [family(), family(discriminator={"kind": "autoencoder"})]
    counts = [
        sum(p.numel() for p in build_network(gan, name, 0).parameters()) for gan in gans for name in gan.components
    ]
    assert counts == [33_666, 33_537, 33_666, 1_284]


def test_a_scale_is_of_the_points_on_both_sides() -> None:
    z = torch.from_numpy(np.float32([[0.5, -1.0], [2.0, 0.1]]))
    for kind in ("mlp", "autoencoder"):
        plain = family(discriminator={"kind": kind})
        scaled = family(generator={"scale": 2.0}, discriminator={"kind": kind, "scale": 2.0})
        made = [build_network(gan, "generator", 0)(z) for gan in (plain, scaled)]
        torch.testing.assert_close(made[1], 2 * made[0])
        judges = [build_network(gan, "discriminator", 0) for gan in (plain, scaled)]
        torch.testing.assert_close(*(judge(point) for judge, point in zip(judges, made, strict=True)))


def test_an_autoencoders_logit_is_its_error_and_it_shows_what_it_makes() -> None:
    gan = family(
        objective={"kind": "energy_based"}, discriminator={"kind": "autoencoder", "code_size": 3, "scale": 2.0}
    )
    point = torch.tensor([[1.0, -2.0], [0.5, 0.25]])
    said = build_network(gan, "discriminator", 0)(point)
    torch.testing.assert_close(said.logits, -((said.reconstruction - point) / 2).square().mean(1))
    assert said.features.shape == (2, 3)


def test_what_needs_images_is_refused() -> None:
    with pytest.raises(ValueError, match="consistency flips and shifts images, and points are none"):
        family(penalties={"consistency": {}})
    with pytest.raises(
        ValueError, match=r"^family\.augmentation: changes images of one channel or three, and the data have no images"
    ):
        family(augmentation={"kind": "diffaug"})
    with pytest.raises(ValueError, match=r"energy_based needs the reconstruction .*kind to autoencoder"):
        family(objective={"kind": "energy_based"})


def test_who_asks_for_images_is_told_what_there_is_of_points() -> None:
    said = "a point_gan draws points, and no images; launch/evaluate.py measures them"
    with pytest.raises(UserError, match=f"^runs/a: {said}, and the pictures in RUN/samples show them$"):
        family().require(Samples, "runs/a")
    in_space = DataSpec((0, 0), 1, ("a", "b"), (6, 8), fields={"point": {"kind": "array", "shape": [3]}})
    with pytest.raises(UserError, match=f"^runs/a: {said}$"):
        PointGAN(family().options, in_space).require(Samples, "runs/a")


def test_data_that_are_no_vectors_are_refused() -> None:
    paths = DataSpec((0, 0), 1, ("a",), (64,), fields={"point": {"kind": "array", "shape": [8, 2]}})
    options = family().options
    with pytest.raises(
        ValueError, match=r"data.train: a point_gan needs a field point of numbers, and its shape is \[8, 2\]"
    ):
        PointGAN(options, paths)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("game", GAMES)
def test_samples_are_pushed_along_minus_the_gradient_of_the_generators_loss(game: str) -> None:
    discriminator = {"kind": "autoencoder"} if game == "energy_based" else {}
    objective = {"kind": game} | ({"clip": 1.0} if game == "wasserstein" else {})
    gan = family(objective=objective, discriminator=discriminator)
    networks = {name: build_network(gan, name, 0) for name in gan.components}
    shown = torch.from_numpy(points("gaussians8", "train")[0][:8]).double()
    (plane,) = gan.panels(networks, shown, {}, Draws(0))
    assert isinstance(plane, Plane)
    data, arrows, samples = plane.layers
    assert isinstance(data, Dots)
    assert isinstance(arrows, Arrows)
    assert isinstance(samples, Dots)
    asked = Microbatch({"point": shown}, range(8), Draws(0), torch.device("cpu"), 8)

    def loss(made: torch.Tensor) -> torch.Tensor:
        value, terms = gan.loss_of_fakes(networks, asked, (made,))
        return sum(terms.values(), value)

    nudge = torch.zeros_like(samples.points)
    nudge[3, 1] = 1e-6
    slope = (loss(samples.points + nudge) - loss(samples.points - nudge)) / 2e-6
    torch.testing.assert_close(arrows.along[3, 1], -8 * slope, rtol=1e-5, atol=1e-8)


def test_the_field_is_what_the_discriminator_says_there() -> None:
    gan = family(window=[-2.0, 4.0, -1.0, 1.0])
    networks = {name: build_network(gan, name, 0) for name in gan.components}
    networks["discriminator"].register_forward_hook(lambda module, inputs, said: 3 * inputs[0][:, 0])
    (plane,) = gan.panels(networks, torch.zeros(8, 2), {}, Draws(0))
    assert isinstance(plane, Plane)
    assert plane.shade is not None
    assert (plane.shade[0].diff() > 0).all()
    assert (plane.shade[0] == plane.shade[-1]).all()
    assert plane.shade[0, 0] < -0.3
    assert plane.shade[0, -1] > 0.3


def test_probes_are_the_norms_of_the_gradients_of_both_games() -> None:
    gan = family(probe_gradients=True)
    networks = {name: build_network(gan, name, 0) for name in gan.components}
    networks["generator"].requires_grad_(False)  # as it is while the discriminator is trained
    assert gan.phases[0].reports is not None
    found = gan.phases[0].reports(networks)
    assert not any(parameter.requires_grad for parameter in networks["generator"].parameters())
    networks["generator"].requires_grad_(True)
    logits = networks["discriminator"](networks["generator"](Draws(0).normal("probe/z", range(256), (2,))))
    losses = {"minimax": -F.softplus(logits).mean(), "non_saturating": F.softplus(-logits).mean()}
    for name, loss in losses.items():
        gradients = torch.autograd.grad(loss, list(networks["generator"].parameters()), retain_graph=True)
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        torch.testing.assert_close(found[f"generator_gradient/{name}"], norm)


def test_a_generator_waits_for_its_first_step() -> None:
    _, generator = family(generator_first_step=7).phases
    assert [generator.updates_at(step) for step in (0, 6, 7)] == [0, 0, 1]
