"""Optimizers that torch has no fused kernel for. Like the fused ones they leave everything as it was where a flag on the
device, `found_inf`, is 1, without the host reading it."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Group = Mapping[str, Any]
Tensors = list[Tensor] | tuple[Tensor, ...]


class GatedOptimizer(torch.optim.Optimizer):
    """Computes new parameters and new state for each group, and keeps them unless `found_inf` is 1.

    State is by parameter, as torch's own optimizers name it.
    """

    found_inf: Tensor | None = None
    """A scalar on the device of the parameters; None: 0."""

    @abstractmethod
    def start(self, group: Group, parameter: Tensor) -> dict[str, Tensor]:
        """The state of a parameter before its first update."""

    @abstractmethod
    def updated(
        self, group: Group, parameters: Tensors, gradients: Tensors, state: Mapping[str, Tensors]
    ) -> tuple[Tensors, Mapping[str, Tensors]]:
        """(parameters, state) after an update; nothing is changed in place."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # torch's takes a closure, which none here has
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._update(group, parameters)

    def _update(self, group: Group, parameters: Tensors) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter] = self.start(group, parameter)
        names = self.state[parameters[0]].keys()
        state = {name: [self.state[parameter][name] for parameter in parameters] for name in names}
        gradients: Tensors = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if group["weight_decay"]:
            gradients = torch._foreach_add(gradients, parameters, alpha=group["weight_decay"])
        new_parameters, new_state = self.updated(group, parameters, gradients, state)
        self._replace(parameters, new_parameters)
        for name, tensors in state.items():
            self._replace(tensors, new_state[name])

    def _replace(self, tensors: Tensors, new: Tensors) -> None:
        if self.found_inf is not None:
            skipped = self.found_inf > 0
            new = [torch.where(skipped, old, value) for old, value in zip(tensors, new, strict=True)]
        torch._foreach_copy_(tensors, new)


class Adamax(GatedOptimizer):
    """Kingma & Ba 2015 (arXiv:1412.6980), algorithm 2: Adam with the infinity norm, as torch.optim.Adamax computes it."""

    def __init__(self, parameters: Any, lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def start(self, group: Group, parameter: Tensor) -> dict[str, Tensor]:
        count = torch.zeros((), dtype=torch.float32, device=parameter.device)
        return {"step": count, "exp_avg": torch.zeros_like(parameter), "exp_inf": torch.zeros_like(parameter)}

    def updated(
        self, group: Group, parameters: Tensors, gradients: Tensors, state: Mapping[str, Tensors]
    ) -> tuple[Tensors, Mapping[str, Tensors]]:
        first, second = group["betas"]
        steps = torch._foreach_add(state["step"], 1)
        means = torch._foreach_lerp(state["exp_avg"], gradients, 1 - first)
        magnitudes = torch._foreach_add(torch._foreach_abs(gradients), group["eps"])
        largest = torch._foreach_maximum(torch._foreach_mul(state["exp_inf"], second), magnitudes)
        # lr / (1 - first^t), with t on the device
        rates = [group["lr"] / (1 - first ** count.double()) for count in steps]
        changes = [mean / most * rate for mean, most, rate in zip(means, largest, rates, strict=True)]
        new = torch._foreach_sub(parameters, changes)
        return new, {"step": steps, "exp_avg": means, "exp_inf": largest}


class RMSprop(GatedOptimizer):
    """Tieleman & Hinton 2012 (lecture 6.5), centred as in Graves 2013 (arXiv:1308.0850), as torch.optim.RMSprop computes it."""

    def __init__(
        self,
        parameters: Any,
        lr: float,
        alpha: float,
        eps: float,
        weight_decay: float,
        momentum: float,
        centered: bool,
    ) -> None:
        defaults = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(parameters, defaults | {"momentum": momentum, "centered": centered})

    def start(self, group: Group, parameter: Tensor) -> dict[str, Tensor]:
        names = ["square_avg"] + ["grad_avg"] * group["centered"] + ["momentum_buffer"] * bool(group["momentum"])
        return {name: torch.zeros_like(parameter) for name in names}

    def updated(
        self, group: Group, parameters: Tensors, gradients: Tensors, state: Mapping[str, Tensors]
    ) -> tuple[Tensors, Mapping[str, Tensors]]:
        new_state: dict[str, Tensors] = {}
        new_state["square_avg"] = self._averages(group, state["square_avg"], torch._foreach_mul(gradients, gradients))
        variances = new_state["square_avg"]
        if group["centered"]:
            means = new_state["grad_avg"] = self._averages(group, state["grad_avg"], gradients)
            variances = torch._foreach_addcmul(variances, means, means, value=-1)
        divisors = torch._foreach_add(torch._foreach_sqrt(variances), group["eps"])
        changes = torch._foreach_div(gradients, divisors)
        if group["momentum"]:
            old = torch._foreach_mul(state["momentum_buffer"], group["momentum"])
            changes = new_state["momentum_buffer"] = torch._foreach_add(old, changes)
        return torch._foreach_add(parameters, changes, alpha=-group["lr"]), new_state

    @staticmethod
    def _averages(group: Group, averages: Tensors, values: Tensors) -> Tensors:
        return torch._foreach_lerp(averages, values, 1 - group["alpha"])
