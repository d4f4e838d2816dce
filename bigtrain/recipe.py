"""The recipe: a YAML file, checked against the options classes, each of which stands beside the code that it configures.

A recipe is read with YAML's safe loader, may extend another, is overridden from the command line (`train.steps=100`) and is
checked as a whole. The message for an unknown key names the nearest known one; the message for a wrong value names its key.
A mapping changes its parent's key by key; one that chooses another `kind` replaces it.
Imported by inference, plan.py, cli.py and launch/ only.
"""

import copy
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache, reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, ValidationError, create_model, field_validator
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from bigtrain.data.options import NONE, DataOptions
from bigtrain.errors import RankError, UserError
from bigtrain.evaluation.options import EvaluationOptions, check_same_scripts, named_scripts, stored_scripts
from bigtrain.families.family import family_kinds, find_family
from bigtrain.formats import FORMAT, checked_format, completed, upgraded
from bigtrain.options import Options, Seed, default_kind, inside, kind_of, member_for, members_of
from bigtrain.recipe_errors import COMMAND_LINE, complaint_given_data, complaints
from bigtrain.recipe_yaml import MOST_BYTES, ReadInTwoWays, dump, parse, with_texts_quoted
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.options import TrainOptions
from bigtrain.untrusted import looked_for, read_plain
from bigtrain.wrong_values import nearest_of

AnyOptions = TypeVar("AnyOptions", bound=Options)

MOST_PARENTS = 32
"""Recipes that extend each other in a chain."""
MAY_CHANGE = (
    "run.dir",
    "run.trackers",
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.save_every",
    "train.evaluate_every",
    "train.evaluate_samples",
    "train.alarm_ratio",
    "train.keep",
    "train.profile",
    "data.train",  # contents decide, of which the checkpoint has the fingerprint, and not paths
    "data.validation",
    "data.text.tokenizer",  # its hash is part of the data's fingerprint
    "data.channels",  # its effect is part of the data's fingerprint, and null may mean the number that a run's recipe says
    "data.verify",
    "data.workers",
    "data.remote.",
    "engine.",
    "evaluation.",
    "family.sampling.",
)
"""Prefixes of the keys that a resumed run may change; any other change would change the experiment."""


_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"


class RunOptions(Options):
    """Which run this is."""

    name: str = Field(json_schema_extra={"pattern": _NAME})
    """The run's name, and its folder under runs/. Default: the recipe's file name."""
    dir: str | None = None
    """The run folder; null: runs/NAME."""
    seed: Seed = 0
    """The seed that keys every random draw of the run."""
    trackers: tuple[Literal["tensorboard", "wandb", "trackio", "mlflow"], ...] = ("tensorboard",)
    """What shows the run besides metrics.jsonl: losses, pictures, evaluations and the recipe. tensorboard: RUN/tensorboard/.
    The others are packages (pip install wandb), which know projects, hosts and tokens from their own environment
    variables. A run that is resumed is the same run there, and what a tracker does wrong costs a warning. []: none."""

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, name: str) -> str:
        if not re.fullmatch(_NAME, name):
            raise ValueError("must begin with a letter or a digit and have only letters, digits, '.', '_' and '-'")
        return name

    @classmethod
    def without_ignored(cls, content: Mapping[str, Any]) -> Mapping[str, Any]:
        """Without a tracker that is named again, which was accepted."""
        trackers = content.get("trackers")
        return {**content, "trackers": list(dict.fromkeys(trackers))} if isinstance(trackers, list) else content

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("names a tracker twice; give each once")
        return trackers


class Recipe(Options):
    """A whole experiment. `family` holds the options of the family that `family.kind` names."""

    run: RunOptions
    data: DataOptions
    family: Any
    train: TrainOptions
    ema: EmaOptions = EmaOptions()
    engine: EngineOptions = EngineOptions()
    evaluation: EvaluationOptions = EvaluationOptions()

    @property
    def folder(self) -> Path:
        return Path(self.run.dir) if self.run.dir else Path("runs") / self.run.name

    def to_yaml(self) -> str:
        """The resolved recipe: every key, defaults included; alone it reproduces the run."""
        content = {"format": FORMAT} | self.model_dump(mode="json")
        return dump(content)


def load_recipe(path: str | Path, overrides: Sequence[str] = (), *, of_model: bool = False) -> Recipe:
    """Reads, extends, overrides and checks a recipe. Raises UserError that names the file, the key and the remedy.

    of_model: whether it is of a trained model, which may do without its training data: a data.train that is missing or null
    is NONE then.
    """
    path = Path(path)
    content = _read(path, overrides)
    content = {section: value for section, value in content.items() if value is not None}
    data = content.setdefault("data", {}) if of_model else None
    if isinstance(data, dict) and data.get("train") is None:
        data["train"] = NONE
    run = content.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip("._-") or "run")
    return _checked(content, str(path), overrides)


def made_recipe(content: Mapping[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe that no file holds, overridden and checked; `source`: what messages call it. Raises UserError."""
    model = _model_of(_kind_of_family(content), source)
    return _checked(_merged(content, _given(overrides), model), source, overrides)


@contextmanager
def saying_where(recipe: Recipe, path: str | Path, overrides: Sequence[str]) -> Iterator[None]:
    """What is found wrong about a recipe only once its data are known: a UserError that begins with a key of `recipe` says too
    where it was given, as those of `load_recipe` do, which read it from `path` and `overrides`."""
    try:
        yield
    except RankError:
        raise
    except UserError as error:
        message, *lines = error.printed
        raise UserError(complaint_given_data(message, type(recipe), str(path), _keys_of(overrides)), lines) from None


def stored_format(path: Path) -> int:
    """The format of a run's recipe.yaml. Raises UserError if there is no such format."""
    content = _with_parents(path, ())[0][1]
    number: int = content.get("format", 1)
    checked_format(content, str(path))
    return number


class _Evaluation(Options):
    """The options of an evaluation without a recipe."""

    evaluation: EvaluationOptions = EvaluationOptions()


def evaluation_options(overrides: Sequence[str]) -> EvaluationOptions:
    """The default options with `evaluation.key=value` applied, for images without a recipe. Raises UserError."""
    content = _given(overrides)
    try:
        return _Evaluation.model_validate(content).evaluation
    except ValidationError as error:
        raise UserError(complaints(error, _Evaluation, COMMAND_LINE)) from None


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The differences that a resumed run must not have, such as `train.batch_size: 64 -> 128`. Raises UserError if TorchScript
    files of one name have other bytes."""
    check_same_scripts(old.evaluation.model_dump(), new.evaluation.model_dump())
    return changes(old, new, without=MAY_CHANGE)


def changes(old: Recipe, new: Recipe, without: tuple[str, ...] = ("run.", "train.resume", "train.init")) -> list[str]:
    """The values that differ, such as `train.batch_size: 64 -> 128`, but for keys that begin as `without` says, and paths of
    models."""
    before, after = dict(_flat(old.model_dump(mode="json"))), dict(_flat(new.model_dump(mode="json")))
    paths = {f"family.{key}" for key in new.family.paths_of_models}
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(without) and key not in paths
    ]


def extended(path: str | Path, recipe: Recipe) -> dict[str, Any] | None:
    """For the record of a run: the recipe that the one at `path` extends, and what is otherwise in `recipe`, which is that of
    `path` and of the command line. None if it extends none."""
    parents = _with_parents(Path(path), ())[1:]
    if not parents:
        return None
    parent = os.path.normpath(parents[0][0])
    try:
        return {"recipe": parent, "changed": changes(load_recipe(parent), recipe)}
    except UserError:  # what several recipes share need not be a whole one
        return {"recipe": parent, "changed": []}


def values_from_before(recipe: Recipe, begun: Path) -> dict[str, Any]:
    """Of a run that goes on: the values, by key such as `ema.warmup`, of keys that did not exist when the run began and that
    `recipe` leaves at today's default. `begun`: the run's recipe.yaml."""
    (_, written), *_ = _with_parents(begun, ())
    return dict(_from_before(recipe, load_recipe(begun), written))


def _from_before(options: Options, stored: Options, written: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if type(options) is not type(stored) or not isinstance(written, Mapping):
        return
    for key in type(options).model_fields:
        value, name = getattr(options, key), f"{prefix}{key}"
        if isinstance(value, Options):
            yield from _from_before(value, getattr(stored, key), written.get(key), f"{name}.")
        elif key in options.former_values and not (key in written or key in options.model_fields_set):
            yield from [] if name.startswith(MAY_CHANGE) else [(name, getattr(stored, key))]


def with_values(options: AnyOptions, values: Mapping[str, Any]) -> AnyOptions:
    """Options with other values, by key such as `ema.warmup`."""
    update: dict[str, Any] = {}
    for name, value in values.items():
        key, _, rest = name.partition(".")
        update[key] = with_values(update.get(key, getattr(options, key)), {rest: value}) if rest else value
    return options.model_copy(update=update)


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe merged into those that it extends, and overridden; keys of files that an earlier version wrote are renamed to
    today's."""
    layers = [(str(file), content) for file, content in reversed(_with_parents(path, ()))]
    layers.append((COMMAND_LINE, _given(overrides)))
    kinds = [_kind_of_family(content) for _, content in layers]
    result: dict[str, Any] = {}
    for number, (source, content) in enumerate(layers):
        # The family's kind so far; where none has been given yet, the next one that is.
        given = [kind for kind in [*reversed(kinds[: number + 1]), *kinds[number + 1 :]] if kind is not None]
        model = _model_of(given[0], source) if given else Recipe
        if source != COMMAND_LINE:
            if not checked_format(content, source):
                content = upgraded(content, model, where=source, by_hand=not _is_of_a_run(Path(source)))
            of_a_run = _is_of_a_run(Path(source))
            if of_a_run:
                content = completed(content, model)
            if evaluation := _evaluation_of(content):
                content = {**content, "evaluation": stored_scripts(evaluation, source, resolved=of_a_run)}
        else:
            check_same_scripts(_evaluation_of(result), _evaluation_of(content))
        result = _merged(result, content, model)
    return result


def _evaluation_of(content: Mapping[str, Any]) -> Mapping[str, Any]:
    section = content.get("evaluation")
    return section if isinstance(section, Mapping) else {}


def _kind_of_family(content: Mapping[str, Any]) -> Any:
    family = content.get("family")
    return family.get("kind") if isinstance(family, Mapping) else None


def _is_of_a_run(path: Path) -> bool:
    """Whether a recipe is the resolved one that lies in a run folder, a checkpoint or an export."""
    beside = ("environment.json", "manifest.json", "model_index.json")
    return path.name == "recipe.yaml" and any((path.parent / name).exists() for name in beside)


@lru_cache(maxsize=16)
def _parsed(text: str) -> Any:
    """What a file says; kept, because a sweep reads the same files for each of thousands of runs. Raises ValueError."""
    return parse(text)


def _with_parents(path: Path, children: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """(path, content) of a recipe and of those that it extends, the recipe itself first."""
    real = Path(os.path.realpath(path))  # Path.resolve raises RuntimeError for a link to itself
    if real in children:
        raise UserError(f"{path}: extends itself by way of {children[-1]}; remove one `extends`")
    if len(children) > MOST_PARENTS:
        raise UserError(f"{path}: is the last of more than {MOST_PARENTS} recipes that extend each other; join some")
    try:
        content = _parsed_file(path)
    except OSError as error:
        if (path / "recipe.yaml").is_file():
            raise UserError(f"{path}: is a folder; give the recipe in it ({path / 'recipe.yaml'})") from error
        where = looked_for(path) if isinstance(error, FileNotFoundError) else ""
        remedy = _recipe_meant(path) or "recipes/ holds examples"
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}){where}; {remedy}") from error
    except ValueError as error:
        raise UserError(f"{path}: not a YAML file that can be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections (run, data, family, train, ...)")
    parent = content.pop("extends", None)
    if parent is None:
        return [(path, content)]
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: must be the path of one recipe, relative to this one")
    return [(path, content), *_with_parents(path.parent / parent, (*children, real))]


def _parsed_file(path: Path) -> Any:
    """Raises OSError and ValueError."""
    if "\0" in str(path):
        raise ValueError("its name has the character NUL")
    return copy.deepcopy(_parsed(read_plain(path, MOST_BYTES).decode()))


class _Whole(dict[str, Any]):
    """A mapping that was given as a value: it replaces another instead of changing it."""


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any], annotation: Any) -> dict[str, Any]:
    """`base` with `changes`, mapping by mapping. One that changes its kind replaces that of `base`: the keys of one kind mean
    nothing to another."""
    is_member = any(kind_of(member) is not None for member in members_of(annotation))
    kind = base.get("kind", default_kind(annotation))
    if is_member and kind is not None and changes.get("kind", kind) != kind:
        return dict(changes)
    options = member_for(annotation, {"kind": kind} | dict(changes))
    result = dict(base)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping) and not isinstance(value, _Whole):
            value = _merged(before, value, inside(options or annotation, key))
        result[key] = value
    return result


def _recipe_meant(path: Path) -> str | None:
    """The recipe with a name like that of one that is not there, in its folder or in recipes/."""
    for folder in dict.fromkeys((path.parent, Path("recipes"))):
        names = [file.stem for file in sorted(folder.glob("*.yaml"))]
        if nearest := nearest_of(path.name.removesuffix(".yaml"), names):
            return f"did you mean {folder / nearest}.yaml?"
    return None


def _given(overrides: Sequence[str]) -> dict[str, Any]:
    """What the command line says, as one layer over the recipe, so that the order of a kind and its keys does not matter."""
    content: dict[str, Any] = {}
    for override in overrides:
        _apply(content, override)
    if isinstance(evaluation := content.get("evaluation"), dict):
        evaluation.update(named_scripts(evaluation))
    return content


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or "." not in key or not all(key.split(".")):
        raise UserError(f"command line: {override!r} is not of the form section.key=value, such as train.steps=100")
    try:
        value = parse(text)
    except ReadInTwoWays as error:
        quoted = shlex.quote(f"{key}={with_texts_quoted(text)}")
        raise UserError(
            f"command line: {key}: {error.word} can be read in two ways; write a decimal number, or a text in quotes, around "
            f"which the shell needs others: {quoted}"
        ) from error
    except ValueError as error:
        raise UserError(f"command line: {key}: {text!r} is not a YAML value: {error}") from error
    *sections, last = key.split(".")
    mapping = content
    for section in sections:
        if mapping.get(section) is None:
            mapping[section] = _Whole() if section in mapping else {}
        if not isinstance(mapping[section], dict):
            raise UserError(f"command line: {key}: {section} is a value, not a section")
        mapping = mapping[section]
    mapping[last] = _Whole(value) if isinstance(value, dict) else value


def _checked(content: dict[str, Any], source: str, overrides: Sequence[str]) -> Recipe:
    family = content.get("family")
    model = _model_of(family.get("kind") if isinstance(family, Mapping) else None, source)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise UserError(complaints(error, model, source, _keys_of(overrides))) from None


def _keys_of(overrides: Sequence[str]) -> set[str]:
    return {override.partition("=")[0] for override in overrides}


def _model_of(kind: Any, source: str) -> type[Recipe]:
    """The class of recipes whose family is of this kind."""
    if not isinstance(kind, str):
        raise UserError(f"{source}: family.kind is missing; it names the family to train ({', '.join(family_kinds())})")
    try:
        return _model(find_family(kind).options_class)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


@cache
def _model(family: type[Options]) -> type[Recipe]:
    return create_model("Recipe", __base__=Recipe, family=(family, ...))


# -- the schema -----------------------------------------------------------------------------------------------------


class LenientSchema(GenerateJsonSchema):
    """Nothing is required, since a recipe may extend another: without its kind a mapping may be any member of a union."""

    def field_is_required(self, field: Any, total: bool) -> bool:
        return False

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        return {"anyOf": super().tagged_union_schema(schema)["oneOf"]}


def schema() -> dict[str, Any]:
    """The JSON schema of recipes as people write them, for editors: the sections, and a branch for each kind of family."""
    families = [find_family(kind).options_class for kind in family_kinds()]
    family: Any = Annotated[reduce(or_, families), Field(discriminator="kind")]
    model = create_model("Recipe", __base__=Recipe, family=(family, ...))
    content = described(model.model_json_schema(schema_generator=LenientSchema))
    sections = {
        # A section that is empty has its defaults.
        name: {"description": section["description"], "anyOf": [section, {"type": "null"}]}
        for name, section in content["properties"].items()
    }
    format = {"type": "integer", "minimum": 1, "maximum": FORMAT, "description": "The format of the file."}
    extends = {"type": "string", "description": "The path of a recipe, relative to this one, which this one changes."}
    return content | {"properties": {"extends": extends, "format": format, **sections}}


def described(content: dict[str, Any]) -> dict[str, Any]:
    """A schema of options in which each key has a description: that of its class where it has none of its own, and of a union
    those of its members by kind."""
    classes = content.get("$defs", {})
    for options in (content, *classes.values()):
        for key, field in options.get("properties", {}).items():
            if key == "kind":
                field["description"] = options.get("description", "")
            elif "description" not in field:
                field["description"] = _description_of(field, classes)
    return content


def _description_of(field: Mapping[str, Any], classes: Mapping[str, Any]) -> str:
    members = [classes[name] for name in _referred_to(field)]
    if len(members) == 1:
        return str(members[0].get("description", ""))
    return "\n\n".join(f"{one['properties']['kind']['const']}: {one.get('description', '')}" for one in members)


def _referred_to(field: Mapping[str, Any]) -> list[str]:
    """The names of the options classes that a field may hold."""
    own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
    return [*own, *(name for part in field.get("anyOf", ()) for name in _referred_to(part))]
