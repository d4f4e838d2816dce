"""The optimizers that a recipe may name, and the groups of parameters that they update alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.families.phases import Component, OptimizerOptions, ParameterGroup
from bigtrain.training.engine.gated import Adamax, RMSprop

COUNT = "step"
"""The name of the number of updates in a parameter's state."""


def grouped_names(component: Component, parameters: Mapping[str, nn.Parameter]) -> list[list[str]]:
    """The names of the parameters in each of the optimizer's groups, the component's own first; none is empty."""
    return [names for _, names in _groups(component, parameters)]


def optimizer_of(component: Component, parameters: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """An optimizer that skips its step where a flag on the device (`found_inf`) says so; with the groups of `grouped_names`.

    A group's `lr_scale` is its rate in units of the component's.
    """
    options = component.optimizer
    assert options is not None, "a frozen component has no optimizer"
    groups = []
    for group, names in _groups(component, parameters):
        decay = options.weight_decay if group.weight_decay is None else group.weight_decay
        params = [parameters[name] for name in names]
        groups.append({"params": params, "lr_scale": group.lr_scale, "weight_decay": decay})
    return _make(options, groups)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the learning rate of the component."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]


def allocate_momentum(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Allocates SGD's momentum. SGD does so itself at its first update, but uninitialised if that update is skipped."""
    if isinstance(optimizer, torch.optim.SGD) and optimizer.defaults["momentum"]:
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def clip_scale(norm: Tensor, clip_norm: float) -> Tensor:
    """What a gradient of this norm is multiplied by, a scalar, so that its norm is at most `clip_norm`."""
    return (clip_norm / (norm + 1e-6)).clamp(max=1.0)


def clamp(weights: Sequence[Tensor], largest: float, applied: Tensor) -> None:
    """Clamps all values to [-largest, largest], in place, unless `applied` (bool scalar on their device) is False."""
    bound = torch.where(applied, largest, torch.inf)
    for tensor in weights:
        tensor.clamp_(-bound, bound)


def moments_per_weight(options: OptimizerOptions) -> int:
    """How many tensors of the size of a parameter its state has."""
    return len(moment_names(options) - {COUNT})


def moment_names(options: OptimizerOptions) -> set[str]:
    """The tensors of a parameter's state: COUNT, a scalar, and those of the parameter's size."""
    momentum = {"momentum_buffer"} if options.momentum else set()
    match options.kind:
        case "sgd":
            return momentum
        case "rmsprop":
            return {"square_avg"} | ({"grad_avg"} if options.centered else set()) | momentum
        case "adamax":
            return {COUNT, "exp_avg", "exp_inf"}
        case _:
            return {COUNT, "exp_avg", "exp_avg_sq"}


def _groups(component: Component, parameters: Mapping[str, nn.Parameter]) -> list[tuple[ParameterGroup, list[str]]]:
    own = ParameterGroup(lambda name, parameter: True)
    named: list[tuple[ParameterGroup, list[str]]] = [(group, []) for group in (*component.groups, own)]
    for name, parameter in parameters.items():
        next(names for group, names in named if group.holds(name, parameter)).append(name)
    return [(group, names) for group, names in (named[-1], *named[:-1]) if names]


def _make(options: OptimizerOptions, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    lr, decay = options.lr, options.weight_decay
    match options.kind:
        case "adam":
            return torch.optim.Adam(groups, lr, options.betas, options.eps, decay, fused=True)
        case "adamw":
            return torch.optim.AdamW(groups, lr, options.betas, options.eps, decay, fused=True)
        case "sgd":
            return torch.optim.SGD(groups, lr, momentum=options.momentum, weight_decay=decay, fused=True)
        case "adamax":
            return Adamax(groups, lr, options.betas, options.eps, decay)
        case "rmsprop":
            return RMSprop(groups, lr, options.alpha, options.eps, decay, options.momentum, options.centered)
