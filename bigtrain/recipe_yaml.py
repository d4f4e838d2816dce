"""YAML as recipes are written: what anybody may have written is read within bounds, and a value is what it looks like.

Numbers are those of YAML 1.2 (2e-4 and 1e5 among them), true and false alone are booleans. What YAML 1.1 takes for another
number than people read (`020` is 16 there, `1:30:00` is 5400) is refused.
"""

import re
from collections.abc import Mapping
from typing import Any

import yaml

from bigtrain.home import value_of_home

MOST_BYTES = 2**20
_MOST_NODES = 10_000
"""Keys and values of a recipe, those that are repeated by an alias counted each time."""
_MOST_DEPTH = 32
_NULL, _BOOL, _INT, _FLOAT = (f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float"))
_DOUBTFUL, _MERGE = "!doubtful", "tag:yaml.org,2002:merge"
_DOUBTFUL_WORD = re.compile(
    r"[-+]?(0[0-9_]+(\.[0-9_]*)?|0[xob][0-9a-fA-F_]+|[0-9]+(:[0-5]?[0-9])+(\.[0-9]*)?|[0-9][0-9]*(_[0-9]+)+)"
)
_RESOLVERS = (
    (_NULL, re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    (_BOOL, re.compile(r"true|True|TRUE|false|False|FALSE"), list("tTfF")),
    (_INT, re.compile(r"[-+]?(0|[1-9][0-9]*)"), list("-+0123456789")),
    (_FLOAT, re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?"), list("-+.0123456789")),
    (_FLOAT, re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"), list("-+.")),
    (_DOUBTFUL, _DOUBTFUL_WORD, list("-+0123456789")),
    (_MERGE, re.compile(r"<<"), ["<"]),
)


class ReadInTwoWays(ValueError):
    """`word`: a value that YAML 1.1 takes for another number than people read."""

    def __init__(self, node: yaml.ScalarNode) -> None:
        self.word = str(node.value)
        where = f"line {node.start_mark.line + 1}, column {node.start_mark.column + 1}"
        super().__init__(
            f"{where}: {self.word} can be read in two ways; write a decimal number, or '{self.word}' for text"
        )


def parse(text: str) -> Any:
    """The value of YAML text, in which ~/ is the user's home. Raises ValueError, which quotes nothing of the text but the key
    or the value that is wrong."""
    if len(text) > MOST_BYTES:
        raise ValueError(f"holds more than {MOST_BYTES} characters")
    try:
        _check_events(text)
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return None
        _check_size(node, {})
        loader = _Loader("")
        return value_of_home(loader.construct_document(node))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except yaml.YAMLError as error:  # characters that YAML does not allow
        raise ValueError(" ".join(str(error).split())[:200]) from None


def with_texts_quoted(text: str) -> str:
    """The YAML text with quotes around each value for which `parse` raises ReadInTwoWays."""
    for token in reversed(list(yaml.scan(text))):
        if isinstance(token, yaml.ScalarToken) and token.plain and _DOUBTFUL_WORD.fullmatch(token.value):
            text = f'{text[: token.start_mark.index]}"{token.value}"{text[token.end_mark.index :]}'
    return text


def dump(content: Mapping[str, Any]) -> str:
    """YAML text that `parse`, and YAML 1.1, read as it was."""
    return yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def _check_events(text: str) -> None:
    """Raises ValueError for a text of too many levels or nodes, or with tags, before anything is built of it."""
    depth = nodes = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        nodes += isinstance(event, yaml.NodeEvent)
        if getattr(event, "tag", None) is not None:
            where = f"line {event.start_mark.line + 1}: " if event.start_mark is not None else ""
            raise ValueError(f"{where}has a tag of YAML; a recipe is made of plain values (a text may have quotes)")
        if depth > _MOST_DEPTH:
            raise ValueError(f"has more than {_MOST_DEPTH} levels")
        if nodes > _MOST_NODES:
            raise ValueError(f"has more than {_MOST_NODES} keys and values")


def _check_size(node: yaml.Node, sizes: dict[int, int]) -> int:
    """The nodes below a node, with those that aliases repeat. Raises ValueError for too many."""
    if id(node) not in sizes:
        sizes[id(node)] = _MOST_NODES + 1  # of a node that holds itself
        inner = node.value if not isinstance(node, yaml.ScalarNode) else []
        parts = [part for one in inner for part in (one if isinstance(one, tuple) else (one,))]
        sizes[id(node)] = 1 + sum(_check_size(part, sizes) for part in parts)
    if sizes[id(node)] > _MOST_NODES:
        raise ValueError(f"has more than {_MOST_NODES} keys and values, those that aliases repeat counted each time")
    return sizes[id(node)]


class _Loader(yaml.SafeLoader):
    """The safe loader with the numbers of YAML 1.2; a repeated key is an error, of which PyYAML takes the last."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012  (as in the base class)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == _MERGE:  # `<<`, whose keys may be repeated to override them
                continue
            value = self.construct_object(key, deep=True)
            if not isinstance(value, str | int | float | bool | None):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word or a number", key.start_mark)
            if value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {value!r} is given twice", key.start_mark)
            seen.add(value)
        return super().construct_mapping(node, deep)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    text = str(node.value)
    if len(text) > 400:
        raise yaml.constructor.ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    return int(text) if node.tag == _INT else float(text.replace(".inf", "inf").replace(".nan", "nan"))


def _refused(loader: _Loader, node: yaml.ScalarNode) -> Any:
    raise ReadInTwoWays(node)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around texts that either version of YAML reads as something else."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {  # noqa: RUF012
        first: list(known) for first, known in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _tag, _pattern, _first in _RESOLVERS:
    _whole = re.compile(f"^(?:{_pattern.pattern})$")
    _Loader.add_implicit_resolver(_tag, _whole, _first)
    _Dumper.add_implicit_resolver(_tag, _whole, _first)
_Loader.add_constructor(_INT, _number)
_Loader.add_constructor(_FLOAT, _number)
_Loader.add_constructor(_DOUBTFUL, _refused)
