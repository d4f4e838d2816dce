"""Converts recipes and descriptions that earlier versions wrote to the current format.

Stored files have a key `format`: a run's recipe.yaml, an export's provenance and configuration, the description of the data in
a checkpoint. A file without it has format 1, which commit a3de763 was the last to write. Renamed keys are listed in their
options class (`Options.renamed_keys`, `renamed_values`, `former_meanings`, `removed_keys`), so that no family is named here.
"""

import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from bigtrain.errors import UserError
from bigtrain.options import Options

FORMAT = 2
"""The current format. Increase it when a key or value changes name or meaning, and convert the previous format here."""
PHILOX_FORMAT = 2
"""From this format on, noise and labels are drawn as `bigtrain.randomness` draws them now."""


def upgraded(content: Any, options: type[BaseModel], *, where: str) -> Any:
    """The content of a JSON or YAML file for `options`, with current keys and values; if not a mapping, unchanged.

    `where`: the file, for messages. Raises UserError for a key that was removed, unless its value had turned it off.
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
        if key in content and key != old:
            raise UserError(f"{where}: {old} is called {key} now, and both are given; leave {old} out")
        value = _in_todays_words(value, key, options)
        field = options.model_fields.get(key)
        result[key] = value if field is None else _within(value, field.annotation, where)
    return result


def completed(content: Any, options: type[BaseModel]) -> Any:
    """The content of a resolved recipe, which names every key that there was, with the keys that were added since
    (`Options.former_values`), without those that were removed and said nothing, and with today's values; if not a mapping,
    unchanged."""
    if not isinstance(content, Mapping):
        return content
    removed = [key for key in getattr(options, "removed_keys", {}) if not content.get(key)]
    result = {key: _in_todays_words(value, key, options) for key, value in content.items() if key not in removed}
    result = {**getattr(options, "former_values", {}), **result}
    for key, field in options.model_fields.items():
        inner = next((part for part in _parts(field.annotation) if _is_options(part)), None)
        if key in result and inner is not None:
            result[key] = completed(result[key], inner)
    return result


def _is_options(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def checked_format(content: dict[str, Any], where: str) -> bool:
    """Removes `format` from a file's content; returns whether it is the current one. Raises UserError if it is newer."""
    number = content.pop("format", 1)
    if type(number) is int and number > FORMAT:
        raise UserError(f"{where}: format {number} was written by a newer bigtrain ({FORMAT} is this one's); update it")
    if type(number) is not int or number < 1:
        raise UserError(f"{where}: format {number!r} is not a format; write format: {FORMAT}, or leave it out")
    return number == FORMAT


def _in_todays_words(value: Any, key: str, options: type[BaseModel]) -> Any:
    """The value of a key of a stored file, with words that have another name or meaning today replaced."""
    if not issubclass(options, Options):
        return value
    return _renamed(value, {**options.renamed_values.get(key, {}), **options.former_meanings.get(key, {})})


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


def _within(value: Any, annotation: Any, where: str) -> Any:
    """The converted value of a field that may be an options class, or a mapping of them by name."""
    for part in _parts(annotation):
        if _is_options(part):
            return upgraded(value, part, where=where)
        if typing.get_origin(part) is dict and isinstance(value, Mapping):
            inner = typing.get_args(part)[1]
            return {name: _within(item, inner, where) for name, item in value.items()}
    return value


def _parts(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        yield from typing.get_args(annotation)
    else:
        yield annotation
