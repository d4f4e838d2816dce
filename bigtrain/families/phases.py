"""What a step of training is made of: components, phases, the microbatch that a loss is given, the losses that it returns."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.data.read.batch import OfFields
from bigtrain.options import Count, Epsilon, Options, Scale, Weight, Whole
from bigtrain.randomness import Draws, Indices

Networks = Mapping[str, nn.Module]
"""By component."""


DEFAULT_MOST_SKIPS = 10

_TAKEN_BY: Mapping[str, tuple[str, ...]] = {
    "betas": ("adam", "adamw", "adamax"),
    "eps": ("adam", "adamw", "adamax", "rmsprop"),
    "momentum": ("sgd", "rmsprop"),
    "alpha": ("rmsprop",),
    "centered": ("rmsprop",),
}
"""The kinds of optimizers that take an option."""


class OptimizerOptions(Options):
    """One component's optimizer and the schedule of its learning rate, a function of the step alone."""

    kind: Literal["adam", "adamw", "sgd", "adamax", "rmsprop"] = "adam"
    """adam, adamax (Kingma & Ba 2015), adamw (Loshchilov & Hutter 2019), plain sgd, or rmsprop (Tieleman & Hinton 2012)."""
    lr: float = Field(ge=1e-12, le=1e4)
    """Learning rate after warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam's decay rates of the first and second moments; adamax's of the first moment and of the largest gradient."""
    eps: Epsilon = 1e-8
    """Epsilon of adam, adamw and rmsprop, outside the square root; adamax adds it to the gradient's magnitude."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Momentum of sgd and rmsprop."""
    alpha: float = Field(default=0.99, ge=0, lt=1)
    """rmsprop's decay rate of the mean squared gradient."""
    centered: bool = False
    """Whether rmsprop divides by the gradient's standard deviation instead of its root mean square (Graves 2013, eq. 38-45)."""
    weight_decay: Weight = 0.0
    """Decoupled for adamw, an L2 penalty for the others."""
    clip_norm: Scale | None = None
    """Largest global norm of the gradient; null: not clipped."""
    skip_norm: Scale | None = None
    """An update whose gradient has at least this norm, before it is clipped, is skipped, with those of the other components of
    its phase; null: none is."""
    most_skips: Count = DEFAULT_MOST_SKIPS
    """How many updates are skipped one after another at most; then one is made with the gradient clipped, to clip_norm or else
    to skip_norm. Without that, training could stop for ever."""
    warmup_steps: Whole = 0
    """Steps of linear warm-up from zero."""
    decay: Literal["none", "linear", "cosine", "exponential", "steps"] = "none"
    """Shape of the decay after warm-up: to lr_end, by the same factor at every step, or by a factor at each of decay_at."""
    decay_start: Whole | None = None
    """Step at which a linear, cosine or exponential decay begins; null: at the end of warm-up."""
    decay_steps: Count | None = None
    """Step at which a linear or cosine decay ends (not train.steps, which a resumed run may change)."""
    lr_end: Weight = 0.0
    """The rate at which a linear or cosine decay ends."""
    decay_factor: float | None = Field(default=None, ge=1e-6, lt=1)
    """The factor by which an exponential decay multiplies the rate at every step, and a decay in steps at each of decay_at."""
    decay_at: list[Count] = Field(default_factory=list)
    """The steps at which a decay in steps multiplies the rate by decay_factor, in ascending order."""

    @property
    def clipped_to(self) -> float | None:
        """The largest norm of the gradient that an update is made with; None: any."""
        return self.skip_norm if self.clip_norm is None else self.clip_norm

    @classmethod
    def without_ignored(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without the options that the optimizer does not take: they were accepted, and changed nothing."""
        kind = content.get("kind", cls.model_fields["kind"].default)
        return {key: value for key, value in content.items() if kind in _TAKEN_BY.get(key, (kind,))}

    @model_validator(mode="after")
    def _kind_takes_its_options(self) -> "OptimizerOptions":
        for key, kinds in _TAKEN_BY.items():
            if self.kind not in kinds and getattr(self, key) != type(self).model_fields[key].default:
                own = [other for other, takers in _TAKEN_BY.items() if self.kind in takers]
                raise ValueError(
                    f"{key}: is an option of kind: {' or '.join(kinds)}, and {self.kind} does not take it (it takes "
                    f"{', '.join(own)})"
                )
        return self

    @model_validator(mode="after")
    def _skips_fit_the_clipping(self) -> "OptimizerOptions":
        if self.skip_norm is None and self.most_skips != DEFAULT_MOST_SKIPS:
            raise ValueError("most_skips goes with skip_norm, and only with it")
        if self.skip_norm is not None and self.clip_norm is not None and self.clip_norm > self.skip_norm:
            raise ValueError("clip_norm must be at most skip_norm: no larger gradient is left to clip")
        return self

    @model_validator(mode="after")
    def _decay_has_its_numbers(self) -> "OptimizerOptions":
        to_an_end = self.decay in ("linear", "cosine")
        if to_an_end != (self.decay_steps is not None):
            raise ValueError("decay_steps goes with decay: linear or cosine, and only with it")
        if (self.decay in ("exponential", "steps")) != (self.decay_factor is not None):
            raise ValueError("decay_factor goes with decay: exponential or steps, and only with it")
        if (self.decay == "steps") != bool(self.decay_at):
            raise ValueError("decay_at goes with decay: steps, and only with it")
        if self.decay_start is not None and self.decay not in ("linear", "cosine", "exponential"):
            raise ValueError("decay_start goes with decay: linear, cosine or exponential, and only with it")
        if self.lr_end and not to_an_end:
            raise ValueError("lr_end goes with decay: linear or cosine, and only with it")
        if self.lr_end > self.lr:
            raise ValueError("lr_end must be at most lr")
        if any(later <= earlier for earlier, later in itertools.pairwise(self.decay_at)):
            raise ValueError("decay_at must name steps in ascending order")
        if self.decay_start is not None and self.decay_start < self.warmup_steps:
            raise ValueError("decay_start must be at least warmup_steps")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError("decay_steps must be larger than warmup_steps")
        if self.decay_steps is not None and self.decay_steps <= (self.decay_start or 0):
            raise ValueError("decay_steps must be larger than decay_start")
        return self


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters of a component that are trained otherwise than its others, at the same times."""

    holds: Callable[[str, nn.Parameter], bool]
    """Of a parameter's name in the network, and the parameter."""
    lr_scale: float = 1.0
    """Their learning rate, in units of the component's."""
    weight_decay: float | None = None
    """None: the component's."""


@dataclass(frozen=True)
class Component:
    """One network, trained or frozen.

    build: makes it with fresh weights from torch's global generator; sampling builds only what it needs.
    optimizer: None for a frozen network, whose parameters never get gradients. A phase that lists it among what it trains
    commits its statistics.
    averaged: whether an EMA of it is kept, and is what evaluation and export use.
    groups: the first that holds a parameter takes it; all others are trained as `optimizer` says.
    frozen: names of parameters that are not trained, though the others are.
    """

    build: Callable[[], nn.Module]
    optimizer: OptimizerOptions | None
    averaged: bool = False
    groups: Sequence[ParameterGroup] = ()
    frozen: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        assert self.optimizer is not None or not self.averaged, "a frozen component has no average: it does not change"


@dataclass(frozen=True, eq=False)
class Microbatch(OfFields):
    """One rank's slice of one global microbatch, on the device: a mapping of the data's fields.

    fields: by name, [n, ...] as their kinds say (an image is [n, C, H, W] in [-1, 1], a label and codes are int64); empty in a
    phase whose batch is "none".
    indices: the numbers of these n samples in the global batch, which key every draw; global_batch_size: how many samples
    it has; draws: the keyed draws of this step and repeat, on the device; device: where new tensors go.
    """

    fields: Mapping[str, Tensor]
    indices: Indices
    draws: Draws
    device: torch.device
    global_batch_size: int


@dataclass(frozen=True)
class Losses:
    """`total`: the scalar to differentiate, a mean over the microbatch's n samples; `terms`: scalars to log."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Limit:
    """What a value keeps below while training goes well. It goes wrong when the value is at least `value` in all logged rows of
    `steps` steps one after another; `meaning`: a sentence that says how, and what helps."""

    value: float
    steps: int
    meaning: str


@dataclass(frozen=True)
class Phase:
    """Trains one or several components against one loss. The others are frozen and do not update their statistics.

    An update is made for all components of the phase or, if the loss or one of their gradients is not finite, for none. A
    component that no gradient reaches in an update is left as it is, its optimizer's state too.
    """

    name: str
    trains: Sequence[str]
    """Names of components; one may be given as a plain string."""
    loss: Callable[[Networks, Microbatch], Losses]
    every: int = 1
    """The phase runs at steps divisible by this."""
    repeats: int | Callable[[int], int] = 1
    """Updates at a step that it runs at, each with new noise; a number, or a function of the step."""
    first_step: int = 0
    """The phase runs from this step on."""
    last_step: int | None = None
    """And before this one; None: to the end."""
    batch: Literal["new", "previous", "none"] = "new"
    """What each update is given: new samples, the samples of the update before it in this step, or none."""
    weight_penalty: Callable[[Networks], Tensor] | None = None
    """A loss on the weights of the trained components alone, added once per update, outside autocast."""
    weight_clip: float | None = None
    """Every parameter that the phase trains is clamped to [-weight_clip, weight_clip] by its update."""
    needs_whole_weights: Sequence[str] = ()
    """The keys of the family, such as penalties.r1, by which the phase needs whole weight tensors, which a strategy that shards
    parameters does not have; with each of them null it needs none. A phase with a weight_penalty names that one's key."""
    reports: Callable[[Networks], Mapping[str, Tensor]] | None = None
    """Scalars on the device that describe the networks after the update, equal on all ranks, logged as `PHASE/NAME`."""
    watched: Mapping[str, str] = field(default_factory=dict)
    """The reports that jump when training goes wrong, each with a sentence that says what a jump means."""
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """The terms of the loss that stay high when training goes wrong."""

    def __post_init__(self) -> None:
        if isinstance(self.trains, str):
            object.__setattr__(self, "trains", (self.trains,))
        assert self.weight_penalty is None or self.needs_whole_weights, f"{self.name}: the key of its weight_penalty"

    def updates_at(self, step: int) -> int:
        """How many updates the phase makes at a step."""
        if step % self.every or step < self.first_step or (self.last_step is not None and step >= self.last_step):
            return 0
        return self.repeats(step) if callable(self.repeats) else self.repeats

    def mean_updates(self, steps: int) -> float:
        """Updates per step, averaged over a run of `steps`; where they are a function of the step, over its first million."""
        if callable(self.repeats):
            steps = min(steps, 10**6)
            return sum(map(self.updates_at, range(steps))) / steps
        if self.first_step or self.last_step is not None:
            end = steps if self.last_step is None else min(steps, self.last_step)
            first = -(-self.first_step // self.every) * self.every
            return self.repeats * len(range(first, end, self.every)) / steps
        return self.repeats / self.every
