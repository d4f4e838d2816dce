"""The optimizers that a recipe may name."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bigtrain.families.phases import Component


def optimizer_of(component: Component, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fused optimizer: one kernel, and a flag on the device (`found_inf`) that makes it skip its step."""
    options = component.optimizer
    if options.kind == "sgd":
        return torch.optim.SGD(
            parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
        )
    kind = torch.optim.Adam if options.kind == "adam" else torch.optim.AdamW
    return kind(
        parameters, options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay, fused=True
    )


def allocate_momentum(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """Allocates SGD's momentum. SGD does so itself at its first update, but uninitialised if that update is skipped."""
    if optimizer.defaults.get("momentum"):
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
