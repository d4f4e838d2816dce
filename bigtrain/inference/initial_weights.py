"""The weights that training begins with where a recipe's train.init names a run or an export: what fits is taken, and what does
not is named and begins at random, as it would without.

A tensor fits if the network has one of its name and shape. Rows for classes, such as those of an embedding, are found by
building the networks for one class more; they are taken by the classes' names, so that a model of other classes may go on with
those that both know.
"""

import difflib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bigtrain.cluster import world
from bigtrain.errors import UserError, some_of
from bigtrain.exchange.hub import local
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.features.cache import fingerprint
from bigtrain.inference.dependencies import group_of
from bigtrain.inference.model import made_of_snapshots, make_family, open_model, opened_run
from bigtrain.inference.posthoc import named_width
from bigtrain.recipe import Recipe
from bigtrain.training.options import TrainOptions

log = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]
_NAMED = 4
"""How many tensors a message names."""


@dataclass(frozen=True)
class Source:
    """A trained model's weights. tensors: by component and name; facts: step and weights."""

    path: Path
    family: Family
    tensors: Mapping[str, Tensors]
    facts: Mapping[str, Any]

    @property
    def described(self) -> dict[str, Any]:
        """For the record of a run: where the weights came from, and the sha256 of all of them."""
        named = {
            f"{component}/{name}": value for component, part in self.tensors.items() for name, value in part.items()
        }
        return {"source": str(self.path.resolve()), **self.facts, "sha256": fingerprint(named)}


@dataclass(frozen=True)
class InitialWeights:
    """sources: by component of the family that is to be trained."""

    family: Family
    sources: Mapping[str, Source]

    @classmethod
    def open(cls, family: Family, train: TrainOptions) -> "InitialWeights | None":
        """What train.init names; None if it names nothing. Every rank calls it. Raises UserError."""
        if train.init is None:
            return None
        if isinstance(train.init, str):
            source = _open(train.init, train.init_weights)
            shared = {name: source for name in family.components if name in source.tensors}
            if not shared:
                raise _of_another_architecture(source, family, "any component")
            return cls(family, shared)
        for name in train.init:
            if name not in family.components:
                near = difflib.get_close_matches(name, family.components, 1)
                raise UserError(
                    f"train.init: {name!r} is no component of a {family.kind}; "
                    + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(family.components)}")
                )
        opened = {path: _open(path, train.init_weights) for path in dict.fromkeys(train.init.values())}
        for name, path in train.init.items():
            if name not in opened[path].tensors:
                raise UserError(f"train.init: {path} has no {name}; it has {', '.join(opened[path].tensors)}")
        return cls(family, {name: opened[path] for name, path in train.init.items()})

    def load(self, networks: Mapping[str, nn.Module]) -> None:
        """Copies what fits into the networks, in place, and says what it was. Raises UserError if a source has nothing that
        fits."""
        for name, network in networks.items():
            if name not in self.sources:
                self._say(f"train.init: {name} begins with random weights, as none are given for it")
                continue
            source = self.sources[name]
            taken, fresh, classes = _load(
                network, source.tensors[name], _class_axes(self.family, name), _class_axes(source.family, name),
                self.family.spec.classes, source.family.spec.classes,
            )  # fmt: skip
            if not taken:
                raise _of_another_architecture(source, self.family, f"the {name}")
            left = len(source.tensors[name]) - len(taken)
            sentence = (
                f"train.init: {name} takes {len(taken)} of its {len(network.state_dict())} tensors from {source.path}"
            )
            sentence += f", of the classes {', '.join(classes)}" if classes is not None and classes else ""
            sentence += ", and those of no class, as they have none in common" if classes == [] else ""
            sentence += f"; {some_of(fresh, _NAMED)} begin at random" if fresh else ""
            sentence += f"; {left} of the source fit nowhere" if left else ""
            self._say(sentence)

    def describe(self) -> dict[str, Any]:
        """By component, where the weights came from."""
        return {name: source.described for name, source in self.sources.items()}

    def _say(self, sentence: str) -> None:
        if world.is_main():
            log.warning("%s", sentence)


def _open(given: str, weights: str) -> Source:
    try:
        path = Path(local(given))
        if (path / "model_index.json").is_file():
            from bigtrain.exchange.export import training_components  # heavy, and only exports need it

            # The averaged weights are asked for by default, and an export may be of others.
            model = open_model(path, torch.device("cpu"), weights=None if weights == "ema" else weights)
            tensors: dict[str, Tensors] = {name: network.state_dict() for name, network in model.weights.items()}
            tensors |= training_components(path)
            facts = {key: model.provenance[key] for key in ("step", "weights")}
            return Source(path, model.family, tensors, facts)
        recipe, saved = opened_run(path, "newest")
        return _of_run(path, recipe, saved, weights)
    except UserError as error:
        key, said = "train.init", str(error)
        if said.startswith("--weights: "):
            key, said = "train.init_weights", said.removeprefix("--weights: ")
        raise UserError(f"{key}: {said}") from None


def _of_run(path: Path, recipe: Recipe, saved: Any, weights: str) -> Source:
    family = make_family(recipe, DataSpec.from_json(saved.state.get("data", {})))
    width = named_width(weights)
    if width is None and weights not in ("ema", "raw", *recipe.ema.extra):
        available = ", ".join(["ema", "raw", *recipe.ema.extra])
        raise UserError(f"{path} has no average {weights!r} (train.init_weights); there are {available}")
    averaged = [name for name, each in family.components.items() if each.averaged and each.optimizer is not None]
    if width is not None:
        made, facts = made_of_snapshots(path, recipe, saved, family, averaged, width)
        kept = {name: saved.tensors(name)["weights"] for name in family.components if name not in made}
        return Source(path, family, made | kept, {"step": saved.step, **facts})
    tensors = {
        name: saved.tensors(name)[group_of(weights) if name in averaged else "weights"] for name in family.components
    }
    return Source(path, family, tensors, {"step": saved.step, "weights": weights})


def _of_another_architecture(source: Source, family: Family, what: str) -> UserError:
    return UserError(
        f"train.init: {source.path}, a {source.family.kind}, has no tensor that fits {what} of this {family.kind}: it is of "
        "another architecture; begin from a run whose family section is alike"
    )


def _load(
    network: nn.Module,
    given: Tensors,
    own_axes: Mapping[str, int],
    given_axes: Mapping[str, int],
    own_classes: Sequence[str],
    given_classes: Sequence[str],
) -> tuple[list[str], list[str], list[str] | None]:
    """(names of tensors that were taken, of those that begin at random, classes in common if rows were taken by class)."""
    taken, fresh = [], []
    by_name = tuple(own_classes) != tuple(given_classes)
    common = [name for name in own_classes if name in set(given_classes)] if by_name and own_axes else None
    rows = [own_classes.index(name) for name in common or ()], [given_classes.index(name) for name in common or ()]
    for name, own in network.state_dict().items():
        value = given.get(name)
        if value is None or value.is_floating_point() != own.is_floating_point():
            fresh.append(name)
        elif common is not None and name in own_axes:
            axis = own_axes[name]
            fits = given_axes.get(name) == axis and _without(own.shape, axis) == _without(value.shape, axis)
            beyond = [
                len_ - len(classes)
                for len_, classes in ((own.shape[axis], own_classes), (value.shape[axis], given_classes))
            ]
            if fits and beyond[0] == beyond[1] and (common or beyond[0]):
                _copy_rows(own, value, axis, rows, (len(own_classes), len(given_classes)))
                taken.append(name)
            else:
                fresh.append(name)
        elif value.shape == own.shape:
            own.copy_(value)
            taken.append(name)
        else:
            fresh.append(name)
    return taken, fresh, common


def _copy_rows(
    own: Tensor, given: Tensor, axis: int, rows: tuple[Sequence[int], Sequence[int]], classes: tuple[int, int]
) -> None:
    """Rows of classes, and those beyond, such as that of no class."""
    beyond = own.shape[axis] - classes[0]
    to = torch.tensor([*rows[0], *range(classes[0], classes[0] + beyond)], device=own.device)
    of = torch.tensor([*rows[1], *range(classes[1], classes[1] + beyond)])
    own.index_copy_(axis, to, given.index_select(axis, of).to(own.device))


def _without(shape: torch.Size, axis: int) -> tuple[int, ...]:
    return tuple(side for number, side in enumerate(shape) if number != axis)


def _class_axes(family: Family, component: str) -> dict[str, int]:
    """By tensor of a component, the dimension that grows by one with each class."""
    spec = family.spec
    more = replace(spec, classes=(*spec.classes, "one more class"), class_counts=(*spec.class_counts, 1))
    shapes = [_shapes(each, component) for each in (family, type(family)(family.options, more))]
    axes = {}
    for name, shape in shapes[0].items():
        other = shapes[1].get(name, shape)
        grown = [axis for axis, (one, two) in enumerate(zip(shape, other, strict=True)) if two == one + 1]
        if grown and len(shape) == len(other):
            axes[name] = grown[0]
    return axes


def _shapes(family: Family, component: str) -> dict[str, torch.Size]:
    with FakeTensorMode(allow_non_fake_inputs=True), torch.random.fork_rng(devices=[]):
        return {name: value.shape for name, value in family.components[component].build().state_dict().items()}
