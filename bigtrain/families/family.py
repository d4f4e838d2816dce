"""What every family defines: its components, its phases, and what it is told of the data. The trainer knows nothing else of it.

To add a family: one module here with a `Family` subclass, one module of networks, one recipe, one entry of the promise tests'
table (README, "Adding a family").
"""

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import psutil
import torch
from torch import nn

from bigtrain.errors import UserError
from bigtrain.families.abilities import Ability
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, Networks, Phase
from bigtrain.options import Options
from bigtrain.randomness import torch_seed
from bigtrain.wrong_values import did_you_mean, nearest_of

A = TypeVar("A", bound=Ability)


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
    weights: str | None = None
    """Which of its weights; None: a run's main average, or those of an export."""
    checkpoint: str = "newest"
    """Which checkpoint of a run."""
    exported: bool = True
    """Whether an export of the family holds it too."""


@dataclass(frozen=True)
class LoadedModel:
    """A dependency that has been opened: its family, its networks ready to use, and the fingerprint of their weights."""

    family: "Family"
    networks: Networks
    fingerprint: str


class Family(ABC):
    """One kind of generative model, built for one data set.

    A subclass names its kind (`class GAN(Family, Samples, kind="gan")`), which a recipe gives as `family.kind`, its
    `options_class`, and its abilities (bigtrain/families/abilities.py): what a trained model can be asked for. Making a family
    is cheap: networks are built by `build_network`, one by one, where they are needed. Raises ValueError, naming the key, for
    options that do not fit the data.
    """

    kind: ClassVar[str]
    options_class: ClassVar[type[Options]]
    needs: ClassVar[Mapping[str, str]] = {"image": "image", "label": "label"}
    """The fields of the data that every model of this kind is trained on: kinds by name."""
    draws_in_training: ClassVar[bool] = True
    """Whether a loss draws anything. A run of a family that does cannot go on with draws that are made in another way."""

    options: Any
    """The recipe's section, an `options_class`; together with `spec` enough to make this family again."""
    spec: DataSpec
    components: Mapping[str, Component]
    phases: Sequence[Phase]
    sampled_components: Sequence[str]
    """The components whose networks its abilities need: those that leave training."""
    falling: Mapping[str, str] = {}
    """The numbers of an evaluation whose fall says that training goes wrong, each with a sentence that says what helps."""
    lacks: Mapping[type[Ability], str] = {}
    """Abilities that models with these options have not, with the reason and what to do instead, for the user; of a class:
    those that no model of this kind has, though its parent may."""
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

    # -- abilities --------------------------------------------------------------------------------------------------

    def ability(self, ability: type[A]) -> A | None:
        """This family as one that has the ability; None if it has not."""
        lacking = any(issubclass(ability, lacked) for lacked in self.lacks)
        return self if isinstance(self, ability) and not lacking else None

    @classmethod
    def may_have(cls, ability: type[Ability]) -> bool:
        """Whether models of this kind have the ability, with some options at least."""
        return issubclass(cls, ability) and not any(issubclass(ability, lacked) for lacked in cls.lacks)

    def require(self, ability: type[A], what: object) -> A:
        """This family as one that has the ability. Raises UserError, beginning with `what`, if it has not."""
        found = self.ability(ability)
        if found is None:
            raise UserError(f"{what}: {self.why_not(ability)}")
        return found

    def why_not(self, ability: type[Ability]) -> str:
        """Why a model of this family lacks an ability, and which families have it, as a message for the user."""
        for lacked, reason in self.lacks.items():
            if issubclass(ability, lacked):
                return reason
        families = {kind: find_family(kind) for kind in family_kinds()}
        others = [kind for kind, family in families.items() if family.may_have(ability)]
        those = f"; family.kind: {' | '.join(others)} can" if others else ""
        return f"a {self.kind} cannot {ability.does}{those}"

    # -- models that this one needs ---------------------------------------------------------------------------------

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


_FAMILIES: dict[str, type[Family]] = {}
_MODULES = {
    "bigan": "adversarial.bigan",
    "diffusion": "diffusion.diffusion",
    "flow": "flows.flow",
    "gan": "adversarial.gan",
    "infogan": "adversarial.infogan",
    "noisy_classifier": "diffusion.noisy_classifier",
    "point_flow": "flows.point_flow",
    "point_gan": "adversarial.point_gan",
    "prior": "autoregressive.prior",
    "semi_supervised_gan": "adversarial.semi_supervised_gan",
    "translation": "translation.translation",
    "two_players": "adversarial.two_players",
    "vae": "autoencoders.vae",
    "vdvae": "autoencoders.vdvae",
    "vqvae": "autoencoders.vqvae",
}
"""The module of this package that registers each kind. A table, so that a recipe imports one family and not all."""
_OF_MODELS = {
    "biggan": "gan",
    "dcgan": "gan",
    "ddpm": "diffusion",
    "glow": "flow",
    "iaf": "vae",
    "iddpm": "diffusion",
    "iwae": "vae",
    "pix2pix": "translation",
    "pixelcnn": "prior",
    "pixelcnnpp": "prior",
    "realnvp": "flow",
    "sngan": "gan",
    "vqvae2": "vqvae",
    "wgan_gp": "gan",
}
"""The kind of models that have other names, by which recipes/ calls them."""


def family_kinds() -> list[str]:
    """Every kind that a recipe may name: those of this package, and any others that have been registered."""
    return sorted({*_MODULES, *_FAMILIES})


def find_family(kind: str) -> type[Family]:
    """The family of a kind; imports only its module. Raises UserError if there is none."""
    if kind not in family_kinds():
        kinds = family_kinds()
        nearest = nearest_of(kind, [*kinds, *_OF_MODELS])
        if nearest in _OF_MODELS:
            meant = f"; did you mean {nearest}, which is of family.kind: {_OF_MODELS[nearest]}?"
        else:
            meant = did_you_mean([kind], kinds)
        raise UserError(f"family.kind: {kind!r} is not a family{meant} (there are: {', '.join(kinds)})")
    if kind not in _FAMILIES:
        importlib.import_module(f"bigtrain.families.{_MODULES[kind]}")
    return _FAMILIES[kind]


def build_network(family: Family, component: str, seed: int) -> nn.Module:
    """A component's network with initial weights keyed by (seed, component): the same on every rank and in any order. Raises
    UserError for one whose weights this machine cannot hold."""
    without_weights(family, component)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, f"{component}/initialisation"))
        return family.components[component].build()


def without_weights(family: Family, component: str) -> nn.Module:
    """The network on the meta device, which takes a few hundredths of a second. Raises UserError for one whose weights this
    machine cannot hold."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = family.components[component].build()
    except (RuntimeError, TypeError) as error:
        if "overflow" not in str(error).lower():
            raise
        takes = "more than can be counted"
    else:
        tensors = [*network.parameters(), *network.buffers()]
        bytes_ = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if bytes_ <= psutil.virtual_memory().total:
            return network
        takes = f"{bytes_ / 2**30:,.0f} GiB"
    raise UserError(
        f"family: the weights of the {component} would take {takes}, and this machine has "
        f"{psutil.virtual_memory().total / 2**30:,.0f} GiB of memory; make its layers narrower or fewer"
    )
