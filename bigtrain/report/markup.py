"""HTML that cannot be broken out of: text is escaped where it is put into an element, unless it is markup already."""

from html import escape
from typing import Any

from bigtrain.untrusted import one_line

_VOID = {"meta", "link", "img", "input", "br"}
_KEPT = {"pre"}
"""Elements whose line breaks are shown."""


class Markup(str):
    """Text that is HTML: only `tag` and `join` make it of other text."""

    __slots__ = ()


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """An element. children: Markup as it is, anything else as escaped text. attributes: `class_` for class, `data_kind` for
    data-kind; None or False leaves one out, True gives it no value."""
    written = "".join(_attribute(key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
    inner = "".join(_child(child, name in _KEPT) for child in children if child is not None)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def join(*children: Any) -> Markup:
    """Several pieces after each other."""
    return Markup("".join(_child(child) for child in children if child is not None))


def _child(child: Any, keeps_lines: bool = False) -> str:
    if isinstance(child, Markup):
        return child
    text = str(child)
    return escape("\n".join(map(one_line, text.split("\n"))) if keeps_lines else one_line(text))


def _attribute(name: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{escape(one_line(str(value)))}"'
