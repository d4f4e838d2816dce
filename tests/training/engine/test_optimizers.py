"""The optimizers that are our own beside torch's, and the groups of parameters."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigtrain.families.phases import Component, OptimizerOptions, ParameterGroup
from bigtrain.training.engine.optimizers import (
    clamp,
    grouped_names,
    moment_names,
    moments_per_weight,
    optimizer_of,
    set_rate,
)

LR = 0.01
KINDS: Mapping[str, tuple[dict[str, Any], type[torch.optim.Optimizer], dict[str, Any]]] = {
    "adamax": ({"kind": "adamax", "betas": (0.8, 0.95)}, torch.optim.Adamax, {"betas": (0.8, 0.95)}),
    "rmsprop": ({"kind": "rmsprop", "alpha": 0.9}, torch.optim.RMSprop, {"alpha": 0.9}),
    "rmsprop with momentum": (
        {"kind": "rmsprop", "momentum": 0.9, "centered": True, "eps": 1e-3},
        torch.optim.RMSprop,
        {"momentum": 0.9, "centered": True, "eps": 1e-3},
    ),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()


def ours(made: nn.Module, options: Mapping[str, Any], **component: Any) -> torch.optim.Optimizer:
    return optimizer_of(
        Component(lambda: made, OptimizerOptions(lr=LR, **options), **component), dict(made.named_parameters())
    )


def set_gradients(made: nn.Module, step: int, scale: float = 1.0) -> None:
    """Of every parameter: some are 0 at some steps."""
    generator = torch.Generator().manual_seed(step)
    for parameter in made.parameters():
        values = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        parameter.grad = scale * torch.where(values > -0.5, values, 0)


def state_of(made: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for parameter in made.parameters() for value in optimizer.state[parameter].values()]
    return [tensor.detach().clone() for tensor in (*made.parameters(), *moments)]


@kinds
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_an_optimizer_of_our_own_is_torchs(kind: str, weight_decay: float) -> None:
    options, theirs, arguments = KINDS[kind]
    mine, its = network(), network()
    optimizer = ours(mine, options | {"weight_decay": weight_decay})
    plain = theirs(its.parameters(), lr=LR, weight_decay=weight_decay, **arguments)
    for step in range(5):
        for each, of in ((mine, optimizer), (its, plain)):
            set_gradients(each, step)
            of.step()
    for own, their in zip(mine.parameters(), its.parameters(), strict=True):
        torch.testing.assert_close(own, their, rtol=1e-12, atol=1e-12)
        assert plain.state[their].keys() - {"step"} == optimizer.state[own].keys() - {"step"}
        for name, value in optimizer.state[own].items():
            torch.testing.assert_close(value.double(), plain.state[their][name].double(), rtol=1e-12, atol=1e-12)


@kinds
@pytest.mark.parametrize("first", [True, False])
def test_a_flag_on_the_device_leaves_weights_and_state_as_they_were(kind: str, first: bool) -> None:
    made = network()
    optimizer = ours(made, KINDS[kind][0] | {"weight_decay": 0.1})
    if not first:
        set_gradients(made, 0)
        optimizer.step()
    before = state_of(made, optimizer)
    set_gradients(made, 1, float("nan"))
    optimizer.found_inf = torch.ones(())
    optimizer.step()
    after = state_of(made, optimizer)
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=False))
    assert not any(tensor.any() for tensor in after[len(before) :]), "state that was made by the skipped update"
    optimizer.found_inf = torch.zeros(())
    set_gradients(made, 2)
    optimizer.step()
    assert not any(torch.equal(old, new.detach()) for old, new in zip(before, made.parameters(), strict=False))


def test_groups_have_a_rate_and_a_decay_of_their_own() -> None:
    """The first group that holds a parameter takes it, and a group that holds none is no group."""
    made = network()
    groups = [
        ParameterGroup(lambda name, parameter: name.startswith("9")),
        ParameterGroup(lambda name, parameter: name.endswith("bias"), lr_scale=0.01, weight_decay=0.0),
        ParameterGroup(lambda name, parameter: name.startswith("2"), lr_scale=0.5),
    ]
    component = Component(lambda: made, OptimizerOptions(kind="sgd", lr=LR, weight_decay=0.1), groups=groups)
    named = grouped_names(component, dict(made.named_parameters()))
    assert named == [["0.weight"], ["0.bias", "2.bias"], ["2.weight"]]
    optimizer = optimizer_of(component, dict(made.named_parameters()))
    set_rate(optimizer, 0.2)
    rates = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert rates == [(0.2, 0.1), (pytest.approx(0.002), 0.0), (0.1, 0.1)]


@pytest.mark.parametrize(
    "options",
    [{"kind": kind} for kind in ("adam", "adamw", "sgd")] + [each for each, _, _ in KINDS.values()],
)
def test_the_state_of_a_weight_is_as_large_as_a_plan_says(options: Mapping[str, Any]) -> None:
    made = network().float()
    optimizer = ours(made, options)
    set_gradients(made, 0)
    optimizer.step()
    state = optimizer.state[made[0].weight].items()
    tensors = {name: value for name, value in state if isinstance(value, Tensor)}
    assert tensors.keys() == moment_names(OptimizerOptions(lr=LR, **options))
    of_its_size = [value for value in tensors.values() if value.shape == made[0].weight.shape]
    assert len(of_its_size) == moments_per_weight(OptimizerOptions(lr=LR, **options))


def test_weights_are_clamped_unless_the_update_was_skipped() -> None:
    weights = [torch.tensor([-2.0, -0.1, 0.3, 5.0]), torch.tensor([1.0])]
    clamp(weights, 0.2, torch.tensor(False))
    assert weights[0].tolist() == pytest.approx([-2.0, -0.1, 0.3, 5.0])
    clamp(weights, 0.2, torch.tensor(True))
    assert weights[0].tolist() == pytest.approx([-0.2, -0.1, 0.2, 0.2])
    assert weights[1].tolist() == pytest.approx([0.2])
