"""What every family says of itself: its components, its phases, how to sample. The trainer knows nothing else.

A **component** is one trained network with its optimizer and its schedule. A **phase** trains one component against one loss.
To add a family: one module here with a `Family` subclass, one of networks, one recipe, one test.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.formats import FORMAT
from bigtrain.options import Options
from bigtrain.randomness import Draws, torch_seed

Networks = Mapping[str, nn.Module]


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
    """What an exponential decay multiplies the rate by at every step."""

    @model_validator(mode="after")
    def _decay_has_its_number(self) -> "OptimizerOptions":
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


@dataclass(frozen=True)
class CodeLevel:
    """One level of a tokenizer: how many codes there are, and how many of them an image has, as (height, width)."""

    codebook_size: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class Microbatch:
    """One rank's slice of one global microbatch, on the device.

    images: [n, 3, H, W] in [-1, 1], or None where the data are codes; codes: int64 [n, h, w] by level, or None where the
    data are images; labels: int64 [n]. All three are None in a phase that reads no data.
    indices: the numbers of these n samples in the global batch, which key every draw; global_batch_size: its size;
    draws: the keyed draws of this step and repeat; device: where new tensors go.
    """

    images: Tensor | None
    labels: Tensor | None
    indices: Sequence[int]
    draws: Draws
    device: torch.device
    global_batch_size: int
    codes: Mapping[str, Tensor] | None = None

    def to_device(self, drawn: Tensor) -> Tensor:
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
    """Trains one component against one loss. Every other component is frozen meanwhile and takes no notes."""

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
    """Scalars on the device that the component holds after its update, equal on all ranks, to be logged as `PHASE/NAME`."""

    watched: Mapping[str, str] = field(default_factory=dict)
    """Those of the reports that jump when training goes wrong, and what a jump of each means, as a sentence."""

    @property
    def needs_whole_weights(self) -> bool:
        """Whether the update looks at whole weight tensors, which a strategy that shards parameters cannot give."""
        return self.weight_penalty is not None


@dataclass(frozen=True)
class DataSpec:
    """What a family must know of the data: square RGB images of `image_size` pixels in named classes, or their codes."""

    image_size: int
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Training images of each class: the distribution that labels of samples are drawn from."""
    codes: Mapping[str, CodeLevel] | None = None
    """Where the data are codes: their levels, the coarsest first."""
    tokenizer: str | None = None
    """Where the data are codes: the fingerprint of the tokenizer that made them."""

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> "DataSpec":
        """The problem that a checkpoint's or an export's description of its data poses."""
        codes = data.get("codes")
        levels = codes and {
            name: CodeLevel(level["codebook_size"], (level["grid"][0], level["grid"][1]))
            for name, level in codes["levels"].items()
        }
        tokenizer = codes["tokenizer"] if codes else None
        return cls(data["image_size"], tuple(data["classes"]), tuple(data["class_counts"]), levels, tokenizer)

    def to_json(self) -> dict[str, Any]:
        """The inverse of `of`."""
        facts: dict[str, Any] = {
            "format": FORMAT,
            "image_size": self.image_size,
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
        }
        if self.codes is not None:
            levels = {
                name: {"codebook_size": level.codebook_size, "grid": list(level.grid)}
                for name, level in self.codes.items()
            }
            facts["codes"] = {"tokenizer": self.tokenizer, "levels": levels}
        return facts

    @property
    def images(self) -> int:
        """Training images in all: the length of an epoch."""
        return sum(self.class_counts)

    def find_classes(self, asked: str | None) -> list[int]:
        """Class indices of a comma-separated list of indices or names; all of them for None. Raises UserError."""
        if asked is None:
            return list(range(len(self.classes)))
        return [self._find_class(word.strip()) for word in asked.split(",")]

    def _find_class(self, word: str) -> int:
        if word.isdecimal() and int(word) < len(self.classes):
            return int(word)
        if word in self.classes:
            return self.classes.index(word)
        raise UserError(f"class {word!r}: there is none; indices are 0 .. {len(self.classes) - 1}, or give a name")

    def draw_labels(self, draws: Draws, stream: str, indices: Sequence[int]) -> Tensor:
        """Labels from the data's own distribution, int64 [len(indices)], on the CPU."""
        bounds = torch.tensor(self.class_counts).cumsum(0)
        return torch.searchsorted(bounds, draws.integers(stream, indices, self.images), right=True)


Capability = Literal["sample", "by_class", "likelihood", "reconstruct", "encode"]
"""What a trained model may be asked for; `by_class`: that its samples are of the classes that are asked for."""


@dataclass(frozen=True)
class Dependency:
    """A trained model that another family stands on when it samples: `place` is a run or an export."""

    place: str
    roles: tuple[str, ...] = ()
    """Those of the models that it follows itself which it needs in this part."""
    at_start: bool = False
    """Whether it must be there, and fit, before training begins."""


@dataclass(frozen=True)
class LoadedModel:
    """A followed model: its family, its networks ready to be used, and the fingerprint of their weights."""

    family: "Family"
    networks: Networks
    fingerprint: str


class Family(ABC):
    """One kind of generative model, built for one problem.

    A subclass names its kind (`class GAN(Family, kind="gan")`), which is what `family.kind` says in a recipe, and its
    `options_class`. Making a family is cheap: networks are built by `build_network`, one by one, where they are needed.
    Raises ValueError, naming the key, for options that do not fit the problem.

    What a family can do beyond training is in `capabilities`; the methods of the others are never called.
    """

    kind: ClassVar[str]
    options_class: ClassVar[type[Options]]
    sampling_class: ClassVar[type[Options]]
    reads_codes: ClassVar[bool] = False
    """Whether the data may be a tokenizer's codes."""
    capabilities: frozenset[Capability] = frozenset({"sample", "by_class"})
    speed_options: frozenset[str] = frozenset()
    """Sampling options that change how fast samples are drawn, and no sample: a protocol leaves them out."""
    initialisation_images: int = 0
    """How many images `initialise` is to see before step 0, at least; 0: it is not called."""

    options: Any
    """The recipe's section, an `options_class`; with `problem` all that it takes to make this family again."""
    spec: DataSpec
    components: Mapping[str, Component]
    phases: Sequence[Phase]
    sampling: Any
    """The recipe's own options of sampling, a `sampling_class`."""
    sampled_components: Sequence[str]
    """The components whose networks `prepare_sampling`, `likelihood`, `reconstruct`, `encode` and `decode` need."""
    attached: Mapping[str, LoadedModel] = {}
    """The models that `attach` took over, by role."""

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
            _FAMILIES[kind] = cls

    @abstractmethod
    def __init__(self, options: Any, spec: DataSpec) -> None: ...

    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Data-dependent initialisation, before step 0, on every rank with its slices of the first global microbatches.

        Must leave the same weights on every rank, whatever their number.
        """
        raise NotImplementedError

    def why_not(self, capability: Capability) -> str:
        """The sentence that tells a user why a model of this family lacks a capability, and what to do instead."""
        able = {
            "sample": "draw images",
            "by_class": "draw images of a class that is asked for, as it was not trained to",
            "likelihood": "give likelihoods",
            "reconstruct": "reconstruct images",
            "encode": "encode images",
        }
        return f"a {self.kind} cannot {able[capability]}"

    @property
    def dependencies(self) -> Mapping[str, Dependency]:
        """The trained models that this one stands on when it samples, by role."""
        return {}

    def attach(self, trained: Mapping[str, LoadedModel]) -> None:
        """Takes over models that `dependencies` names, all of them before `sample`. Raises UserError if one does not fit."""
        assert trained.keys() <= self.dependencies.keys(), f"{self.kind} does not follow {sorted(trained)}"
        self.attached = {**self.attached, **trained}

    # -- sample -----------------------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        """The networks ready to sample (eval mode, standing statistics where asked for); the given ones stay as they are."""
        raise NotImplementedError

    def sample(self, networks: Networks, labels: Tensor, indices: Sequence[int], seed: int, sampling: Any) -> Tensor:
        """Images [n, 3, H, W] in [-1, 1] for int64 `labels` [n] on the networks' device.

        `networks` come from `prepare_sampling`. Sample `indices[k]` depends on (weights, seed, index, label, sampling)
        alone: not on the batch that it is drawn in.
        """
        raise NotImplementedError

    def sampling_name(self, sampling: Any) -> str:
        """What a metric's name must say of the way of sampling, where that is a cheaper one than the published protocol's;
        else nothing."""
        return ""

    def to_diffusers(self, networks: Networks) -> Any:
        """A pipeline of diffusers' own that samples this model without bigtrain, where there is one; else None."""
        return None

    def from_diffusers(self, pipeline: Any) -> Networks:
        """The networks that `to_diffusers` made the pipeline of."""
        raise NotImplementedError

    # -- likelihood -------------------------------------------------------------------------------------------------

    @property
    def dimensions(self) -> int:
        """Dimensions of a sample, by which its nats are divided for bits per dimension."""
        raise NotImplementedError

    def likelihood(self, networks: Networks, batch: Microbatch, evaluations: int | None) -> dict[str, Tensor]:
        """Float64 tensors whose leading dimension is n: "nats", the negative log-likelihood (or its bound) of each
        sample, and the terms that it is made of.

        Networks are in eval mode; `batch.indices` are the samples' numbers in their split, which key any draw.
        `evaluations`: of the network for each sample, where a bound can be estimated from fewer than it takes; None: all.
        """
        raise NotImplementedError

    def likelihood_protocol(self, evaluations: int | None, seed: int) -> dict[str, Any]:
        """What the likelihood depends on beside the weights and the data: nothing, if it is exact."""
        return {}

    # -- reconstruct, encode ----------------------------------------------------------------------------------------

    def reconstruct(self, networks: Networks, images: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [-1, 1] as the model gives them back."""
        raise NotImplementedError

    @property
    def code_levels(self) -> Mapping[str, CodeLevel]:
        """A tokenizer's levels, the coarsest first."""
        raise NotImplementedError

    def encode(self, networks: Networks, images: Tensor) -> dict[str, Tensor]:
        """Codes int64 [n, h, w] by level, of images [n, 3, H, W] in [-1, 1]."""
        raise NotImplementedError

    def decode(self, networks: Networks, codes: Mapping[str, Tensor]) -> Tensor:
        """Images [n, 3, H, W] in [-1, 1] of codes, all levels of them."""
        raise NotImplementedError


_FAMILIES: dict[str, type[Family]] = {}
_MODULES = {
    "diffusion": "diffusion.diffusion",
    "gan": "adversarial.gan",
    "prior": "autoregressive.prior",
    "vqvae": "autoencoders.vqvae",
}
"""The module of this package that registers each kind: a table, so that a recipe imports one family and not all."""


def family_kinds() -> list[str]:
    """Every kind that a recipe may name: those of this package, and what else has been registered."""
    return sorted({*_MODULES, *_FAMILIES})


def find_family(kind: str) -> type[Family]:
    """The family of a kind; imports only the module that is asked for. Raises UserError if there is none."""
    if kind not in family_kinds():
        raise UserError(f"family.kind: {kind!r} is not a family; there are {', '.join(family_kinds())}")
    if kind not in _FAMILIES:
        importlib.import_module(f"bigtrain.families.{_MODULES[kind]}")
    return _FAMILIES[kind]


def build_network(family: Family, component: str, seed: int) -> nn.Module:
    """A component's network with weights keyed by (seed, component): the same on every rank, whatever else is built."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, f"{component}/initialisation"))
        return family.components[component].build()
