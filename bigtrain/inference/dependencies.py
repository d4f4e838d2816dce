"""Where the models and data are that a model depends on: their paths, and the checkpoint whose weights made codes."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigtrain.data.remote import is_remote
from bigtrain.errors import UserError
from bigtrain.families.family import find_family
from bigtrain.features.cache import fingerprint
from bigtrain.recipe import Recipe, load_recipe, with_values
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import DIRECTORY, RunFolder
from bigtrain.untrusted import read_json

GROUPS = {"ema": "average", "raw": "weights"}
"""The group of a checkpoint's tensors by the name that commands give it; that of an extra average is `average_NAME`."""


def group_of(weights: str) -> str:
    return GROUPS.get(weights, f"average_{weights}")


def located(recipe: Recipe, file: Path) -> Recipe:
    """The recipe with the relative paths of other models as they are from the current folder. `file`: the recipe's.

    A path that leads nowhere from here is looked for from the folder that the run was started in, and from those above the
    recipe; where it is in none of them, it stays as it is.
    """
    found = {}
    for role, other in find_family(recipe.family.kind).dependencies_of(recipe.family).items():
        path = Path(other.path)
        if not path.is_absolute() and not _is_model(path):
            places = (folder / path for folder in _starting_points(file) if _is_model(folder / path))
            if (place := next(places, None)) is not None:
                found[f"family.{role}"] = str(place)
    return with_values(recipe, found)


def data_located(recipe: Recipe, file: Path, overrides: Sequence[str]) -> Recipe:
    """The recipe of a run with the relative paths of its indexes as they are from the current folder. `file`: the recipe's.

    A path that leads nowhere from here is looked for from the folder that the run was started in, and nowhere else: an index
    of the same name may be of other data. What `overrides` say is meant from here.
    """
    started_in = _started_in(file)
    given = {word.partition("=")[0] for word in overrides}
    found: dict[str, Any] = {}
    for split in ("train", "validation"):
        where, key = getattr(recipe.data, split), f"data.{split}"
        if started_in is None or any(name == key or name.startswith(f"{key}.") for name in given):
            continue
        if isinstance(where, str):
            found[key] = _index_from(started_in, where)
        elif isinstance(where, Mapping):
            found[key] = {name: _index_from(started_in, each) for name, each in where.items()}
    return with_values(recipe, found)


def _index_from(folder: Path, where: str) -> str:
    if not where.endswith(".json") or is_remote(where) or os.path.isfile(where):
        return where
    place = str(folder / where)
    return place if os.path.isfile(place) else where


def overrides_of(given: Sequence[str], run: Path) -> list[str]:
    """The overrides of a run's recipe that the values of --dependency stand for. Raises UserError."""
    if not given or not (run / "recipe.yaml").is_file():
        return []
    recipe = load_recipe(run / "recipe.yaml")
    roles = find_family(recipe.family.kind).dependencies_of(recipe.family)
    for word in given:
        role, equals, path = word.partition("=")
        if role not in roles:
            has = f"it needs {' and '.join(roles)}" if roles else "it needs none"
            raise UserError(f"--dependency: {run} needs no other model called {role!r}; {has}")
        if not equals or not _is_model(Path(path)):
            raise UserError(f"--dependency {role}: {path or word} is neither a run nor an export; give {role}=PATH")
        if (run / "model_index.json").is_file():
            raise UserError(f"--dependency {role}: {run} is an export, which holds its own; leave it out")
    return [f"family.{role}={json.dumps(path)}" for role, _, path in (word.partition("=") for word in given)]


def _is_model(path: Path) -> bool:
    return path.is_file() or (path / "recipe.yaml").is_file()


def _starting_points(file: Path) -> Iterator[Path]:
    if (started_in := _started_in(file)) is not None:
        yield started_in
    yield from file.resolve().parents


def _started_in(file: Path) -> Path | None:
    """The folder that the run was started in, if it says one."""
    try:
        folder = read_json(RunFolder(file.parent).environment)[DIRECTORY]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(folder) if isinstance(folder, str) and os.path.isabs(folder) else None


def find_weights(run: Path, components: Sequence[str], averages: Sequence[str], wanted: str) -> tuple[str, str] | None:
    """(weights, step) of the checkpoint of a run, the newest first, whose weights have the fingerprint `wanted`
    (`Model.fingerprint`); None if there is none. `averages`: the names of its extra ones."""
    for path in reversed(checkpoint.listed(RunFolder(run).checkpoints)):
        try:
            saved = checkpoint.Checkpoint(path)
        except ValueError:  # damaged
            continue
        for weights in ("ema", "raw", *averages):
            if _fingerprint(saved, components, group_of(weights)) == wanted:
                return weights, str(saved.step)
    return None


def _fingerprint(saved: checkpoint.Checkpoint, components: Sequence[str], group: str) -> str:
    tensors = {}
    for component in components:
        groups = saved.tensors(component)
        for name, value in groups.get(group, groups.get("weights", {})).items():
            tensors[f"{component}/{name}"] = value.float() if value.is_floating_point() else value
    return fingerprint(tensors)
