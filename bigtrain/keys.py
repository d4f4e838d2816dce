"""What the keys of a section of a recipe may be, as a text for people: types, bounds, defaults and docstrings.

`launch/train.py RECIPE --keys SECTION` prints it. Types and descriptions are those of the JSON schema, so there is one truth.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from bigtrain.errors import UserError
from bigtrain.options import Options, kind_of, members_of, values_of
from bigtrain.recipe import LenientSchema, Recipe, described
from bigtrain.wrong_values import nearest_of

_WIDTH = 80
"""Columns of the text."""


class _Place(NamedTuple):
    """A key of a recipe, what its value may be, and what the recipe says, None where it says nothing."""

    key: str
    owner: type[BaseModel] | None
    """The options class of which it is a key; None of a name in a mapping."""
    annotation: Any
    value: Any


def keys_of(recipe: Recipe, section: str) -> str:
    """The keys of a section such as `family.generator`, of all its kinds, the recipe's first; or one key that is no section.

    Raises UserError if there is no such section.
    """
    place = _Place("", None, type(recipe), recipe)
    for part in section.split("."):
        place = _within(place, part)
    values = values_of(place.annotation)
    if not members_of(place.annotation) and values is not None and members_of(values):
        place = _Place(f"{place.key}.NAME", None, values, None)
    members = members_of(place.annotation)
    if not members:
        assert place.owner is not None
        return "\n".join(_lines(place.owner, place.key.rpartition(".")[2], place.key, place.value))
    return "\n".join(line for member in _own_first(members, place.value) for line in _section(place, member))


def _within(place: _Place, part: str) -> _Place:
    key = f"{place.key}.{part}".lstrip(".")
    members = _own_first(members_of(place.annotation), place.value)
    for member in members:
        if part in member.model_fields:
            field = member.model_fields[part]
            value = getattr(place.value, part) if isinstance(place.value, member) else field.default
            return _Place(key, member, field.annotation, value)
    values = values_of(place.annotation)
    if not members and values is not None:
        return _Place(key, None, values, (place.value or {}).get(part) if isinstance(place.value, Mapping) else None)
    known = list(dict.fromkeys(name for member in members for name in member.model_fields))
    where = place.key or "a recipe"
    if not known:
        raise UserError(f"--keys: {where} is a value and has no keys; give {where}")
    nearest = nearest_of(part, known)
    meant = f"; did you mean {place.key}.{nearest}?".replace(" .", " ") if nearest else ""
    raise UserError(f"--keys: {where} has no key {part!r}{meant} (there are: {', '.join(known)})")


def _own_first(members: list[type[BaseModel]], value: Any) -> list[type[BaseModel]]:
    """The options classes of a union, that of the recipe's value first."""
    return sorted(members, key=lambda member: not isinstance(value, member))


def _section(place: _Place, member: type[BaseModel]) -> Iterator[str]:
    kind = kind_of(member)
    yield f"{place.key}, kind: {kind}" if kind is not None else place.key
    yield from _indented(_schema(member).get("description", ""), "  ")
    yield ""
    for name in member.model_fields:
        if name != "kind":
            value = getattr(place.value, name) if isinstance(place.value, member) else None
            yield from _lines(member, name, f"{place.key}.{name}", value)
            yield ""


def _lines(owner: type[BaseModel], name: str, key: str, value: Any) -> Iterator[str]:
    """A key, its type, its default, the recipe's value where that is another, and the docstring."""
    schema = _schema(owner)
    described_as, field = schema["properties"][name], owner.model_fields[name]
    default = field.get_default(call_default_factory=True)
    facts = [in_words(described_as, schema.get("$defs", {}))]
    if not isinstance(default, Options) or kind_of(type(default)) is not None:
        facts.append("no default" if field.is_required() else f"default: {_shown(default)}")
    if value is not None and value != default and not isinstance(value, Options):
        facts.append(f"here: {_shown(value)}")
    yield key
    yield from _indented("; ".join(facts), "    ")
    yield from _indented(described_as["description"], "    ")


def _indented(text: str, by: str) -> list[str]:
    lines = [textwrap.wrap(line, _WIDTH, initial_indent=by, subsequent_indent=by) for line in text.split("\n\n")]
    return [line for part in lines for line in part]


def _schema(options: type[BaseModel]) -> dict[str, Any]:
    return described(options.model_json_schema(schema_generator=LenientSchema))


def _shown(value: Any) -> str:
    """A value as recipes write it; of the options of a union their kind."""
    if isinstance(value, Options):
        return f"kind: {kind_of(type(value))}"
    return value if isinstance(value, str) else json.dumps(value, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else str(value)


# -- types in words -------------------------------------------------------------------------------------------------

_UNTOLD = 2.0**53
"""A bound as high as this says nothing to a person."""
_WORDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "a text",
    "null": "null",
}


def in_words(schema: Mapping[str, Any], classes: Mapping[str, Any]) -> str:
    """What a JSON schema allows, such as `a whole number from 1 to 1000, or null`."""
    if "const" in schema:
        return json.dumps(schema["const"]).strip('"')
    if "enum" in schema:
        return " | ".join(json.dumps(word).strip('"') for word in schema["enum"])
    if "anyOf" in schema:
        return _one_of(schema["anyOf"], classes)
    if "$ref" in schema:
        return "keys of its own"
    types = schema.get("type")
    if isinstance(types, list):
        return _one_of([{**schema, "type": one} for one in types], classes)
    if types == "array":
        return _list(schema, classes)
    if types == "object":
        inner = schema.get("additionalProperties")
        return f"by name, {in_words(inner, classes)}" if isinstance(inner, dict) and inner else "a mapping"
    return _WORDS.get(str(types), "any value") + _bounds(schema)


def _one_of(parts: list[Any], classes: Mapping[str, Any]) -> str:
    names = [part["$ref"].rpartition("/")[2] for part in parts if "$ref" in part]
    kinds = [classes[name]["properties"].get("kind", {}).get("const") for name in names]
    words = [f"kind: {' | '.join(kinds)}"] if kinds and None not in kinds else ["keys of its own"] * bool(names)
    words += [in_words(part, classes) for part in parts if "$ref" not in part]
    return ", or ".join(dict.fromkeys(words))


def _list(schema: Mapping[str, Any], classes: Mapping[str, Any]) -> str:
    if "prefixItems" in schema:
        return f"a list [{', '.join(in_words(item, classes) for item in schema['prefixItems'])}]"
    counts = [schema.get("minItems"), schema.get("maxItems")]
    many = f" of {counts[0]}" if counts[0] is not None and counts[0] == counts[1] else ""
    items = schema.get("items")
    return f"a list{many}, each {in_words(items, classes)}" if items else f"a list{many}"


def _bounds(schema: Mapping[str, Any]) -> str:
    lower, upper = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if lower is not None and upper is not None:
        return f" from {_number(lower)} to {_number(upper)}"
    words = [("of at least", lower), ("above", above), ("of at most", upper), ("below", below)]
    return "".join(f" {word} {_number(bound)}" for word, bound in words if bound is not None and bound < _UNTOLD)


def _number(bound: float) -> str:
    """As recipes write it: 1e9 instead of 1e+09."""
    mantissa, e, exponent = f"{bound:g}".partition("e")
    return f"{mantissa}{e}{int(exponent)}" if e else mantissa
