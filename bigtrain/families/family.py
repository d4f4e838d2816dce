"""What every family defines: its components, its phases, how to sample. The trainer knows nothing else of a family.

A **component** is one trained network with its optimizer and its schedule. A **phase** trains one component against one loss.
To add a family: one module here with a `Family` subclass, one module of networks, one recipe, one test.
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.families.phases import Component, Microbatch, Networks, Phase
from bigtrain.formats import FORMAT, checked_format
from bigtrain.options import Options
from bigtrain.randomness import Draws, Indices, torch_seed
from bigtrain.sizes import image_size_of, size_of


@dataclass(frozen=True)
class CodeLevel:
    """One level of a tokenizer: the size of its codebook, and the grid of codes that an image becomes, as (height, width)."""

    codebook_size: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class DataSpec:
    """What a family needs to know about the data: its fields, their sizes, and the classes of the samples."""

    size: tuple[int, int]
    """(height, width) of the images in pixels, or of those that codes were made from; (0, 0) where there are none."""
    channels: int
    """Of the images: 3 (RGB) or 1 (grey)."""
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    """Training images of each class: the distribution that labels of samples are drawn from."""
    codes: Mapping[str, CodeLevel] | None = None
    """The levels of the codes, the coarsest first; None where the data are images."""
    tokenizer: str | None = None
    """The fingerprint of the tokenizer that made the codes; None where the data are images."""
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """By name what each field says of itself (`Field.described`), with its `kind` first of all. Without: an image, or codes,
    and a label."""

    def __post_init__(self) -> None:
        if not self.fields:
            samples = ["image"] if self.codes is None else list(self.codes)
            kind = "image" if self.codes is None else "codes"
            fields = {name: {"kind": kind} for name in samples} | {"label": {"kind": "label"}}
            object.__setattr__(self, "fields", fields)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "DataSpec":
        """From the description of the data that a checkpoint or an export holds. Raises UserError for a newer format."""
        checked_format(dict(data), "the description of the data")
        codes = data.get("codes")
        levels = codes and {
            name: CodeLevel(level["codebook_size"], (level["grid"][0], level["grid"][1]))
            for name, level in codes["levels"].items()
        }
        tokenizer = codes["tokenizer"] if codes else None
        return cls(
            (0, 0) if data["image_size"] is None else size_of(data["image_size"]),
            data.get("channels", 3),  # before there was the key, all images were RGB
            tuple(data["classes"]),
            tuple(data["class_counts"]),
            levels,
            tokenizer,
            data.get("fields", {}),  # before there was the key, the data were images or codes
        )

    def to_json(self) -> dict[str, Any]:
        """The inverse of `from_json`."""
        content: dict[str, Any] = {
            "format": FORMAT,
            "image_size": image_size_of(self.size) if min(self.size) else None,
            "channels": self.channels,
            "classes": list(self.classes),
            "class_counts": list(self.class_counts),
            "fields": {name: dict(facts) for name, facts in self.fields.items()},
        }
        if self.codes is not None:
            levels = {
                name: {"codebook_size": level.codebook_size, "grid": list(level.grid)}
                for name, level in self.codes.items()
            }
            content["codes"] = {"tokenizer": self.tokenizer, "levels": levels}
        return content

    @property
    def images(self) -> int:
        """Number of training images: the length of an epoch."""
        return sum(self.class_counts)

    def find_classes(self, words: str | None) -> list[int]:
        """Class indices of a comma-separated list of indices or names; all of them for None. Raises UserError."""
        if words is None:
            return list(range(len(self.classes)))
        return [self._find_class(word.strip()) for word in words.split(",")]

    def _find_class(self, word: str) -> int:
        if word.isdecimal() and int(word) < len(self.classes):
            return int(word)
        if word in self.classes:
            return self.classes.index(word)
        raise UserError(
            f"class {word!r}: there is no such class; indices are 0 .. {len(self.classes) - 1}, or give a name"
        )

    def draw_labels(self, draws: Draws, stream: str, indices: Indices) -> Tensor:
        """Labels with the frequencies of the training data, int64 [len(indices)], on the device of the draws."""
        return draws.categories(stream, indices, self.class_counts)


Capability = Literal["sample", "by_class", "likelihood", "reconstruct", "encode"]
"""What a trained model can do; `by_class`: draw samples of given classes."""


@dataclass(frozen=True)
class Dependency:
    """A trained model that another family needs in order to sample. `path`: of its run or its export."""

    path: str
    roles: tuple[str, ...] = ()
    """Which of its own dependencies it needs as well, by role."""
    at_start: bool = False
    """Whether it must exist, and fit, before training begins."""
    makes_codes: bool = False
    """Whether it is the tokenizer whose codes the family is trained on."""


@dataclass(frozen=True)
class LoadedModel:
    """A dependency that has been opened: its family, its networks ready to use, and the fingerprint of their weights."""

    family: "Family"
    networks: Networks
    fingerprint: str


class Family(ABC):
    """One kind of generative model, built for one data set.

    A subclass names its kind (`class GAN(Family, kind="gan")`), which a recipe gives as `family.kind`, and its
    `options_class`. Making a family is cheap: networks are built by `build_network`, one by one, where they are needed.
    Raises ValueError, naming the key, for options that do not fit the data.

    What a family can do beyond training is in `capabilities`; methods for a capability that it lacks are never called.
    """

    kind: ClassVar[str]
    options_class: ClassVar[type[Options]]
    sampling_class: ClassVar[type[Options]]
    needs: ClassVar[Mapping[str, str]] = {"image": "image", "label": "label"}
    """The fields of the data that every model of this kind is trained on: kinds by name."""
    draws_in_training: ClassVar[bool] = True
    """Whether a loss draws anything. A run of a family that does cannot go on with draws that are made in another way."""
    capabilities: frozenset[Capability] = frozenset({"sample", "by_class"})
    speed_options: frozenset[str] = frozenset()
    """Sampling options that change the speed but not the samples, so that a protocol leaves them out."""
    initialisation_images: int = 0
    """The least number of images that `initialise` is given before step 0; 0: it is not called."""

    options: Any
    """The recipe's section, an `options_class`; together with `spec` enough to make this family again."""
    spec: DataSpec
    components: Mapping[str, Component]
    phases: Sequence[Phase]
    sampling: Any
    """The recipe's sampling options, a `sampling_class`."""
    sampled_components: Sequence[str]
    """The components whose networks `prepare_sampling`, `likelihood`, `reconstruct`, `encode` and `decode` need."""
    attached: Mapping[str, LoadedModel] = {}
    """The models that `attach` was given, by role."""

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind is not None:
            cls.kind = kind
            _FAMILIES[kind] = cls

    @abstractmethod
    def __init__(self, options: Any, spec: DataSpec) -> None: ...

    @property
    def reads(self) -> Sequence[str]:
        """The names of the fields that its phases and its likelihood take."""
        return tuple(self.needs)

    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Data-dependent initialisation, before step 0, on every rank with its slices of the first global microbatches.

        Must leave the same weights on every rank, whatever their number.
        """
        raise NotImplementedError

    def why_not(self, capability: Capability) -> str:
        """Why a model of this family lacks a capability and what to do instead, as a message for the user."""
        names = {
            "sample": "draw images",
            "by_class": "draw images of a given class, as it was trained without classes",
            "likelihood": "give likelihoods",
            "reconstruct": "reconstruct images",
            "encode": "encode images",
        }
        return f"a {self.kind} cannot {names[capability]}"

    @classmethod
    def dependencies_of(cls, options: Any) -> Mapping[str, Dependency]:
        """The trained models that a family with these options needs in order to sample, by role.

        A role is the key of the options that names the model, so that messages can say `family.ROLE`.
        """
        return {}

    @property
    def dependencies(self) -> Mapping[str, Dependency]:
        """The trained models that this one needs in order to sample, by role."""
        return self.dependencies_of(self.options)

    def attach(self, trained: Mapping[str, LoadedModel]) -> None:
        """Stores models that `dependencies` names; `sample` needs all of them. Raises UserError if one does not fit."""
        assert trained.keys() <= self.dependencies.keys(), f"{self.kind} does not depend on {sorted(trained)}"
        self.attached = {**self.attached, **trained}

    # -- sample -----------------------------------------------------------------------------------------------------

    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        """The networks ready to sample (eval mode, standing statistics if chosen). Does not change the given ones."""
        raise NotImplementedError

    def sample(self, networks: Networks, labels: Tensor, indices: Indices, seed: int, sampling: Any) -> Tensor:
        """Images [n, C, H, W] in [-1, 1] for int64 `labels` [n] on the networks' device.

        `networks` come from `prepare_sampling`. Sample `indices[k]` depends on (weights, seed, index, label, sampling)
        alone: not on the batch that it is drawn in.
        """
        raise NotImplementedError

    def sampling_name(self, sampling: Any) -> str:
        """The suffix of a metric's name for samples drawn in a cheaper way than the published protocol; else empty."""
        return ""

    def to_diffusers(self, networks: Networks) -> Any:
        """One of diffusers' own pipelines that samples this model without bigtrain; None if there is none."""
        return None

    @property
    def diffusers_arguments(self) -> Mapping[str, Any]:
        """What a call of the pipeline of `to_diffusers` must be given to sample as this model does."""
        return {}

    def from_diffusers(self, pipeline: Any) -> Networks:
        """The inverse of `to_diffusers`: the networks in its pipeline."""
        raise NotImplementedError

    # -- likelihood -------------------------------------------------------------------------------------------------

    @property
    def dimensions(self) -> int:
        """Number of dimensions of a sample, for bits per dimension."""
        raise NotImplementedError

    def likelihood(self, networks: Networks, batch: Microbatch, evaluations: int | None) -> dict[str, Tensor]:
        """Float64 tensors whose leading dimension is n: "nats", the negative log-likelihood (or its bound) of each
        sample, and the terms whose sum it is.

        Networks are in eval mode; `batch.indices` are the samples' numbers in their split, which key any draw.
        `evaluations`: how many times the network is evaluated per sample, where that can be fewer than the bound has terms;
        None: all.
        """
        raise NotImplementedError

    def likelihood_protocol(self, evaluations: int | None, seed: int) -> dict[str, Any]:
        """What the likelihood depends on besides the weights and the data; empty if it is exact."""
        return {}

    # -- reconstruct, encode ----------------------------------------------------------------------------------------

    def reconstruct(self, networks: Networks, images: Tensor) -> Tensor:
        """The reconstructions of images [n, C, H, W] in [-1, 1], in the same shape and range."""
        raise NotImplementedError

    @property
    def code_levels(self) -> Mapping[str, CodeLevel]:
        """A tokenizer's levels, the coarsest first."""
        raise NotImplementedError

    def successor_keys(self, run: str) -> Sequence[str]:
        """The keys, as words of a command line, by which the recipe of the model that is trained next on top of this one
        names `run`: here of a tokenizer, whose codes a model of codes is trained on, the coarsest level first."""
        words = [f"family.tokenizer={run}"]
        levels = list(self.code_levels)
        if len(levels) > 1:  # the codes of one level cannot be decoded without the others
            words += [f"family.level={levels[0]}", "evaluation.metrics=[bits_per_dim]", "train.sample_every=null"]
        return [*words, "(recipes/pixelcnn_*.yaml and recipes/prior_*.yaml are such recipes)"]

    def encode(self, networks: Networks, images: Tensor) -> dict[str, Tensor]:
        """Codes int64 [n, h, w] by level, of images [n, C, H, W] in [-1, 1]."""
        raise NotImplementedError

    def decode(self, networks: Networks, codes: Mapping[str, Tensor]) -> Tensor:
        """Images [n, C, H, W] in [-1, 1] from the codes of all levels."""
        raise NotImplementedError


_FAMILIES: dict[str, type[Family]] = {}
_MODULES = {
    "diffusion": "diffusion.diffusion",
    "gan": "adversarial.gan",
    "prior": "autoregressive.prior",
    "vqvae": "autoencoders.vqvae",
}
"""The module of this package that registers each kind. A table, so that a recipe imports one family and not all."""


def family_kinds() -> list[str]:
    """Every kind that a recipe may name: those of this package, and any others that have been registered."""
    return sorted({*_MODULES, *_FAMILIES})


def find_family(kind: str) -> type[Family]:
    """The family of a kind; imports only its module. Raises UserError if there is none."""
    if kind not in family_kinds():
        raise UserError(f"family.kind: {kind!r} is not a family; there are {', '.join(family_kinds())}")
    if kind not in _FAMILIES:
        importlib.import_module(f"bigtrain.families.{_MODULES[kind]}")
    return _FAMILIES[kind]


def build_network(family: Family, component: str, seed: int) -> nn.Module:
    """A component's network with initial weights keyed by (seed, component): the same on every rank and in any order."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, f"{component}/initialisation"))
        return family.components[component].build()
