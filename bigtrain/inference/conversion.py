"""Weights of others as an export: the checkpoint is opened, its recipe is found or inferred, and what does not fit is listed.

The names and shapes of each source are in bigtrain/exchange/convert/.
"""

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

import bigtrain
from bigtrain.data.splits import describe, known_split
from bigtrain.errors import UserError, some_of
from bigtrain.exchange.convert.opening import open_checkpoint
from bigtrain.exchange.convert.source import Architecture, Checkpoint, Source
from bigtrain.exchange.export import Usage, check_free, export
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family, build_network, without_weights
from bigtrain.inference.model import make_family
from bigtrain.recipe import Recipe, load_recipe, made_recipe
from bigtrain.runs import atomic
from bigtrain.sizes import size_of

SHIPPED = Path(bigtrain.__file__).parents[1] / "recipes"
"""The recipes that come with the sources; not there where the package alone is installed."""
TRAIN = "data.train"
NO_DATA = "data/train.json"
"""The index in an inferred recipe for data that nobody has named."""
_NAMED = 4
"""How many tensors a message names."""


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint, to be said: by component the number of tensors that were taken, how it is sampled,
    and further sentences."""

    source: Source
    checkpoint: Checkpoint
    taken: Mapping[str, int]
    usages: Sequence[Usage]
    remarks: Sequence[str]


@dataclass(frozen=True)
class Wanted:
    """What a user asks for: `source` (a name, or auto), `order` (of attention, or None), `weights` (ema or raw), `recipe` (a
    file, or None: inferred) and `overrides` of it."""

    source: str
    order: str | None
    weights: str
    recipe: Path | None
    overrides: Sequence[str]

    @property
    def names_data(self) -> bool:
        """Whether data.train says where the data are."""
        return self.recipe is not None or any(given.startswith((f"{TRAIN}=", f"{TRAIN}.")) for given in self.overrides)


def convert(path: Path, out: Path, wanted: Wanted) -> Converted:
    """Writes the export `out` of the checkpoint `path`, completely or not at all. Raises UserError."""
    check_free(out)
    source, checkpoint = open_checkpoint(path, wanted.source, wanted.order, wanted.weights)
    try:
        recipe, architecture = _recipe_of(source, checkpoint, wanted, out)
        spec, remarks = _spec_of(recipe, architecture, wanted)
        family = make_family(recipe, spec)
        ours = {
            component: source.translated(component, theirs, family.options)
            for component, theirs in checkpoint.parts.items()
        }
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    except KeyError as error:
        files = ", ".join(file.name for file in checkpoint.files.values())
        raise UserError(
            f"{path}: is not whole, or not of {source.name}: {files} lack what is {error.args[0]} here; fetch it again"
        ) from None
    except (IndexError, RuntimeError) as error:
        raise UserError(f"{path}: is not whole, or not of {source.name} ({error})") from None
    ours = {component: tensors for component, tensors in ours.items() if component in family.components}
    _check_fit(family, source, checkpoint, ours, recipe, architecture)
    networks = {component: build_network(family, component, seed=0) for component in family.sampled_components}
    for component, network in networks.items():
        network.load_state_dict(ours[component], strict=False)
    training = {component: tensors for component, tensors in ours.items() if component not in networks}
    usages = export(
        out,
        family,
        networks,
        recipe_yaml=recipe.to_yaml(),
        provenance=_provenance(source, checkpoint, spec),
        training=training,
    )
    return Converted(source, checkpoint, {name: len(tensors) for name, tensors in ours.items()}, usages, remarks)


# -- the recipe -----------------------------------------------------------------------------------------------------


def _recipe_of(source: Source, checkpoint: Checkpoint, wanted: Wanted, out: Path) -> tuple[Recipe, Architecture | None]:
    """The recipe that is given, or inferred, and what the checkpoint says of it (None where it says too little)."""
    if wanted.recipe is not None:
        recipe = load_recipe(wanted.recipe, wanted.overrides)
        kind = source.base["family"]["kind"]
        if recipe.family.kind != kind:
            raise UserError(
                f"{wanted.recipe}: family.kind is {recipe.family.kind}, and checkpoints of {source.name} are a {kind}"
            )
        try:
            return recipe, source.architecture(checkpoint, _side(recipe))
        except (UserError, KeyError, IndexError, ValueError):
            return recipe, None  # what does not fit is listed by name, against the recipe
    content = copy.deepcopy(dict(source.base))
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", out.name).lstrip("._-") or "converted"
    content["run"], content["data"] = {"name": name}, {"train": NO_DATA}
    content["train"] = {"steps": max(checkpoint.step, 1), **content.get("train", {})}
    # Of the overrides alone, so that the architecture can be told the size.
    architecture = source.architecture(
        checkpoint, _side(made_recipe(content, checkpoint.path.name, _of_data(wanted.overrides)))
    )
    _check_asked(source, checkpoint, architecture, wanted)
    for key, value in architecture.keys.items():
        _put(content, key, value)
    if architecture.size is not None and "image_size" not in content["data"]:
        content["data"]["image_size"] = architecture.size
    return made_recipe(content, checkpoint.path.name, wanted.overrides), architecture


def _of_data(overrides: Sequence[str]) -> list[str]:
    return [given for given in overrides if given.startswith("data.")]


def _side(recipe: Recipe) -> int | None:
    size = recipe.data.image_size
    return None if size is None else min(size_of(size))


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        content = content.setdefault(section, {})
    content[last] = value


def _check_asked(source: Source, checkpoint: Checkpoint, architecture: Architecture, wanted: Wanted) -> None:
    """Raises UserError unless the command line says what the checkpoint does not."""
    given = tuple(override.partition("=")[0] for override in wanted.overrides)
    missing = {
        key: advice for key, advice in architecture.asked.items() if not any(one in given for one in key.split("|"))
    }
    if missing:
        listed = ", ".join(f"{key.replace('|', ' or ')} ({advice})" for key, advice in missing.items())
        raise UserError(
            f"its tensors do not say {listed}; give --recipe RECIPE, or those keys as KEY=VALUE"
            + _nearest(source, checkpoint, architecture)
        )


# -- the data -------------------------------------------------------------------------------------------------------


def _spec_of(recipe: Recipe, architecture: Architecture | None, wanted: Wanted) -> tuple[DataSpec, list[str]]:
    """The data that the weights were trained on, as far as that is known, and what to say of it."""
    index = known_split(recipe.data) if wanted.names_data else None
    classes = None if architecture is None else architecture.classes
    if index is not None:
        spec = DataSpec.from_json(describe(index))
        if classes is not None and classes != len(spec.classes):
            raise UserError(
                f"was trained on {classes} classes, and {index.where} has {len(spec.classes)}; give data of those as {TRAIN}"
            )
        return spec, []
    if recipe.data.image_size is None:
        raise UserError("its tensors do not say how large the images are; give data.image_size=SIZE")
    channels = recipe.data.channels or (3 if architecture is None else architecture.channels)
    names = tuple(map(str, range(classes or 1)))
    size, fields = size_of(recipe.data.image_size), {} if architecture is None else architecture.fields
    spec = DataSpec(
        size, channels, names, (1,) * len(names), fields={name: dict(facts) for name, facts in fields.items()}
    )
    remark = (
        f"the {len(names)} classes are numbered; {TRAIN}=INDEX names them as your data do, by which train.init matches them"
        if classes is not None
        else f"the data are not known; with {TRAIN}=INDEX the export can be evaluated on them"
    )
    return spec, [remark]


# -- what fits ------------------------------------------------------------------------------------------------------


def _check_fit(
    family: Family,
    source: Source,
    checkpoint: Checkpoint,
    ours: Mapping[str, Mapping[str, Tensor]],
    recipe: Recipe,
    architecture: Architecture | None,
) -> None:
    """Raises UserError, listing them, for tensors that are left over, that are missing, or that have another shape."""
    wrong = []
    for component, tensors in ours.items():
        network = {name: tuple(value.shape) for name, value in without_weights(family, component).state_dict().items()}
        given = {name: tuple(value.shape) for name, value in tensors.items()}
        kept = {name for name in network if name.rpartition(".")[2] in source.kept}
        # What an augmentation or a penalty adds to a component that only training needs begins as it would.
        missing = sorted(network.keys() - given.keys() - kept) if component in family.sampled_components else []
        over = sorted(given.keys() - network.keys())
        shapes = [
            f"{name} {list(given[name])}, not {list(network[name])}"
            for name in sorted(given.keys() & network.keys())
            if given[name] != network[name]
        ]
        kinds = {"left over": over, "missing": missing, "of another shape": shapes}
        listed = [f"{len(names)} {what} ({some_of(names, _NAMED)})" for what, names in kinds.items() if names]
        if listed:
            wrong.append(f"tensors of the {component}: {', '.join(listed)}")
    if wrong:
        raise UserError(
            f"{checkpoint.path}: does not fit {recipe.run.name}: {'; '.join(wrong)}"
            + _nearest(source, checkpoint, architecture)
        )


def _nearest(source: Source, checkpoint: Checkpoint, architecture: Architecture | None) -> str:
    """The shipped recipe whose network has most of the tensors, by name and by shape, to end a message; nothing where none is
    shipped."""
    shares = {}
    for path in sorted(SHIPPED.glob("*.yaml")):
        found = _fitting(path, source, checkpoint, architecture)
        if found is not None:
            shares[path] = found
    if not shares:
        return ""
    path, (named, fitting, of) = max(shares.items(), key=lambda item: sum(item[1][:2]) / item[1][2])
    how = "fits it" if fitting == of else f"shares {named} of {of} names, and {fitting} shapes of those"
    return f"; the nearest of the shipped recipes, {SHIPPED.name}/{path.name}, {how}"


def _fitting(
    path: Path, source: Source, checkpoint: Checkpoint, architecture: Architecture | None
) -> tuple[int, int, int] | None:
    """(tensors of the main component whose names a recipe's network has, those of its shapes too, those of both together); None
    if it is of another family."""
    recipe = load_recipe(path)
    if recipe.family.kind != source.base["family"]["kind"] or recipe.data.image_size is None:
        return None
    classes = (None if architecture is None else architecture.classes) or 1
    channels = 3 if architecture is None else architecture.channels
    names = tuple(map(str, range(classes)))
    fields = {} if architecture is None else architecture.fields
    size = size_of(recipe.data.image_size)
    own = {name: dict(facts) | {"size": size[0]} for name, facts in fields.items()}
    try:
        family = make_family(
            recipe, DataSpec(size, recipe.data.channels or channels, names, (1,) * classes, fields=own)
        )
        theirs = source.our_shapes(source.main, checkpoint.parts[source.main], family.options)
        network = {n: tuple(v.shape) for n, v in without_weights(family, source.main).state_dict().items()}
    except (ValueError, KeyError, IndexError, RuntimeError):  # of a depth that has no such names, or of unlike data
        return None
    network = {name: shape for name, shape in network.items() if name.rpartition(".")[2] not in source.kept}
    fitting = sum(network.get(name) == shape for name, shape in theirs.items())
    return len(network.keys() & theirs.keys()), fitting, len(network.keys() | theirs.keys())


def _provenance(source: Source, checkpoint: Checkpoint, spec: DataSpec) -> dict[str, Any]:
    files = {
        component: {"file": file.name, "sha256": atomic.sha256_of(file)} for component, file in checkpoint.files.items()
    }
    return {
        "step": checkpoint.step,
        "weights": checkpoint.weights,
        "data": spec.to_json(),
        "converted": {
            "from": source.name,
            "source": source.repository,
            "licence": checkpoint.licence or source.licence,
            "files": files,
        },
    }
