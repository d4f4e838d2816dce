"""What a step of training is made of: components, phases, the microbatch that a loss is given, the losses that it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.data.read.batch import OfFields
from bigtrain.options import Options
from bigtrain.randomness import Draws, Indices

Networks = Mapping[str, nn.Module]
"""By component."""


class OptimizerOptions(Options):
    """One component's optimizer and the schedule of its learning rate, a function of the step alone."""

    kind: Literal["adam", "adamw", "sgd"] = "adam"
    """adam and adamw (Kingma & Ba 2015; Loshchilov & Hutter 2019), or plain sgd."""
    lr: float = Field(gt=0)
    """Learning rate after warm-up."""
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.999)
    """Adam's decay rates of the first and second moments."""
    eps: float = Field(default=1e-8, gt=0)
    """Adam's epsilon, outside the square root."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """SGD's momentum."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty for adam and sgd, decoupled for adamw."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest global norm of the gradient; null: not clipped."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from zero."""
    decay: Literal["none", "linear", "cosine", "exponential"] = "none"
    """Shape of the decay after warm-up: to zero, or by the same factor at every step."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Step at which a linear or cosine decay reaches zero (not train.steps, which a resumed run may change)."""
    decay_factor: float | None = Field(default=None, gt=0, lt=1)
    """The factor by which an exponential decay multiplies the rate at every step."""

    @model_validator(mode="after")
    def _decay_has_its_length_or_factor(self) -> "OptimizerOptions":
        if (self.decay in ("linear", "cosine")) != (self.decay_steps is not None):
            raise ValueError("decay_steps goes with decay: linear or cosine, and only with it")
        if (self.decay == "exponential") != (self.decay_factor is not None):
            raise ValueError("decay_factor goes with decay: exponential, and only with it")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError("decay_steps must be larger than warmup_steps")
        return self


@dataclass(frozen=True)
class Component:
    """One trained network. `averaged`: whether an EMA of it is kept (and is what evaluation and export use).

    `build` makes the network with fresh weights from torch's global generator; sampling builds only what it needs.
    """

    build: Callable[[], nn.Module]
    optimizer: OptimizerOptions
    averaged: bool = False


@dataclass(frozen=True, eq=False)
class Microbatch(OfFields):
    """One rank's slice of one global microbatch, on the device: a mapping of the data's fields.

    fields: by name, [n, ...] as their kinds say (an image is [n, C, H, W] in [-1, 1], a label and codes are int64); empty in a
    phase that reads no data.
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
class Phase:
    """Trains one component against one loss. The other components are frozen and do not update their statistics."""

    name: str
    component: str
    loss: Callable[[Networks, Microbatch], Losses]
    every: int = 1
    """The phase runs at steps divisible by this."""
    repeats: int = 1
    """Updates per step; each reads new data and new noise."""
    reads_data: bool = True
    weight_penalty: Callable[[nn.Module], Tensor] | None = None
    """A loss on the component's weights alone, added once per update, outside autocast."""
    reports: Callable[[nn.Module], Mapping[str, Tensor]] | None = None
    """Scalars on the device that describe the component after its update, equal on all ranks, logged as `PHASE/NAME`."""
    watched: Mapping[str, str] = field(default_factory=dict)
    """The reports that jump when training goes wrong, each with a sentence that says what a jump means."""

    @property
    def needs_whole_weights(self) -> bool:
        """Whether the update needs whole weight tensors, which a strategy that shards parameters does not have."""
        return self.weight_penalty is not None
