"""Forward is pure: what a loss computes is applied by the commit, of the trained component, if the update was sound."""

import copy
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bigtrain.families.abilities import InitialisedByData, Reconstructs
from bigtrain.families.family import Family
from bigtrain.families.phases import Phase
from bigtrain.networks.layers.statistics import commit
from bigtrain.randomness import Draws
from bigtrain.training.averaging import Average, EmaOptions
from tests.families_table import CASES
from tests.training.small_steps import focus, microbatch, small_family, small_networks

YES, NO = torch.tensor(True), torch.tensor(False)
families = pytest.mark.parametrize("family", CASES)


def state_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    return {f"{key}.{name}": t.clone() for key, net in networks.items() for name, t in net.state_dict().items()}


def loss(made: Family, networks: Mapping[str, nn.Module], phase: Phase) -> Tensor:
    """Of the same microbatch at every call, with its gradient added."""
    torch.manual_seed(0)
    total = phase.loss(networks, microbatch(made, phase)).total
    total.backward()
    return total.detach()


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


@families
def test_a_loss_leaves_everything_as_it_was_until_its_components_commit(family: str) -> None:
    made = small_family(family)
    networks = small_networks(made)
    for phase in made.phases:
        focus(made, networks, phase)
        before = state_of(networks)
        assert torch.equal(loss(made, networks, phase), loss(made, networks, phase)), "a second forward sees the first"
        assert changed(before, state_of(networks)) == set()
        parameters = {f"{key}.{name}" for key, network in networks.items() for name, _ in network.named_parameters()}
        for name in networks.keys() - set(phase.trains):
            commit(networks[name], YES)
        assert changed(before, state_of(networks)) == set(), "a frozen component has learned"
        for name in phase.trains:
            commit(networks[name], YES)
        assert not changed(before, state_of(networks)) & parameters


@families
def test_an_update_that_is_not_sound_leaves_the_statistics_as_they_were(family: str) -> None:
    made = small_family(family)
    networks = small_networks(made)
    for phase in made.phases:
        focus(made, networks, phase)
        before = state_of(networks)
        loss(made, networks, phase)
        for name in phase.trains:
            commit(networks[name], NO)
        assert changed(before, state_of(networks)) == set()
        # And its notes are forgotten: the next update is what it would have been without it.
        other = copy.deepcopy(networks)
        for each in (networks, other):
            focus(made, each, phase)
        fresh = small_networks(made)
        for name, network in fresh.items():
            network.load_state_dict(networks[name].state_dict())
        focus(made, fresh, phase)
        for each in (networks, fresh):
            loss(made, each, phase)
            for name in phase.trains:
                commit(each[name], YES)
        assert changed(state_of(fresh), state_of(networks)) == set()


@families
def test_nothing_but_dropout_draws_otherwise_than_by_its_key(family: str) -> None:
    """A loss leaves the generators of torch, numpy and Python as they were; a family says whether its losses draw at all."""
    made = small_family(family)
    networks = small_networks(made)
    drawn: list[str] = []

    class Noted(Draws):
        def normal(self, stream: str, *args: Any, **kwargs: Any) -> Tensor:
            drawn.append(stream)
            return super().normal(stream, *args, **kwargs)

        def uniform(self, stream: str, *args: Any, **kwargs: Any) -> Tensor:
            drawn.append(stream)
            return super().uniform(stream, *args, **kwargs)

    for network in networks.values():
        for module in network.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0
    for phase in made.phases:
        focus(made, networks, phase)
        batch = replace(microbatch(made, phase), draws=Noted(0))
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        phase.loss(networks, batch).total.backward()
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert bool(drawn) == made.draws_in_training


@pytest.mark.parametrize("family", [name for name, case in CASES.items() if Reconstructs in case.abilities])
def test_a_reconstruction_knows_its_sample_alone_and_says_whether_it_draws(family: str) -> None:
    made = small_family(family)
    reconstructs = made.require(Reconstructs, family)
    networks = {name: network.eval() for name, network in small_networks(made).items()}
    batch = microbatch(made, made.phases[0])
    if (initialised := made.ability(InitialisedByData)) is not None:
        initialised.initialise(networks, [batch])
    whole = reconstructs.reconstruct(networks, batch)
    last = {name: values[2:] for name, values in batch.items()}
    torch.testing.assert_close(
        reconstructs.reconstruct(networks, replace(batch, fields=last, indices=range(2, 4))), whole[2:]
    )
    otherwise = reconstructs.reconstruct(networks, replace(batch, draws=Draws(1)))
    assert torch.equal(otherwise, whole) != reconstructs.draws_in_reconstruction


@families
def test_what_the_average_does_with_each_tensor_is_the_formula_or_a_copy(family: str) -> None:
    """Promise 6: parameters and batch statistics are averaged; integers, directions and codebooks are copied."""
    made = small_family(family)
    for key, network in small_networks(made).items():
        if not made.components[key].averaged:
            continue
        average = Average(network, EmaOptions(decay=0.75, warmup=False))
        before = {name: tensor.clone() for name, tensor in average.network.state_dict().items()}
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for tensor in network.state_dict().values():
                tensor.copy_(torch.rand(tensor.shape, generator=generator).mul(5).to(tensor.dtype))
        average.update(0, YES)
        ours, theirs = average.network.state_dict(), network.state_dict()
        assert list(ours) == list(theirs)
        parameters = dict(network.named_parameters()).keys()
        for name, tensor in theirs.items():
            copied = torch.equal(ours[name], tensor)
            if name in parameters or not copied:
                torch.testing.assert_close(ours[name], 0.75 * before[name] + 0.25 * tensor, msg=name)
            assert copied or tensor.is_floating_point(), name
