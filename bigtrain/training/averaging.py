"""Averaged weights: moving averages of one player, exact and free of host synchronisation."""

import copy

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.statistics import copied_buffer_names
from bigtrain.options import Options


class FurtherAverage(Options):
    """One more average, kept beside the main one: exponential or of power-function form."""

    decay: float | None = Field(default=None, ge=0, lt=1)
    """An exponential average: the share of it that survives one step."""
    relative_width: float | None = Field(default=None, gt=0, lt=0.28)
    """A power-function average (Karras et al. 2024, arXiv:2312.02696, section 3.1): the standard deviation of its weights
    over past steps, as a share of the training so far. (From snapshots of two such others can be put together after
    training, section 3.2 there; bigtrain keeps the averages, and does not put them together.)"""

    @model_validator(mode="after")
    def _one_form(self) -> "FurtherAverage":
        if (self.decay is None) == (self.relative_width is None):
            raise ValueError("an average has either decay or relative_width")
        return self

    def survival(self, step: int) -> float:
        """The share of the average that survives step `step`, which counts from 0."""
        if self.decay is not None:
            return self.decay
        assert self.relative_width is not None
        return (1 - 1 / (step + 1)) ** (power_exponent(self.relative_width) + 1)


class EmaOptions(Options):
    """Exponential moving average of the weights (Polyak & Juditsky 1992; BigGAN, appendix C), and others beside it."""

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Share of the average that survives one step; constant from start_step on."""
    start_step: int = Field(default=0, ge=0)
    """Before this step the average is a copy of the weights."""
    further: dict[str, FurtherAverage] = Field(default_factory=dict)
    """More averages of the same weights, by name; doors take the name as --weights."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "EmaOptions":
        for name in self.further:
            if not name.isidentifier() or name in ("ema", "raw"):
                raise ValueError(
                    f"ema.further: {name!r} cannot name an average; take letters, digits and underscores, and neither ema nor "
                    "raw, which are the main average and the weights themselves"
                )
        return self

    def survival(self, step: int) -> float:
        """The share of the main average that survives step `step`, which counts from 0."""
        return self.decay if step >= self.start_step else 0.0


def power_exponent(relative_width: float) -> float:
    """The exponent gamma of the power-function average of a relative width (Karras et al. 2024, appendix C.2).

    The weights of past steps t' <= t are proportional to t'^gamma, whose standard deviation over t is
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))); gamma is the largest root of the cubic that this makes.
    """
    inverse = relative_width**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class Average:
    """One average of one network's parameters and floating buffers; integers and directions are copied.

    It has at least the network's own float32, is a network itself (`network`, in eval mode) and is never wrapped by a
    strategy.
    """

    def __init__(self, network: nn.Module, options: EmaOptions | FurtherAverage) -> None:
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
        survival = self.options.survival(step)
        if survival == 0:
            torch._foreach_copy_(ours, [tensor.detach() for tensor in theirs])
        else:
            # lerp with a weight on the device, so that a skipped update needs no host to look at the flag
            weight = finite.to(ours[0].dtype) * (1 - survival)
            change = torch._foreach_sub([tensor.detach() for tensor in theirs], ours)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(ours, change)
        self._copy_rest()

    @torch.no_grad()
    def copy(self) -> None:
        """Begins anew from the weights as they are."""
        ours, theirs = self._averaged
        torch._foreach_copy_(ours, [tensor.detach() for tensor in theirs])
        self._copy_rest()

    def _copy_rest(self) -> None:
        for mine, its in zip(*self._copied, strict=True):
            mine.copy_(its)
