"""How a family's loss changes along a direction of its weights, by gradients and by finite differences."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigtrain.families.family import Family
from bigtrain.families.phases import Microbatch


def slopes(family: Family, networks: Mapping[str, nn.Module], batch: Microbatch, step: float) -> tuple[Tensor, Tensor]:
    """(by finite differences of that step, by gradients) of the first phase's loss; weights in float64."""
    (phase, *_) = family.phases
    parameters = [each for name in phase.trains for each in networks[name].parameters()]
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for parameter, d in zip(parameters, direction, strict=True):
                parameter += by * d
            total = phase.loss(networks, batch).total
            for parameter, d in zip(parameters, direction, strict=True):
                parameter -= by * d
        return total

    gradients = torch.autograd.grad(phase.loss(networks, batch).total, parameters)
    slope = torch.stack([(gradient * d).sum() for gradient, d in zip(gradients, direction, strict=True)]).sum()
    return (moved(step) - moved(-step)) / (2 * step), slope
