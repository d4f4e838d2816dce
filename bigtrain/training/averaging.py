"""Averaged weights: moving averages of one component, exact and free of host synchronisation."""

import copy
from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.layers.statistics import copied_buffer_names
from bigtrain.options import Options


class ExtraAverage(Options):
    """One more average, kept beside the main one: exponential or of power-function form."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"relative_width": "sigma_rel"}

    decay: float | None = Field(default=None, ge=0, lt=1)
    """An exponential average: the share of it that survives one step."""
    sigma_rel: float | None = Field(default=None, gt=0, lt=0.28)
    """A power-function average (Karras et al. 2024, arXiv:2312.02696, section 3.1): the standard deviation of its weights
    over past steps, as a share of the training so far. (From snapshots of two such others can be put together after
    training, section 3.2 there; bigtrain keeps the averages, and does not put them together.)"""

    @model_validator(mode="after")
    def _one_form(self) -> "ExtraAverage":
        if (self.decay is None) == (self.sigma_rel is None):
            raise ValueError("an average has either decay or sigma_rel")
        return self

    def survival(self, step: int) -> float:
        """The share of the average that survives step `step`, which counts from 0."""
        if self.decay is not None:
            return self.decay
        assert self.sigma_rel is not None
        return (1 - 1 / (step + 1)) ** (power_exponent(self.sigma_rel) + 1)


class EmaOptions(Options):
    """Exponential moving average of the weights (Polyak & Juditsky 1992; BigGAN, appendix C), and others beside it."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"further": "extra"}

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Share of the average that survives one step; constant from start_step on."""
    start_step: int = Field(default=0, ge=0)
    """Before this step the average is a copy of the weights."""
    extra: dict[str, ExtraAverage] = Field(default_factory=dict)
    """More averages of the same weights, by name; doors take the name as --weights."""

    @model_validator(mode="after")
    def _names_are_free(self) -> "EmaOptions":
        for name in self.extra:
            if not name.isidentifier() or name in ("ema", "raw"):
                raise ValueError(
                    f"ema.extra: {name!r} cannot name an average; take letters, digits and underscores, and neither ema nor "
                    "raw, which are the main average and the weights themselves"
                )
        return self

    def survival(self, step: int) -> float:
        """The share of the main average that survives step `step`, which counts from 0."""
        return self.decay if step >= self.start_step else 0.0

    def by_name(self) -> "dict[str, EmaOptions | ExtraAverage]":
        """Every average by its name in a checkpoint: `average`, and `average_NAME` for each further one."""
        return {"average": self, **{f"average_{name}": further for name, further in self.extra.items()}}


def power_exponent(sigma_rel: float) -> float:
    """The exponent gamma of the power-function average of a relative width (Karras et al. 2024, appendix C.2).

    The weights of past steps t' <= t are proportional to t'^gamma, whose standard deviation over t is
    sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3))); gamma is the largest root of the cubic that this makes.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


class MovingAverage:
    """Tensors that follow others: some as their average, integers and directions as copies.

    They have at least float32, and are updated without the host looking at the device.
    """

    def __init__(
        self,
        options: EmaOptions | ExtraAverage,
        averaged: tuple[list[Tensor], list[Tensor]],
        copied: tuple[list[Tensor], list[Tensor]],
    ) -> None:
        """`averaged` and `copied`: (the followers, those that they follow), in the same order."""
        self.options = options
        assert all(tensor.dtype.itemsize >= 4 for tensor in averaged[0]), "an average must have at least float32"
        self._copied = copied
        # zero3 with its optimizer in host memory has the weights there, and the buffers on the GPU.
        self._averaged = [
            [(mine, its) for mine, its in zip(*averaged, strict=True) if mine.device == device]
            for device in dict.fromkeys(mine.device for mine in averaged[0])
        ]

    @torch.no_grad()
    def update(self, step: int, finite: Tensor) -> None:
        """After the updates of `step`; where `finite` (a bool scalar on the device) is False the average stays."""
        survival = self.options.survival(step)
        for pairs in self._averaged:
            ours, theirs = [mine for mine, _ in pairs], [its.detach() for _, its in pairs]
            if survival == 0:
                torch._foreach_copy_(ours, theirs)
                continue
            # lerp with a weight on the device, so that a skipped update needs no host to look at the flag
            weight = finite.to(ours[0].device, ours[0].dtype) * (1 - survival)
            change = torch._foreach_sub(theirs, ours)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(ours, change)
        for mine, its in zip(*self._copied, strict=True):
            mine.copy_(its)


class Average(MovingAverage):
    """One average of a whole network's parameters and floating buffers; itself a network (`network`, in eval mode)."""

    def __init__(self, network: nn.Module, options: EmaOptions | ExtraAverage) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        averaged, copied = averaged_and_copied_names(network)
        theirs = dict(network.named_parameters()) | dict(network.named_buffers())
        ours = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        super().__init__(
            options,
            ([ours[name] for name in averaged], [theirs[name] for name in averaged]),
            ([ours[name] for name in copied], [theirs[name] for name in copied]),
        )

    @classmethod
    def all_of(cls, network: nn.Module, averaged: bool, ema: EmaOptions) -> dict[str, "Average"]:
        """Every average that a component keeps, by its name in a checkpoint; none for a component that is not averaged."""
        return {name: cls(network, options) for name, options in ema.by_name().items()} if averaged else {}


def averaged_and_copied_names(network: nn.Module) -> tuple[list[str], list[str]]:
    """Names of the tensors of its state dict that an average averages, and of those that it copies."""
    state = network.state_dict()
    never = copied_buffer_names(network)
    averaged = [name for name, tensor in state.items() if tensor.is_floating_point() and name not in never]
    return averaged, sorted(state.keys() - set(averaged))
