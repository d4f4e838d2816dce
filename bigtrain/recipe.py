"""The recipe: a YAML file, checked against the options classes, each of which stands beside the code that it configures.

A recipe is read with YAML's safe loader, may extend another, is overridden from the command line (`train.steps=100`) and is
checked as a whole. The message for an unknown key names the nearest known one; the message for a wrong value names its key.
Imported by inference, plan.py, cli.py and launch/ only.
"""

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, create_model

from bigtrain.data.options import DataOptions
from bigtrain.errors import UserError
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.families.family import family_kinds, find_family
from bigtrain.formats import FORMAT, checked_format, completed, upgraded
from bigtrain.options import Options
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.options import TrainOptions

MAY_CHANGE = (
    "run.dir",
    "train.steps",
    "train.log_every",
    "train.sample_every",
    "train.save_every",
    "train.evaluate_every",
    "train.evaluate_samples",
    "train.alarm_ratio",
    "train.keep",
    "train.profile",
    "data.channels",  # its effect is part of the data's fingerprint, and null may mean the number that a run's recipe says
    "data.workers",
    "data.remote.",
    "engine.",
    "evaluation.",
)
"""Prefixes of the keys that a resumed run may change; any other change would change the experiment."""


class RunOptions(Options):
    """Which run this is."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """The run's name, and its folder under runs/. Default: the recipe's file name."""
    dir: str | None = None
    """The run folder; null: runs/NAME."""
    seed: int = Field(default=0, ge=0)
    """The seed that keys every random draw of the run."""


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
        return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, except that a repeated key is an error; PyYAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        merge = "tag:yaml.org,2002:merge"  # `<<`, whose keys may be repeated to override them
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if key.tag != merge]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads, extends, overrides and checks a recipe. Raises UserError that names the file, the key and the remedy."""
    path = Path(path)
    content = _read(path, overrides)
    for override in overrides:
        _apply(content, override)
    content = {section: value for section, value in content.items() if value is not None}
    run = content.setdefault("run", {})
    if isinstance(run, dict):
        run.setdefault("name", re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip("._-") or "run")
    return _checked(content, str(path), overrides)


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
    content: dict[str, Any] = {}
    for override in overrides:
        _apply(content, override)
    try:
        return _Evaluation.model_validate(content).evaluation
    except ValidationError as error:
        overridden = {override.partition("=")[0] for override in overrides}
        sentences = (_sentence(_Evaluation, item, "command line", overridden) for item in error.errors())
        raise UserError("; ".join(sentences)) from None


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The differences that a resumed run must not have, such as `train.batch_size: 64 -> 128`."""
    before, after = dict(_flat(old.model_dump(mode="json"))), dict(_flat(new.model_dump(mode="json")))
    return [
        f"{key}: {before.get(key)!r} -> {after.get(key)!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(MAY_CHANGE)
    ]


def _flat(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _read(path: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """A recipe merged into those that it extends; keys of files that an earlier version wrote are renamed to today's."""
    files = _with_parents(path, ())
    families = [content.get("family") for _, content in files]
    kinds = [override.partition("=")[2] for override in overrides if override.startswith("family.kind=")][-1:]
    kinds += [family["kind"] for family in families if isinstance(family, Mapping) and "kind" in family]
    result: dict[str, Any] = {}
    for file, content in reversed(files):
        if not checked_format(content, str(file)):
            content = upgraded(content, _model_of(kinds[0], str(file)) if kinds else Recipe, where=str(file))
        if _is_of_a_run(file):
            content = completed(content, _model_of(kinds[0], str(file)) if kinds else Recipe)
        result = _merged(result, content)
    return result


def _is_of_a_run(path: Path) -> bool:
    """Whether a recipe is the resolved one that lies in a run folder or an export."""
    beside = ("environment.json", "model_index.json")
    return path.name == "recipe.yaml" and any((path.parent / name).exists() for name in beside)


def _with_parents(path: Path, children: tuple[Path, ...]) -> list[tuple[Path, dict[str, Any]]]:
    """(path, content) of a recipe and of those that it extends, the recipe itself first."""
    if path.resolve() in children:
        raise UserError(f"{path}: extends itself by way of {children[-1]}; remove one `extends`")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)  # a SafeLoader, see above
    except OSError as error:
        raise UserError(f"{path}: cannot read the recipe ({error.strerror}); recipes/ holds examples") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a YAML file that can be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: a recipe is a mapping of sections (run, data, family, train, ...)")
    parent = content.pop("extends", None)
    if parent is None:
        return [(path, content)]
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: must be the path of one recipe, relative to this one")
    return [(path, content), *_with_parents(path.parent / parent, (*children, path.resolve()))]


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in changes.items():
        both_mappings = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = _merged(result[key], value) if both_mappings else value
    return result


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or "." not in key or not all(key.split(".")):
        raise UserError(f"command line: {override!r} is not of the form section.key=value, such as train.steps=100")
    try:
        value = yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UserError(f"command line: {key}: {text!r} is not a YAML value") from error
    *sections, last = key.split(".")
    mapping = content
    for section in sections:
        inner = {} if mapping.get(section) is None else mapping[section]
        if not isinstance(inner, dict):
            raise UserError(f"command line: {key}: {section} is a value, not a section")
        mapping[section] = mapping = dict(inner)
    mapping[last] = value


def _checked(content: dict[str, Any], source: str, overrides: Sequence[str]) -> Recipe:
    family = content.get("family")
    model = _model_of(family.get("kind") if isinstance(family, Mapping) else None, source)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        overridden = {override.partition("=")[0] for override in overrides}
        raise UserError("; ".join(_sentence(model, item, source, overridden) for item in error.errors())) from None


def _model_of(kind: Any, source: str) -> type[Recipe]:
    """The class of recipes whose family is of this kind."""
    if not isinstance(kind, str):
        raise UserError(f"{source}: family.kind is missing; it names the family to train ({', '.join(family_kinds())})")
    try:
        return create_model("Recipe", __base__=Recipe, family=(find_family(kind).options_class, ...))
    except UserError as error:
        raise UserError(f"{source}: {error}") from None


def _sentence(model: type[BaseModel], error: Any, source: str, overridden: set[str]) -> str:
    location = _in_users_keys(model, error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    field, colon, rest = message.partition(": ")
    if colon and field in getattr(_options_at(model, location), "model_fields", {}):
        location, message = (*location, field), rest  # a validator of the section has named the field itself
    key = ".".join(str(part) for part in location) or "the recipe"
    by_command_line = any(key == override or key.startswith(f"{override}.") for override in overridden)
    if error["type"] == "extra_forbidden":
        by_command_line |= any(override.startswith(f"{key}.") for override in overridden)
    where = "command line" if by_command_line else source
    if error["type"] == "extra_forbidden":
        return f"{where}: {key} is not a key; {_remedy(_options_at(model, error['loc'][:-1]), location)}"
    if error["type"] == "missing":
        return f"{where}: {key} is missing"
    if error["type"] == "union_tag_not_found":
        kinds = ", ".join(map(str, map(_kind, _members(_annotation_at(model, error["loc"])))))
        return f"{where}: {key}.kind is missing; it is one of {kinds}"
    if error["type"] == "union_tag_invalid":
        return f"{where}: {key}.kind: {error['ctx']['tag']!r} is none of {error['ctx']['expected_tags']}"
    if location[-1:] == ("[key]",):
        key, message = ".".join(map(str, location[:-1])), "is no name; a name is letters, digits and underscores"
    given = "" if isinstance(error["input"], Mapping) else f" (given: {error['input']!r})"
    return f"{where}: {key}: {message}{given}"


def _remedy(options: Any, location: Sequence[Any]) -> str:
    """What to do about a key that an options class does not have."""
    last = str(location[-1])
    removed = getattr(options, "removed_keys", {})
    if last in removed:
        return removed[last]
    known = sorted(getattr(options, "model_fields", {}))
    renamed = getattr(options, "renamed_keys", {}).get(last)
    if renamed is not None:
        return f"it is called {'.'.join([*map(str, location[:-1]), renamed])} now"
    near = difflib.get_close_matches(last, known, n=1)
    remedy = f"did you mean {'.'.join([*map(str, location[:-1]), near[0]])}?" if near else "remove it"
    return f"{remedy} (there are: {', '.join(known)})"


def _options_at(model: type[BaseModel], location: Sequence[Any]) -> Any:
    """The options class at a location in pydantic's or the user's keys, or None. Of a union that the location does not choose
    from: the first."""
    return next(iter(_members(_annotation_at(model, location))), None)


def _annotation_at(model: type[BaseModel], location: Sequence[Any]) -> Any:
    annotation: Any = model
    for part in location:
        annotation = _inside(annotation, part)
    return annotation


def _in_users_keys(model: type[BaseModel], location: Sequence[Any]) -> tuple[Any, ...]:
    """pydantic's location of an error without the names of the unions' members, which are no keys."""
    keys: list[Any] = []
    annotation: Any = model
    for part in location:
        if len(_members(annotation)) < 2 or part not in map(_kind, _members(annotation)):
            keys.append(part)
        annotation = _inside(annotation, part)
    return tuple(keys)


def _inside(annotation: Any, part: Any) -> Any:
    """The type of what lies under a part of a location: a key, a name in a mapping, or the member of a union."""
    members = _members(annotation)
    chosen = [member for member in members if len(members) > 1 and _kind(member) == part]
    if chosen:
        return chosen[0]
    fields = [member.model_fields[part] for member in members if part in member.model_fields]
    if fields:
        return fields[0].annotation
    values = [get_args(one)[1] for one in _alternatives(annotation) if get_origin(one) in (dict, Mapping)]
    return values[0] if values else None


def _members(annotation: Any) -> list[type[BaseModel]]:
    """The options classes among which an annotation chooses."""
    return [one for one in _alternatives(annotation) if isinstance(one, type) and issubclass(one, BaseModel)]


def _alternatives(annotation: Any) -> list[Any]:
    if get_origin(annotation) is Annotated:
        return _alternatives(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return [one for part in get_args(annotation) for one in _alternatives(part)]
    return [annotation]


def _kind(member: type[BaseModel]) -> Any:
    """The value of `kind` that chooses a member of a union."""
    kind = member.model_fields.get("kind")
    return None if kind is None else next(iter(get_args(kind.annotation)), None)
