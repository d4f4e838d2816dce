"""Says what is wrong about options, in the keys that the user wrote, with the remedy."""

import re
from collections.abc import Mapping, Sequence, Set
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from bigtrain.options import alternatives, inside, kind_of, members_of
from bigtrain.wrong_values import as_given, did_you_mean, nearest_of, no_such_words, rule, shown

COMMAND_LINE = "command line"
"""The source of overrides."""
_PLAIN = [("int",), ("float",), ("str",), ("bool",)]
"""The last part of pydantic's location for a value that may be of several types."""


def complaints(error: ValidationError, model: type[BaseModel], source: str, overridden: Set[str] = frozenset()) -> str:
    """A sentence for each error: the source, the key, what is wrong and the remedy. `model`: the class of the whole; `source`:
    the file; `overridden`: the keys that the command line gave."""
    by_list: dict[Any, list[Any]] = {}
    for item in _own(error.errors()):
        by_list.setdefault((_without_positions(item["loc"]), item["type"]), []).append(item)
    return "; ".join(_sentence(model, items, source, overridden) for items in by_list.values())


def _own(errors: Sequence[Any]) -> list[Any]:
    """Without those of lists that are too short because pydantic left out an element with an error of its own, and with one for
    a value that may be of several plain types."""
    by_place: dict[Any, list[Any]] = {}
    for error in errors:
        location = error["loc"]
        by_place.setdefault(location[:-1] if location[-1:] in _PLAIN else location, []).append(error)
    errors = [_of_one_value(location, alike) for location, alike in by_place.items()]
    short = [error["loc"] for error in errors if error["type"] == "too_short"]
    explained = {loc for loc in short if any(loc != e["loc"] and e["loc"][: len(loc)] == loc for e in errors)}
    return [error for error in errors if error["type"] != "too_short" or error["loc"] not in explained]


def _of_one_value(location: Any, errors: Sequence[Any]) -> Any:
    """The error of a value from those of the plain types that it may have."""
    first = {**errors[0], "loc": location}
    types = [rule(error).removeprefix("must be ") for error in errors if error["type"].endswith("_type")]
    return {**first, "type": "value_error", "msg": f"must be {' or '.join(types)}"} if len(types) > 1 else first


def _without_positions(location: Sequence[Any]) -> tuple[Any, ...]:
    """A location without the positions in a list that it ends with: what users write and look for is the list."""
    parts = tuple(location)
    while parts and isinstance(parts[-1], int):
        parts = parts[:-1]
    return parts


def _sentence(model: type[BaseModel], errors: Sequence[Any], source: str, overridden: Set[str]) -> str:
    """`errors`: one, or those of one kind in one list."""
    error = errors[0]
    location, message = _in_users_keys(model, error["loc"]), rule(error)
    named = re.match(r"([a-z_]+(?:\.[a-z_]+)*)(?:: | (?=is missing))", message)
    if error["type"] == "value_error" and named:  # by a validator of the section, from there or in full
        own, field = tuple(map(str, location)), tuple(named[1].split("."))
        field = field if field[: len(own)] == own else (*own, *field)
        if _is_field(model, field):
            location, message = field, message[named.end() :]
    if error["type"].startswith("union_tag") and isinstance(error["input"], Mapping):
        location = (*location, "kind")
    key = ".".join(map(str, location)) or "the recipe"
    section = ".".join(map(str, _in_users_keys(model, error["loc"])))
    if _gave_keys_of_no_section(key, error, overridden):
        where = COMMAND_LINE
    else:
        where = _where_given(key, [section] if error["type"] == "value_error" else [], source, overridden)
    return f"{where}: {_complaint(model, errors, key, message)}"


def _gave_keys_of_no_section(key: str, error: Any, overridden: Set[str]) -> bool:
    """Whether the command line gave keys of what should be no mapping."""
    is_no_section = error["type"] != "value_error" and isinstance(error["input"], Mapping)
    is_no_section |= error["type"] == "extra_forbidden"
    return is_no_section and any(given.startswith(f"{key}.") for given in overridden)


def _where_given(key: str, sections: Sequence[str], source: str, overridden: Set[str]) -> str:
    """Where a key, or what it lies in, was given. `sections`: those of which keys disagree, some of them perhaps given by the
    command line."""
    if any(key == given or key.startswith(f"{given}.") for given in overridden):
        return COMMAND_LINE
    if any(given.startswith(f"{section}.") for given in overridden for section in sections):
        return f"{source} and {COMMAND_LINE}"
    return source


def complaint_given_data(message: str, model: type[BaseModel], source: str, overridden: Set[str]) -> str:
    """The message of an error that is found once the data are known: one that begins with a key as one of `complaints`, any
    other, such as one that names a file already, as it is."""
    named = re.match(r"([a-z_]+)(?:\.[a-z0-9_]+)*(?=:? )", message)
    if named is None or not _is_field(model, tuple(named[0].split("."))[:2]):
        return message
    fitted = ["family", "data"]  # to each other
    sections = fitted if named[1] in fitted else [named[1]]
    return f"{_where_given(named[0], sections, source, overridden)}: {message}"


def _complaint(model: type[BaseModel], errors: Sequence[Any], key: str, message: str) -> str:
    """What is wrong about a key, and the remedy."""
    error = errors[0]
    if wanted := _fixed_length(model, error):
        return f"{key}: {wanted}{as_given(error['input'])}"
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(model, error["loc"], key)
        case "missing":
            return f"{key} is missing"
        case "union_tag_not_found" | "union_tag_invalid" | "model_attributes_type":
            kinds = [kind_of(member) for member in members_of(_annotation_at(model, error["loc"]))]
            return f"{key}{_wrong_kind(error['input'], kinds)}"
        case "literal_error":
            return f"{key}: {no_such_words(errors)}"
    if key.endswith(".[key]"):
        return f"{key.removesuffix('.[key]')}: is no name; a name is letters, digits and underscores{as_given(error['input'])}"
    each = "each " if isinstance(error["loc"][-1], int) and message.startswith("must ") else ""
    return f"{key}: {each}{message}{_meaning_of_null(model, error)}{as_given(error['input'])}"


def _fixed_length(model: type[BaseModel], error: Any) -> str | None:
    """What a list of a fixed length must be, if what was given is no list, or one of another length."""
    location = _without_positions(error["loc"])
    if error["type"] not in ("tuple_type", "too_long", "missing") or (
        error["type"] == "missing" and location == error["loc"]
    ):
        return None
    tuples = [one for one in alternatives(_annotation_at(model, location)) if get_origin(one) is tuple]
    lengths = [len(get_args(one)) for one in tuples if Ellipsis not in get_args(one)]
    if not lengths:
        return None
    field = _options_at(model, location[:-1]).model_fields[location[-1]]
    such_as = f", such as {list(field.default)}" if isinstance(field.default, tuple) else ""
    return f"must be a list of {lengths[0]} elements{such_as}"


def _meaning_of_null(model: type[BaseModel], error: Any) -> str:
    """What null means for a key, by its docstring, where a number is wrong: 0 or a word may have been meant to turn it off."""
    if error["type"] not in ("greater_than", "greater_than_equal", "int_type", "float_type"):
        return ""
    location = error["loc"]
    field = getattr(_options_at(model, location[:-1]), "model_fields", {}).get(location[-1])
    if field is None or NoneType not in alternatives(field.annotation):
        return ""
    meaning = re.search(r"\bnull: (.+?)(?=[;(]|\.\s|\.?$)", " ".join((field.description or "").split()))
    return f"; null: {meaning[1].strip()}" if meaning else ""


def _wrong_kind(value: Any, kinds: Sequence[str]) -> str:
    """What is wrong about the kind of a mapping, or about what should be a mapping with a kind."""
    all_kinds = ", ".join(kinds)
    if not isinstance(value, Mapping):
        such_as = f"such as {{kind: {nearest_of(str(value), kinds) or kinds[0]}}}"
        return f": must be a mapping with a kind, {such_as} (given: {shown(value)}; there are: {all_kinds})"
    if "kind" not in value:
        return f" is missing; it is one of {all_kinds}"
    return f": {shown(value['kind'])} is no kind{did_you_mean([value['kind']], kinds)} (there are: {all_kinds})"


def _unknown_key(model: type[BaseModel], location: Sequence[Any], key: str) -> str:
    """That a key is none of an options class, or of the chosen member of a union, and what to do about it."""
    options, last = _options_at(model, location[:-1]), str(location[-1])
    union = members_of(_annotation_at(model, location[:-2])) if len(location) > 1 else []
    is_member = len(union) > 1 and options in union
    beginning = f"{key} is not a key" + (f" of kind: {kind_of(options)}" if is_member else "")
    if last in getattr(options, "removed_keys", {}):
        return f"{beginning}; {options.removed_keys[last]}"
    if last in getattr(options, "renamed_keys", {}):
        return f"{beginning}; it is called {_beside(key, options.renamed_keys[last])} now"
    of_kinds = _kinds_by_key(union) if is_member else {}
    if last in of_kinds:
        return f"{beginning}; {last} goes with kind: {of_kinds[last]}"
    known = sorted(getattr(options, "model_fields", {}))
    if nearest := nearest_of(last, known):
        remedy = f"did you mean {_beside(key, nearest)}?"
    elif nearest := nearest_of(last, list(of_kinds)):
        remedy = f"did you mean {nearest}, which goes with kind: {of_kinds[nearest]}?"
    else:
        remedy = "remove it"
    return f"{beginning}; {remedy} (there are: {', '.join(known)})"


def _kinds_by_key(union: Sequence[type[BaseModel]]) -> dict[str, str]:
    """By key, the kinds of the members that have it."""
    keys = {name for member in union for name in member.model_fields}
    return {key: " or ".join(kind_of(member) for member in union if key in member.model_fields) for key in keys}


def _beside(key: str, name: str) -> str:
    """Another key of the same section."""
    section, dot, _ = key.rpartition(".")
    return f"{section}{dot}{name}"


# -- where an error is ----------------------------------------------------------------------------------------------


def _options_at(model: type[BaseModel], location: Sequence[Any]) -> Any:
    """The options class at a location in pydantic's keys, or None. Of a union that the location does not choose from: the
    first."""
    return next(iter(members_of(_annotation_at(model, location))), None)


def _is_field(model: type[BaseModel], location: Sequence[Any]) -> bool:
    return any(location[-1] in member.model_fields for member in members_of(_annotation_at(model, location[:-1])))


def _annotation_at(model: type[BaseModel], location: Sequence[Any]) -> Any:
    annotation: Any = model
    for part in location:
        annotation = inside(annotation, part)
    return annotation


def _in_users_keys(model: type[BaseModel], location: Sequence[Any]) -> tuple[Any, ...]:
    """pydantic's location of an error without the names of the unions' members, which are no keys."""
    keys: list[Any] = []
    annotation: Any = model
    for part in location:
        members = members_of(annotation)
        if len(members) < 2 or part not in map(kind_of, members):
            keys.append(part)
        annotation = inside(annotation, part)
    return _without_positions(keys)
