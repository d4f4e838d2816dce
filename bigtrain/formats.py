"""Recipes and descriptions as earlier versions wrote them, turned into today's.

Whatever is stored carries `format`: a run's recipe.yaml, an export's provenance and configuration, the description of the data
in a checkpoint. Without it the file is of format 1. What was renamed stands beside the options class that has it
(`Options.renamed_keys`, `renamed_values`, `removed_keys`), so that no family is named here.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from bigtrain.errors import UserError
from bigtrain.options import Options

FORMAT = 2
"""Raise it when a key or a value changes its name or its meaning, and read the one before here."""


def upgraded(content: Any, options: type[BaseModel], *, where: str) -> Any:
    """What JSON or YAML says of an options class, in today's keys and values; other content than a mapping as it is.

    `where`: the file, for messages. Raises UserError for a key that was removed, unless its value switched it off.
    """
    if not isinstance(content, Mapping):
        return content
    known: type[Options] | None = options if issubclass(options, Options) else None
    result: dict[str, Any] = {}
    for old, value in content.items():
        if known is not None and old in known.removed_keys:
            if value:
                raise UserError(f"{where}: {old}: {known.removed_keys[old]}")
            continue
        key = known.renamed_keys.get(old, old) if known is not None else old
        if known is not None and key in known.renamed_values:
            value = _renamed(value, known.renamed_values[key])
        field = options.model_fields.get(key)
        result[key] = value if field is None else _within(value, field.annotation, where)
    return result


def checked_format(content: dict[str, Any], where: str) -> bool:
    """Takes `format` out of a file's content; whether it is today's. Raises UserError for one that is newer."""
    found = content.pop("format", 1)
    if found not in range(1, FORMAT + 1):
        raise UserError(f"{where}: format {found!r} is not known, {FORMAT} is the newest; update bigtrain to read it")
    return found == FORMAT


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        return [_renamed(each, names) for each in value]
    return names.get(value, value) if isinstance(value, str) else value


def _within(value: Any, annotation: Any, where: str) -> Any:
    """The value of a field, whose options class may stand in it, or in a mapping by name."""
    for each in _parts(annotation):
        if isinstance(each, type) and issubclass(each, BaseModel):
            return upgraded(value, each, where=where)
        if typing.get_origin(each) is dict and isinstance(value, Mapping):
            inner = typing.get_args(each)[1]
            return {name: _within(one, inner, where) for name, one in value.items()}
    return value


def _parts(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        yield from typing.get_args(annotation)
    else:
        yield annotation
