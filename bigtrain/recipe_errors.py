"""Says what is wrong about options, in the keys that the user wrote, with the remedy."""

import difflib
from collections.abc import Mapping, Sequence, Set
from typing import Any

from pydantic import BaseModel, ValidationError

from bigtrain.options import inside, kind_of, members_of

COMMAND_LINE = "command line"
"""The source of overrides."""
_PLAIN = [("int",), ("float",), ("str",), ("bool",)]
"""The last part of pydantic's location for a value that may be of several types."""
_WRONG_TYPE = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
}


def complaints(error: ValidationError, model: type[BaseModel], source: str, overridden: Set[str] = frozenset()) -> str:
    """A sentence for each error: the source, the key, what is wrong and the remedy. `model`: the class of the whole; `source`:
    the file; `overridden`: the keys that the command line gave."""
    return "; ".join(_sentence(model, item, source, overridden) for item in _own(error.errors()))


def _own(errors: Sequence[Any]) -> list[Any]:
    """Without those of lists that are too short because pydantic left out an element with an error of its own, and with one for
    a value that may be of several plain types."""
    first_of: dict[Any, Any] = {}
    for error in errors:
        first_of.setdefault(error["loc"][:-1] if error["loc"][-1:] in _PLAIN else error["loc"], error)
    errors = list(first_of.values())
    short = [error["loc"] for error in errors if error["type"] == "too_short"]
    explained = {loc for loc in short if any(loc != e["loc"] and e["loc"][: len(loc)] == loc for e in errors)}
    return [error for error in errors if error["type"] != "too_short" or error["loc"] not in explained]


def _sentence(model: type[BaseModel], error: Any, source: str, overridden: Set[str]) -> str:
    location, message = _in_users_keys(model, error["loc"]), error["msg"].removeprefix("Value error, ")
    field, colon, rest = message.partition(": ")
    if colon and field in getattr(_options_at(model, error["loc"]), "model_fields", {}):
        location, message = (*location, field), rest  # a validator of the section has named the field itself
    if error["type"].startswith("union_tag") and isinstance(error["input"], Mapping):
        location = (*location, "kind")
    key = ".".join(map(str, location)) or "the recipe"
    where = COMMAND_LINE if _is_given(key, error, overridden) else source
    return f"{where}: {_complaint(model, error, key, message)}"


def _is_given(key: str, error: Any, overridden: Set[str]) -> bool:
    """Whether the command line gave what is wrong: the key, what it lies in, or keys of what should be no mapping."""
    if any(key == given or key.startswith(f"{given}.") for given in overridden):
        return True
    is_no_section = error["type"] != "value_error" and isinstance(error["input"], Mapping)
    is_no_section |= error["type"] == "extra_forbidden"
    return is_no_section and any(given.startswith(f"{key}.") for given in overridden)


def _complaint(model: type[BaseModel], error: Any, key: str, message: str) -> str:
    """What is wrong about a key, and the remedy."""
    given = "" if isinstance(error["input"], Mapping) else f" (given: {error['input']!r})"
    if error["type"] in _WRONG_TYPE:
        return f"{key}: must be {_WRONG_TYPE[error['type']]}{given}"
    match error["type"]:
        case "extra_forbidden":
            return _unknown_key(model, error["loc"], key)
        case "missing":
            return f"{key} is missing"
        case "union_tag_not_found" | "union_tag_invalid" | "model_attributes_type":
            kinds = [kind_of(member) for member in members_of(_annotation_at(model, error["loc"]))]
            return f"{key}{_wrong_kind(error['input'], kinds)}"
        case "model_type":
            return f"{key}: must be a mapping of keys{given}"
    if key.endswith(".[key]"):
        return f"{key.removesuffix('.[key]')}: is no name; a name is letters, digits and underscores{given}"
    return f"{key}: {message}{given}"


def _wrong_kind(given: Any, kinds: Sequence[str]) -> str:
    """What is wrong about the kind of a mapping, or about what should be a mapping with a kind."""
    all_kinds = ", ".join(kinds)
    if not isinstance(given, Mapping):
        such_as = f"such as {{kind: {_nearest(str(given), kinds) or kinds[0]}}}"
        return f": must be a mapping with a kind, {such_as} (given: {given!r}; there are: {all_kinds})"
    if "kind" not in given:
        return f" is missing; it is one of {all_kinds}"
    nearest = _nearest(str(given["kind"]), kinds)
    meant = f"; did you mean {nearest}?" if nearest else ""
    return f": {given['kind']!r} is no kind{meant} (there are: {all_kinds})"


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
    if nearest := _nearest(last, known):
        remedy = f"did you mean {_beside(key, nearest)}?"
    elif nearest := _nearest(last, list(of_kinds)):
        remedy = f"did you mean {nearest}, which goes with kind: {of_kinds[nearest]}?"
    else:
        remedy = "remove it"
    return f"{beginning}; {remedy} (there are: {', '.join(known)})"


def _kinds_by_key(union: Sequence[type[BaseModel]]) -> dict[str, str]:
    """By key, the kinds of the members that have it."""
    keys = {name for member in union for name in member.model_fields}
    return {key: " or ".join(kind_of(member) for member in union if key in member.model_fields) for key in keys}


def _nearest(word: str, words: Sequence[str]) -> str | None:
    """The word of `words` that is most like another, if one is."""
    return next(iter(difflib.get_close_matches(word, words, n=1)), None)


def _beside(key: str, name: str) -> str:
    """Another key of the same section."""
    section, dot, _ = key.rpartition(".")
    return f"{section}{dot}{name}"


# -- where an error is ----------------------------------------------------------------------------------------------


def _options_at(model: type[BaseModel], location: Sequence[Any]) -> Any:
    """The options class at a location in pydantic's keys, or None. Of a union that the location does not choose from: the
    first."""
    return next(iter(members_of(_annotation_at(model, location))), None)


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
        is_type = (part,) in _PLAIN and part == location[-1]
        if not is_type and (len(members) < 2 or part not in map(kind_of, members)):
            keys.append(part)
        annotation = inside(annotation, part)
    return tuple(keys)
