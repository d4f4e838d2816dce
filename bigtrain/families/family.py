"""What every family says of itself: its players, its phases, how to sample. The trainer knows nothing else.

A **player** is one trained network with its optimizer and its schedule. A **phase** trains one player against one loss.
To add a family: one module here with a `Family` subclass, one of networks, one recipe, one test.
"""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.errors import UserMistake
from bigtrain.options import Options
from bigtrain.randomness import Draws, torch_seed

Networks = Mapping[str, nn.Module]


class OptimizerOptions(Options):
    """One player's optimizer and the schedule of its learning rate, a function of the step alone."""

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
    decay: Literal["none", "linear", "cosine"] = "none"
    """Shape of the decay to zero after warm-up."""
    decay_steps: int | None = Field(default=None, gt=0)
    """Step at which a linear or cosine decay reaches zero (not train.steps, which a resumed run may change)."""

    @model_validator(mode="after")
    def _decay_has_an_end(self) -> "OptimizerOptions":
        if (self.decay == "none") != (self.decay_steps is None):
            raise ValueError("decay_steps goes with decay: linear or cosine, and only with it")
        if self.decay_steps is not None and self.decay_steps <= self.warmup_steps:
            raise ValueError("decay_steps must be larger than warmup_steps")
        return self


@dataclass(frozen=True)
class Player:
    """One trained network. `averaged`: whether an EMA of it is kept (and is what evaluation and export use).

    `build` makes the network with fresh weights from torch's global generator; sampling builds only what it needs.
    """

    build: Callable[[], nn.Module]
    optimizer: OptimizerOptions
    averaged: bool = False


@dataclass(frozen=True)
class Microbatch:
    """One rank's slice of one global microbatch, on the device.

    images: [n, 3, H, W] in [-1, 1], or None in a phase that reads no data; labels: int64 [n], or None likewise;
    indices: the places of these n samples in the global batch, which key every draw; draws: the keyed draws of this
    step and repeat; device: where new tensors go.
    """

    images: Tensor | None
    labels: Tensor | None
    indices: Sequence[int]
    draws: Draws
    device: torch.device

    def place(self, drawn: Tensor) -> Tensor:
        """A draw from the CPU on the device, by way of pinned memory: from pageable memory the host would wait."""
        if self.device.type == "cuda":
            return drawn.pin_memory().to(self.device, non_blocking=True)
        return drawn.to(self.device)


@dataclass(frozen=True)
class Losses:
    """`total`: the scalar to differentiate, a mean over the microbatch's n samples; `terms`: scalars to log."""

    total: Tensor
    terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class Phase:
    """Trains one player against one loss. Every other player is frozen meanwhile and takes no notes."""

    name: str
    player: str
    loss: Callable[[Networks, Microbatch], Losses]
    every: int = 1
    """The phase runs at steps divisible by this."""
    repeats: int = 1
    """Updates per step; each reads new data and new noise."""
    reads_data: bool = True
    weight_penalty: Callable[[nn.Module], Tensor] | None = None
    """A loss on the player's weights alone, added once per update, outside autocast."""

    @property
    def needs_whole_weights(self) -> bool:
        """Whether the update looks at whole weight tensors, which a strategy that shards parameters cannot give."""
        return self.weight_penalty is not None


@dataclass(frozen=True)
class Problem:
    """What a family must know of the data: square RGB images of `image_size` pixels in named classes."""

    image_size: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Training images of each class: the distribution that labels of samples are drawn from."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "Problem":
        """The problem that a checkpoint's or an export's description of its data poses."""
        return cls(data["image_size"], tuple(data["classes"]), tuple(data["class_counts"]))

    def find_classes(self, asked: str | None) -> list[int]:
        """Class indices of a comma-separated list of indices or names; all of them for None. Raises UserMistake."""
        if asked is None:
            return list(range(len(self.classes)))
        return [self._find_class(word.strip()) for word in asked.split(",")]

    def _find_class(self, word: str) -> int:
        if word.isdecimal() and int(word) < len(self.classes):
            return int(word)
        if word in self.classes:
            return self.classes.index(word)
        raise UserMistake(f"class {word!r}: there is none; indices are 0 .. {len(self.classes) - 1}, or give a name")

    def draw_labels(self, draws: Draws, stream: str, indices: Sequence[int]) -> Tensor:
        """Labels from the data's own distribution, int64 [len(indices)], on the CPU."""
        bounds = np.cumsum(self.class_counts)
        ranks = draws.integers(stream, indices, int(bounds[-1])).numpy()
        return torch.from_numpy(np.searchsorted(bounds, ranks, side="right"))


class Family(ABC):
    """One kind of generative model, built for one problem.

    A subclass names its kind (`class GAN(Family, kind="gan")`), which is what `family.kind` says in a recipe, and its
    `options_class`. Making a family is cheap: networks are built by `build_network`, one by one, where they are needed.
    """

    kind: ClassVar[str]
    options_class: ClassVar[type[Options]]
    sampling_class: ClassVar[type[Options]]

    problem: Problem
    players: Mapping[str, Player]
    phases: Sequence[Phase]
    sampling: Any
    """The recipe's own options of sampling, a `sampling_class`."""
    sampled_players: Sequence[str]
    """The players whose networks `prepare_sampling` needs."""

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
            _FAMILIES[kind] = cls

    @abstractmethod
    def __init__(self, options: Any, problem: Problem) -> None: ...

    @abstractmethod
    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        """The networks ready to sample (eval mode, standing statistics where asked for); the given ones stay as they are."""

    @abstractmethod
    def sample(self, networks: Networks, labels: Tensor, indices: Sequence[int], seed: int, sampling: Any) -> Tensor:
        """Images [n, 3, H, W] in [-1, 1] for int64 `labels` [n] on the networks' device.

        `networks` come from `prepare_sampling`. Sample `indices[k]` depends on (weights, seed, index, label, sampling)
        alone: not on the batch that it is drawn in.
        """


_FAMILIES: dict[str, type[Family]] = {}


def family_kinds() -> list[str]:
    """Every kind that a recipe may name: the modules of this package, and what else has been registered."""
    package = importlib.import_module("bigtrain.families")
    modules = {module.name for module in pkgutil.iter_modules(package.__path__)} - {"family"}
    return sorted(modules | set(_FAMILIES))


def find_family(kind: str) -> type[Family]:
    """The family of a kind; imports only the module that is asked for. Raises UserMistake if there is none."""
    if kind not in family_kinds():
        raise UserMistake(f"family.kind: {kind!r} is not a family; there are {', '.join(family_kinds())}")
    if kind not in _FAMILIES:
        importlib.import_module(f"bigtrain.families.{kind}")
    return _FAMILIES[kind]


def build_network(family: Family, player: str, seed: int) -> nn.Module:
    """A player's network with weights keyed by (seed, player): the same on every rank, whatever else is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, f"{player}/initialisation"))
        return family.players[player].build()
