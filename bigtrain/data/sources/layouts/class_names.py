"""Lists of class names, and other small files of text beside pictures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bigtrain.data.sources.image_source import MOST_BYTES
from bigtrain.errors import UserError
from bigtrain.untrusted import read_plain


def read_classes(path: Path, *, unique: bool = True) -> tuple[str, ...]:
    """The names of classes by number, a line each. Raises UserError unless it is text without an empty line.

    unique: whether a name that comes twice is an error; where labels are numbers it is none ("crane" is a bird and a machine).
    """
    lines = read_text(path).rstrip().splitlines()
    if not all(map(str.strip, lines)):
        raise UserError(f"{path}: an empty line stands among its class names; take it away, or name the class")
    twice = [name for name, times in Counter(lines).items() if times > 1]
    if unique and twice:
        raise UserError(f"{path}: the class {twice[0]!r} stands in it twice; give each number a name of its own")
    return tuple(lines)


def read_text(path: Path) -> str:
    """What stands in a file of UTF-8. Raises UserError for other bytes."""
    try:
        return read_plain(path, MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its byte {error.start} is no UTF-8; save it as UTF-8 text") from None


def named_classes(lists: Sequence[Path], least: int) -> tuple[str, ...]:
    """The lines of the first of `lists` that is there, else numbers; `least`: how many the labels need."""
    for path in lists:
        if path.exists():
            classes = read_classes(path)
            if len(classes) < least:
                raise UserError(f"{path}: has {len(classes)} names, but labels run to {least - 1}")
            return classes
    return tuple(map(str, range(least)))
