"""What is wrong about one value of options, and the nearest right one, in plain words instead of pydantic's."""

import ast
import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from bigtrain.recipe_yaml import parse

_SENTENCES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "model_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "mapping_type": "must be a mapping of keys",
    "greater_than": "must be greater than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} elements",
    "too_long": "must have at most {max_length} elements",
    "missing": "is missing",
}
"""By pydantic's name of an error; {names} are those of its context."""


def what_is_wrong(error: Mapping[str, Any]) -> str:
    """A half-sentence about one of a ValidationError's errors, such as `must be at least 1 (given: 0)`."""
    if error["type"] == "literal_error":
        return no_such_words([error])
    return f"{rule(error)}{as_given(error['input'])}"


def rule(error: Mapping[str, Any]) -> str:
    """What the value of an error must be."""
    sentence = _SENTENCES.get(error["type"])
    if sentence is None:
        return str(error["msg"]).removeprefix("Value error, ")
    if error["type"] in ("tuple_type", "list_type") and isinstance(error["input"], str | int | float):
        return f"{sentence}, such as [{_in_a_list(error['input'])}]"
    context = error.get("ctx", {})
    if context.get("min_length") == 1:
        return "must not be empty"
    return sentence.format(**{name: _number(value) for name, value in context.items()})


def _in_a_list(value: str | int | float) -> str:
    """The value as it stands between brackets: a text that begins like a number has quotes, unless it is several numbers, to
    which only the brackets are missing."""
    quoted = isinstance(value, str) and value[:1].isdecimal() and not _is_numbers(value)
    return f'"{value}"' if quoted else str(value)


def _is_numbers(text: str) -> bool:
    """Whether the text is numbers between commas, at least two."""
    try:
        numbers = [parse(part) for part in text.split(",")]
    except ValueError:
        return False
    return len(numbers) > 1 and all(type(number) in (int, float) for number in numbers)


def _number(bound: Any) -> Any:
    """A bound without the fraction .0 of one that is whole."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def as_given(value: Any) -> str:
    """The value, to end a sentence with; nothing for a mapping, which may be long."""
    return "" if isinstance(value, Mapping) else f" (given: {shown(value)})"


def shown(value: Any) -> str:
    """The value for a message: null, true and false as recipes and the command line write them."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(shown, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else repr(value)


def no_such_words(errors: Sequence[Mapping[str, Any]]) -> str:
    """A half-sentence about values that are not among those that a key may have. `errors`: one, or those of one list."""
    choices = ast.literal_eval(f"[{errors[0]['ctx']['expected'].replace(' or ', ', ')}]")
    values = list({shown(error["input"]): error["input"] for error in errors}.values())
    if not all(isinstance(choice, str) for choice in choices):
        return f"must be {_joined(choices)}{as_given(values[0])}"
    return f"there is no {' and no '.join(map(shown, values))}{did_you_mean(values, choices)} (there are: {', '.join(choices)})"


def _joined(words: Sequence[Any]) -> str:
    *but_last, last = map(str, words)
    return f"{', '.join(but_last)} or {last}" if but_last else last


def did_you_mean(given: Sequence[Any], words: Sequence[str]) -> str:
    """`; did you mean fid and kid?`, if words are like those that were given."""
    nearest = [word for word in (nearest_of(str(one), words) for one in given) if word is not None]
    return f"; did you mean {' and '.join(dict.fromkeys(nearest))}?" if nearest else ""


def nearest_of(word: str, words: Sequence[str]) -> str | None:
    """The word of `words` that is most like another, if one is."""
    alike = next((one for one in words if one.casefold() == word.casefold()), None)
    return alike or next(iter(difflib.get_close_matches(word, words, n=1)), None)
