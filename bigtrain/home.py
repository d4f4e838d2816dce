"""The ~ that a shell leaves as it is in `data.train=~/x`, `--out=~/x` and `tokenizer=~/x`, and that no shell sees in a file."""

import os
import re
from typing import Any

_BELOW_HOME = re.compile(r"((?:[\w.-]+=){0,2})(~[\w.-]*/.*)", re.DOTALL)


def word_of_home(word: str) -> str:
    """A word of a command line with ~/ at its beginning, or that of a value in it, as the user's home, and with ~NAME/ as that
    of another user. A lone ~ stays: it is null in YAML."""
    found = _BELOW_HOME.fullmatch(word)
    return found[1] + os.path.expanduser(found[2]) if found else word


def value_of_home(value: Any) -> Any:
    """A value of YAML with ~/ at the beginning of its texts as the user's home, and ~NAME/ as another's."""
    if isinstance(value, dict):
        return {key: value_of_home(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [value_of_home(inner) for inner in value]
    return os.path.expanduser(value) if isinstance(value, str) and re.match(r"~[\w.-]*/", value) else value
