"""Averaged weights: an exponential moving average of one player, exact and free of host synchronisation."""

import copy

import torch
from pydantic import Field
from torch import Tensor, nn

from bigtrain.networks.statistics import copied_buffer_names
from bigtrain.options import Options


class EmaOptions(Options):
    """Exponential moving average of the weights (Polyak & Juditsky 1992; BigGAN, appendix C)."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Share of the average that survives one step."""
    start_step: int = Field(default=0, ge=0)
    """Before this step the average is a copy of the weights."""


class Average:
    """The average of one network's parameters and floating buffers; integers and directions are copied.

    It has at least the network's own float32, is a network itself (`network`, in eval mode) and is never wrapped by a
    strategy.
    """

    def __init__(self, network: nn.Module, options: EmaOptions) -> None:
        self.options = options
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        copied = copied_buffer_names(network)
        theirs = dict(network.named_parameters()) | dict(network.named_buffers())
        ours = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        persistent = set(network.state_dict())
        averaged = [n for n in ours if n in persistent and ours[n].is_floating_point() and n not in copied]
        self._averaged = [ours[name] for name in averaged], [theirs[name] for name in averaged]
        rest = sorted(persistent - set(averaged))
        self._copied = [ours[name] for name in rest], [theirs[name] for name in rest]
        assert all(t.dtype.itemsize >= 4 for t in self._averaged[0]), "an average must have at least float32"

    @torch.no_grad()
    def update(self, step: int, finite: Tensor) -> None:
        """After the updates of `step`; where `finite` (a bool scalar on the device) is False the average stays."""
        ours, theirs = self._averaged
        if step < self.options.start_step:
            torch._foreach_copy_(ours, [tensor.detach() for tensor in theirs])
        else:
            # lerp with a weight on the device, so that a skipped update needs no host to look at the flag
            weight = finite.to(ours[0].dtype) * (1 - self.options.decay)
            change = torch._foreach_sub([tensor.detach() for tensor in theirs], ours)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(ours, change)
        for mine, its in zip(*self._copied, strict=True):
            mine.copy_(its)
