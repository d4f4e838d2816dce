"""Converts recipes and descriptions that earlier versions wrote to the current format.

Stored files have a key `format`: a run's recipe.yaml, an export's provenance and configuration, the description of the data in
a checkpoint. A file without it has format 1, which commit a3de763 was the last to write. What changed since is said by the
options class that it belongs to (`Options.renamed_keys`, `renamed_values`, `former_meanings`, `removed_keys`, `from_earlier`,
`without_ignored`),
so that no family is named here.
"""

from collections.abc import Callable, Mapping
from typing import Any

from pydantic import BaseModel

from bigtrain.errors import UserError
from bigtrain.options import Options, member_for, values_of

FORMAT = 2
"""The current format. Increase it when a key or value changes name or meaning, and convert the previous format here."""
PHILOX_FORMAT = 2
"""From this format on, noise and labels are drawn as `bigtrain.randomness` draws them now."""


def upgraded(content: Any, options: type[BaseModel], *, where: str, by_hand: bool = False) -> Any:
    """The content of a JSON or YAML file for `options`, with current keys and values; if not a mapping, unchanged.

    `where`: the file, for messages; `by_hand`: a person wrote it, who is told of what would be ignored. Raises UserError for a
    key that was removed, unless its value had turned it off.
    """
    if not isinstance(content, Mapping):
        return content
    known = options if issubclass(options, Options) else Options
    content = known.from_earlier(content)
    content = content if by_hand else known.without_ignored(content)
    result: dict[str, Any] = {}
    for old, value in content.items():
        if old in known.removed_keys:
            if value:
                raise UserError(f"{where}: {old}: {known.removed_keys[old]}")
            continue
        key = known.renamed_keys.get(old, old)
        if key in content and key != old:
            raise UserError(f"{where}: {old} is called {key} now, and both are given; leave {old} out")
        result[key] = _in_todays_words(value, key, known)
    return _with_sections(
        result, options, lambda section, member: upgraded(section, member, where=where, by_hand=by_hand)
    )


def completed(content: Any, options: type[BaseModel]) -> Any:
    """The content of a resolved recipe, which names every key that there was, with the keys that were added since
    (`Options.former_values`), without those that were removed and said nothing, and with today's keys and values; if not a
    mapping, unchanged."""
    if not isinstance(content, Mapping):
        return content
    known = options if issubclass(options, Options) else Options
    content = known.without_ignored(known.from_earlier(content))
    removed = [key for key in known.removed_keys if not content.get(key)]
    current = {known.renamed_keys.get(key, key): value for key, value in content.items() if key not in removed}
    result = {key: _in_todays_words(value, key, known) for key, value in current.items()}
    return _with_sections({**known.former_values, **result}, options, completed)


def checked_format(content: dict[str, Any], where: str) -> bool:
    """Removes `format` from a file's content; returns whether it is the current one. Raises UserError if it is newer."""
    number = content.pop("format", 1)
    if type(number) is int and number > FORMAT:
        raise UserError(f"{where}: format {number} was written by a newer bigtrain ({FORMAT} is this one's); update it")
    if type(number) is not int or number < 1:
        raise UserError(f"{where}: format {number!r} is not a format; write format: {FORMAT}, or leave it out")
    return number == FORMAT


def _in_todays_words(value: Any, key: str, options: type[Options]) -> Any:
    """The value of a key of a stored file, with words that have another name or meaning today replaced."""
    return _renamed(value, {**options.renamed_values.get(key, {}), **options.former_meanings.get(key, {})})


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, list | tuple):
        return [_renamed(item, names) for item in value]
    return names.get(value, value) if isinstance(value, str) else value


Convert = Callable[[Any, type[BaseModel]], Any]
"""Of a section and its options class: the converted section."""


def _with_sections(content: dict[str, Any], options: type[BaseModel], convert: Convert) -> dict[str, Any]:
    """`content` with each section inside it converted, by its own options class."""
    fields = options.model_fields
    return {
        key: _within(value, fields[key].annotation, convert) if key in fields else value
        for key, value in content.items()
    }


def _within(value: Any, annotation: Any, convert: Convert) -> Any:
    """The converted value of a field: an options class, a member of a union, or a mapping of them by name."""
    if not isinstance(value, Mapping):
        return value
    member = member_for(annotation, value)
    if member is not None:
        return convert(value, member)
    values = values_of(annotation)
    return value if values is None else {name: _within(item, values, convert) for name, item in value.items()}
