"""What is recorded of every UNet, and how the authors' code is brought to compute in float64."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from tests.recordings.formula import pattern, weight
from tests.recordings.summary import excerpt, gradients, objective

TIMES = [0, 421]
CLASSES = 3
LABELS = [2, 0]


class Float64Torch(ModuleType):
    """torch, whose float32 is float64: in place of the `torch` of a module that asks for float32 by name."""

    float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


def compute_in_float64(**modules: ModuleType) -> None:
    """Changes the authors' modules, given by the name under which each knows torch: their norms, attentions and times convert
    to float32 whatever the network's dtype, by `.float()` and by `torch.float32`."""
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    for name, module in modules.items():
        setattr(module, name, Float64Torch("torch"))


def images(size: int) -> Tensor:
    """[2, 3, size, size], a leaf."""
    return pattern("images", (len(TIMES), 3, size, size), 1.5).requires_grad_()


def step(forward: Callable[..., Tensor], x: Tensor, labels: bool, leaves: dict[str, Tensor]) -> dict[str, Any]:
    """The output of one forward at TIMES, and what its backward leaves in the images and in `leaves`."""
    given = (torch.tensor(LABELS),) if labels else ()
    output = forward(x, torch.tensor(TIMES), *given)
    objective(output).backward()
    return {"output": excerpt(output), "gradients": gradients({"input": x, **leaves})}


def shapes(network: nn.Module) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in network.state_dict().items()}


def record(network: nn.Module, size: int, labels: bool) -> dict[str, Any]:
    """A step of the authors' network, whose weights become the formula's."""
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            tensor.copy_(weight(name, tensor.shape))
    recorded = step(network, images(size), labels, dict(network.named_parameters()))
    return {"shapes": shapes(network), **recorded}


def publish(network: nn.Module) -> dict[str, Any]:
    """Of a network on the meta device: its number of parameters and its tensors."""
    return {"parameters": sum(p.numel() for p in network.parameters()), "shapes": shapes(network)}
