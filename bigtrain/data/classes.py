"""How classes are numbered, and how people name them: in `data.classes`, in `sample.py --classes`.

An exact name wins. A position is `index:N`, or a bare number where no class has a number for its name that could be meant.
"""

import difflib
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bigtrain.errors import UserError, some_of

POSITION = "index:"
_NAMED = 10
"""Class names that a message lists."""
_DIGITS = 18
"""A longer name is text, whatever it is made of."""


def in_order(names: Iterable[str]) -> list[str]:
    """The names of the classes of a new set, in the order of their numbers: as numbers if all are, as text otherwise."""
    ordered = sorted(names)
    return sorted(ordered, key=int) if all(map(_is_number, ordered)) else ordered


def class_numbers(classes: Sequence[str], words: Sequence[int | str]) -> list[int]:
    """The numbers of the classes that are asked for. Raises UserError for a word that no class has, or that several have."""
    found = [_class_number(classes, str(word)) for word in words]
    named = [word for word in words if str(word) in classes]
    bare = [word for word, number in zip(words, found, strict=True) if _is_other_number(str(word), classes[number])]
    if bare and any(_is_number(str(word)) for word in named):
        raise UserError(
            f"class {str(bare[0])!r}: no class has this name, but {str(named[0])!r} is one; give names, or all by position: "
            f"{POSITION}{bare[0]}"
        )
    return found


def split_words(classes: Sequence[str], text: str) -> list[str]:
    """The classes of a list with commas, which may be part of a class's name."""
    parts, words = text.split(","), []
    while parts:
        taken = next(
            (count for count in range(len(parts), 1, -1) if ",".join(parts[:count]).strip() in classes),
            1,
        )
        words.append(",".join(parts[:taken]).strip())
        parts = parts[taken:]
    return words


def empty_classes(classes: Sequence[str], counts: np.ndarray) -> str | None:
    """What to say if classes have no sample in any split; counts: int [classes]."""
    empty = [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]
    if not empty or not counts.any():
        return None
    if empty == [classes[0]] and len(classes) > 1:
        return (
            f"labels begin at 1: the class 0 ({classes[0]}) has no sample, and models would draw it all the same; write labels "
            "from 0 on, or leave it out by data.classes"
        )
    return f"{len(empty)} of {len(classes)} classes have no sample, such as {empty[0]!r}"


def some_names(names: Sequence[str]) -> str:
    """The names for a message, the first few of many; those with a comma in quotes."""
    return some_of([repr(name) if "," in name else name for name in names], _NAMED)


def _class_number(classes: Sequence[str], word: str) -> int:
    exact = [number for number, name in enumerate(classes) if name == word]
    if len(exact) > 1:
        positions = ", ".join(f"{POSITION}{number}" for number in exact)
        raise UserError(f"class {word!r}: {len(exact)} classes have this name; give one by its position: {positions}")
    if exact:
        return exact[0]
    bare = word.removeprefix(POSITION)
    if not _is_number(bare) or int(bare) >= len(classes):
        if not word:
            raise UserError(f"a class's name is empty; give names with commas between them: {some_names(classes)}")
        near = _nearest(classes, word)
        meant = f"; did you mean {near!r}?" if near else ""
        raise UserError(
            f"class {word!r}: there is no such class{meant} (there are {len(classes)}: {some_names(classes)}; positions are "
            f"{POSITION}0 .. {POSITION}{len(classes) - 1})"
        )
    position = int(bare)
    same = [name for name in classes if _is_number(name) and int(name) == position]
    if bare == word and same and classes[position] not in same:  # "1" of classes 001, 002, 003
        raise UserError(
            f"class {word!r}: no class has this name; did you mean {same[0]!r}, or {POSITION}{word}, which is "
            f"{classes[position]!r}?"
        )
    return position


def _nearest(classes: Sequence[str], word: str) -> str | None:
    """What may have been meant by a word that no class has: names with something else than a comma between them, a number with
    other zeros before it, a name with a slip of the pen."""
    words = re.split(r"[;|\s]+", word.strip())
    if len(words) > 1 and all(one in classes for one in words):
        return ",".join(words)
    if _is_number(word):
        return next((name for name in classes if _is_number(name) and int(name) == int(word)), None)
    return next(iter(difflib.get_close_matches(word, classes, n=1)), None)


def _is_other_number(word: str, name: str) -> bool:
    """Whether a bare number is the position of a class that has another number, or a word, for its name."""
    return _is_number(word) and not (_is_number(name) and int(name) == int(word))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= _DIGITS
