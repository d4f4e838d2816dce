"""Averaged weights: moving averages of one component, exact and without host synchronisation."""

import copy
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.layers.statistics import copied_buffer_names
from bigtrain.options import Count, Options, Whole
from bigtrain.training.power_functions import power_exponent

RelativeWidth = Annotated[float, Field(ge=0.001, lt=0.28)]


class ExtraAverage(Options):
    """An average besides the main one: exponential, or with a power-function profile."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"relative_width": "sigma_rel"}

    decay: float | None = Field(default=None, ge=0, lt=1)
    """For an exponential average: its decay per step."""
    sigma_rel: RelativeWidth | None = None
    """For a power-function average (Karras et al. 2024, arXiv:2312.02696, section 3.1): the standard deviation of its
    profile over past steps, relative to the training so far. (`posthoc` makes such averages after training.)"""

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


class PosthocOptions(Options):
    """Averages of any width, made after training of snapshots of two power-function averages (Karras et al. 2024,
    arXiv:2312.02696, section 3.2): commands take --weights sigma_rel=0.15."""

    every: Count
    """Steps between snapshots, until there are `snapshots` of them; then every second of the older ones is deleted as new ones
    come, whose distance doubles each time that all of them are that far apart. A hundredth of the training is little enough."""
    sigma_rel: tuple[RelativeWidth, RelativeWidth] = (0.05, 0.1)
    """The relative widths of the two averages, the narrower first."""
    snapshots: int = Field(default=64, ge=4, le=64)
    """How many are kept. More allow narrower averages, and are more exact."""

    @model_validator(mode="after")
    def _widths_differ(self) -> "PosthocOptions":
        narrow, wide = self.sigma_rel
        if wide < 1.2 * narrow:
            raise ValueError(f"sigma_rel: {wide} must be at least 1.2 times {narrow}, or the two averages say the same")
        return self

    def by_name(self) -> dict[str, ExtraAverage]:
        """The two averages, by their names in a checkpoint."""
        return {posthoc_name(width): ExtraAverage(sigma_rel=width) for width in self.sigma_rel}


def posthoc_name(sigma_rel: float) -> str:
    """The name in a checkpoint of an average that snapshots are taken of: one that no `extra` average can have, and without a
    dot, which ends names there."""
    return f"average_{sigma_rel:g}".replace(".", "-")


class EmaOptions(Options):
    """The exponential moving average of the weights (Polyak & Juditsky 1992; BigGAN, appendix C), and extra averages."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"further": "extra"}
    former_values: ClassVar[Mapping[str, Any]] = {"warmup": False}

    decay: float = Field(default=0.9999, ge=0, lt=1)
    """Decay of the average per step, from start_step on."""
    warmup: bool = True
    """At step t a decay is at most (1 + t) / (10 + t), as in TensorFlow's ExponentialMovingAverage with num_updates: an average
    reaches back over a share of the training so far, and a short run's is not that of its initial weights. Also of `extra`
    averages that have a decay. false: constant, as in most papers."""
    start_step: Whole = 0
    """Before this step the average is a copy of the weights."""
    extra: dict[str, ExtraAverage] = Field(default_factory=dict)
    """More averages of the same weights, by name; commands take the name as --weights."""
    posthoc: PosthocOptions | None = None
    """Snapshots of which averages of any width are made after training, such as {every: 100}; null: none."""

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
        if step < self.start_step:
            return 0.0
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    def by_name(self) -> "dict[str, EmaOptions | ExtraAverage]":
        """Every average by its name in a checkpoint: `average`, `average_NAME` for each extra one, and the two of which
        snapshots are taken."""
        extra = {f"average_{name}": self._as_asked(each) for name, each in self.extra.items()}
        return {"average": self, **extra, **(self.posthoc.by_name() if self.posthoc is not None else {})}

    def _as_asked(self, extra: ExtraAverage) -> "EmaOptions | ExtraAverage":
        return extra if extra.decay is None else EmaOptions(decay=extra.decay, warmup=self.warmup)

    def initial_share(self, name: str, step: int) -> float:
        """The share of the initial weights in an average (`ema`, or an extra one's name) after `step` steps, exact where it is
        above MUCH_INITIAL."""
        first = self.by_name()["average" if name == "ema" else f"average_{name}"].survival(0)
        # Only a decay that is constant from the first step on keeps more than this of them there.
        return first**step if first > MUCH_INITIAL or step == 0 else first


MUCH_INITIAL = 0.1
"""The share of the initial weights in an average above which its samples show them."""


class MovingAverage:
    """Target tensors that track source tensors: some as their average; integers and directions as copies.

    Averages have at least float32, and are updated without host synchronisation.
    """

    def __init__(
        self,
        options: EmaOptions | ExtraAverage,
        averaged: tuple[list[Tensor], list[Tensor]],
        copied: tuple[list[Tensor], list[Tensor]],
    ) -> None:
        """`averaged` and `copied`: (target tensors, source tensors), in the same order."""
        self.options = options
        assert all(tensor.dtype.itemsize >= 4 for tensor in averaged[0]), "an average must have at least float32"
        self._copied = copied
        # Grouped by device: zero3 with offload_optimizer has the weights in host memory and the buffers on the GPU.
        self._averaged = [
            [(target, source) for target, source in zip(*averaged, strict=True) if target.device == device]
            for device in dict.fromkeys(target.device for target in averaged[0])
        ]

    @torch.no_grad()
    def update(self, step: int, applied: Tensor) -> None:
        """Call after the updates of `step`; if `applied` (a bool scalar on the device) is False the average does not move."""
        survival = self.options.survival(step)
        for pairs in self._averaged:
            targets, sources = [target for target, _ in pairs], [source.detach() for _, source in pairs]
            if survival == 0:
                torch._foreach_copy_(targets, sources)
                continue
            # lerp with a weight on the device, so that the host need not read the flag to skip an update
            weight = applied.to(targets[0].device, targets[0].dtype) * (1 - survival)
            change = torch._foreach_sub(sources, targets)
            torch._foreach_mul_(change, weight)
            torch._foreach_add_(targets, change)
        for target, source in zip(*self._copied, strict=True):
            target.copy_(source)


class Average(MovingAverage):
    """One average of all parameters and floating-point buffers of a network, as a network in eval mode (`network`)."""

    def __init__(self, network: nn.Module, options: EmaOptions | ExtraAverage) -> None:
        self.network = copy.deepcopy(network).requires_grad_(False).eval()
        averaged, copied = averaged_and_copied_names(network)
        sources = dict(network.named_parameters()) | dict(network.named_buffers())
        targets = dict(self.network.named_parameters()) | dict(self.network.named_buffers())
        super().__init__(
            options,
            ([targets[name] for name in averaged], [sources[name] for name in averaged]),
            ([targets[name] for name in copied], [sources[name] for name in copied]),
        )

    @classmethod
    def all_of(cls, network: nn.Module, averaged: bool, ema: EmaOptions) -> dict[str, "Average"]:
        """All averages of a component, by their names in a checkpoint; none for a component that is not averaged."""
        return {name: cls(network, options) for name, options in ema.by_name().items()} if averaged else {}


def averaged_and_copied_names(network: nn.Module) -> tuple[list[str], list[str]]:
    """Names in the network's state dict: of the tensors that are averaged, and of those that are copied."""
    state = network.state_dict()
    never_averaged = copied_buffer_names(network)
    averaged = [name for name, tensor in state.items() if tensor.is_floating_point() and name not in never_averaged]
    return averaged, sorted(state.keys() - set(averaged))
