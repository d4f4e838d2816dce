"""The translation family: what it makes of options and pairs, and what a sample depends on."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.family import Family
from bigtrain.families.phases import Networks
from bigtrain.families.translation.translation import TranslationOptions, TranslationSamplingOptions
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.randomness import Draws
from tests.training.small_steps import focus, microbatch, run_phase, small_family, small_networks

SMALL: dict[str, Any] = {"kind": "translation", "generator_optimizer": {"lr": 1e-3}}
WITH_GAME = SMALL | {"discriminator_optimizer": {"lr": 1e-3}}


def drawn(family: Any, networks: Networks, inputs: Tensor, numbers: list[int], **sampling: Any) -> Tensor:
    options = TranslationSamplingOptions(**sampling)
    prepared = family.prepare_sampling(networks, options, 0)
    return family.sample(prepared, microbatch_of({"input": inputs}, numbers, Draws(0)), options)


def seen_by(networks: Networks, component: str, what: str) -> list[Tensor]:
    """What the component is given, or what it makes, at each call from now on."""
    seen: list[Tensor] = []
    networks[component].register_forward_hook(
        lambda module, given, output: seen.append((given[0] if what == "given" else output).detach())
    )
    return seen


def test_a_sample_depends_on_its_input_and_its_number_and_not_on_its_batch() -> None:
    family = small_family("translation")
    networks, inputs = small_networks(family), torch.rand(3, 1, 16, 16) * 2 - 1
    together = drawn(family, networks, inputs, [4, 5, 6])
    alone = torch.cat([drawn(family, networks, inputs[k : k + 1], [4 + k]) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    other = drawn(family, networks, inputs, [7, 8, 9])
    assert (together - other).abs().amax((1, 2, 3)).min() > 1e-3, "the dropout of another number makes another sample"


def test_running_statistics_give_other_samples_than_those_of_the_sample() -> None:
    family = small_family("translation")
    networks, inputs = small_networks(family), torch.rand(2, 1, 16, 16) * 2 - 1
    samples = [drawn(family, networks, inputs, [0, 1], statistics=kind) for kind in ("sample", "running")]
    assert not torch.allclose(*samples, atol=1e-3)


def test_both_phases_see_the_same_outputs() -> None:
    """As in the authors' code, which computes them once: the pairs and the draws of both phases are the same."""
    family = small_family("translation")
    networks = small_networks(family)
    outputs = seen_by(networks, "generator", "made")
    discriminator, generator = family.phases
    assert (tuple(discriminator.trains), discriminator.batch) == (("discriminator",), "new")
    assert (tuple(generator.trains), generator.batch) == (("generator",), "previous")
    for phase in (discriminator, generator):
        phase.loss(networks, microbatch(family, phase))
    assert torch.equal(*outputs)


def test_the_discriminator_sees_the_input_beside_the_target_or_the_output() -> None:
    family = small_family("translation", channels=3)
    networks, batch = small_networks(family), microbatch(family, family.phases[0])
    given = seen_by(networks, "discriminator", "given")
    family.phases[0].loss(networks, batch)
    fake, real = given
    assert torch.equal(real, torch.cat([batch["input"], batch["image"]], 1))
    assert torch.equal(fake[:, :1], batch["input"])
    assert not torch.allclose(fake[:, 1:], batch["image"], atol=0.1)


def test_without_a_game_there_is_no_discriminator_and_the_loss_is_the_distance() -> None:
    family = small_family("translation", objective=None, l1_weight=2.0)
    assert list(family.components) == ["generator"]
    (phase,) = family.phases
    assert phase.batch == "new"
    losses = phase.loss(small_networks(family), microbatch(family, phase))
    torch.testing.assert_close(losses.total, 2 * losses.terms["l1"])


@pytest.mark.parametrize(
    ("objective", "penalties", "norm"),
    [
        ({"kind": "least_squares"}, {}, "batch"),
        ({"kind": "wasserstein", "clip": 0.01}, {}, "batch"),
        ({"kind": "hinge"}, {"r1": {"weight": 0.1}}, "batch"),
        ({"kind": "wasserstein"}, {"gradient_penalty": {}}, "instance"),
        ({"kind": "hinge"}, {"orthogonal": {}}, "none"),
    ],
    ids=str,
)
def test_every_game_and_penalty_reaches_every_weight(
    objective: dict[str, Any], penalties: dict[str, Any], norm: str
) -> None:
    patch = {"layers": 1, "channels": 4, "norm": norm}
    family = small_family("translation", objective=objective, penalties=penalties, discriminator=patch)
    networks = small_networks(family)
    for phase in family.phases:
        results = run_phase(family, networks, phase)
        reached = {name for name, value in results.items() if name.startswith("gradient of") and value.any()}
        (trained,) = phase.trains
        # The last bias adds the same to real and to fake, which cancels in these games while no logit is beyond its margin.
        cancels = objective["kind"] in ("wasserstein", "hinge")
        unreached = {"gradient of discriminator.conv.bias"} if cancels else set()
        assert {
            f"gradient of {trained}.{name}" for name, _ in networks[trained].named_parameters()
        } - reached <= unreached
    assert family.phases[0].weight_clip == objective.get("clip")
    assert (family.phases[1].weight_penalty is not None) == ("orthogonal" in penalties)


def test_penalties_that_need_whole_weights_say_so() -> None:
    """zero3 drops the weights that a penalty's second backward pass reads; without a penalty it can train both networks."""

    def need(**penalties: Any) -> list[list[str]]:
        return [[*phase.needs_whole_weights] for phase in small_family("translation", penalties=penalties).phases]

    assert need(r1={}) == [["penalties.r1"], []]
    assert need(orthogonal={}) == [[], ["penalties.orthogonal"]]
    assert need(r1={"weight": 0}, orthogonal={"weight": 0}) == [[], []]


def test_only_the_trained_component_records_its_batch_statistics() -> None:
    family = small_family("translation")
    networks = small_networks(family)
    focus(family, networks, family.phases[0])
    family.phases[0].loss(networks, microbatch(family, family.phases[0]))
    notes = {
        name: {float(buffer) for key, buffer in network.named_buffers() if key.endswith(".notes")}
        for name, network in networks.items()
    }
    assert notes == {"generator": {0.0}, "discriminator": {2.0}}, (
        "the discriminator is called twice: for fake and for real"
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (SMALL, "discriminator_optimizer: give it, .* or set objective: null"),
        (SMALL | {"objective": None, "l1_weight": 0}, "l1_weight: 0 and objective: null leave nothing to learn from"),
        (SMALL | {"objective": None, "penalties": {"r1": {}}}, "penalties: r1 is on a discriminator"),
        (WITH_GAME | {"penalties": {"gradient_penalty": {}}}, "gradient_penalty .* discriminator with batch norm"),
        (WITH_GAME | {"objective": {"kind": "wasserstein"}}, "objective: wasserstein needs a discriminator of bounded"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValidationError, match=sentence):
        TranslationOptions.model_validate(options)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"generator": {"depth": 5}}, r"family\.generator\.depth: 5 down blocks .* choose at most 4"),
        ({"discriminator": {"layers": 3}}, r"family\.discriminator\.layers: 3 leave no patch of images of 16 pixels"),
    ],
)
def test_networks_that_do_not_fit_the_images_are_refused_before_they_are_built(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        small_family("translation", **change)


def with_input(family: Family, **facts: Any) -> Family:
    """The family for data whose field `input` says this of itself."""
    fields = family.spec.fields | {"input": {"kind": "image", **facts}}
    return type(family)(family.options, replace(family.spec, fields=fields))


def test_pairs_of_two_sizes_are_refused() -> None:
    with pytest.raises(UserError, match="input is of 8 pixels and image of 16"):
        with_input(small_family("translation"), size=[8, 8], channels=1)


def test_an_input_that_says_nothing_is_taken_to_be_like_the_target() -> None:
    """In a plan, where the data are not there."""
    planned = with_input(small_family("translation", channels=3))
    assert planned.components["generator"].build().downs[0].conv.in_channels == 3


def test_grey_inputs_become_coloured_outputs() -> None:
    family = small_family("translation", channels=3)
    inputs = microbatch(family, family.phases[0])["input"]
    assert inputs.shape[1] == 1
    assert drawn(family, small_networks(family), inputs, [0, 1, 2, 3]).shape == (4, 3, 16, 16)
