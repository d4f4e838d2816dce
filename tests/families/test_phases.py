"""When a phase runs, and how often."""

import pytest
import torch

from bigtrain.families.phases import Component, Losses, Microbatch, Networks, Phase


def loss(networks: Networks, batch: Microbatch) -> Losses:
    return Losses(torch.zeros(()), {})


def test_a_stage_has_a_first_step_and_ends_before_its_last() -> None:
    phase = Phase("late", "net", loss, every=2, repeats=3, first_step=3, last_step=8)
    assert [phase.updates_at(step) for step in range(10)] == [0, 0, 0, 0, 3, 0, 3, 0, 0, 0]
    assert phase.mean_updates(10) == pytest.approx(0.6)


def test_the_number_of_updates_may_be_a_function_of_the_step() -> None:
    phase = Phase("often", "net", loss, repeats=lambda step: 5 if step < 2 else 1)
    assert [phase.updates_at(step) for step in range(4)] == [5, 5, 1, 1]
    assert phase.mean_updates(4) == 3


def test_a_phase_that_is_the_same_at_all_steps_needs_no_count_of_them() -> None:
    assert Phase("plain", "net", loss, every=4, repeats=2).mean_updates(1) == 0.5


def test_one_component_may_be_named_by_itself() -> None:
    assert Phase("alone", "net", loss).trains == ("net",)


def test_a_penalty_on_weights_needs_them_whole_and_names_its_key() -> None:
    assert not Phase("light", "net", loss).needs_whole_weights
    with pytest.raises(AssertionError, match="heavy: the key of its weight_penalty"):
        Phase("heavy", "net", loss, weight_penalty=lambda networks: torch.zeros(()))


def test_a_frozen_component_has_no_average() -> None:
    with pytest.raises(AssertionError, match="no average"):
        Component(torch.nn.Identity, None, averaged=True)
