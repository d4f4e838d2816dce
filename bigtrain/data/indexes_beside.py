"""What is said where an index is wanted and something else stands: the indexes that are near, or how to make one."""

import shlex
from pathlib import Path

from bigtrain.data.points import POINT_SETS
from bigtrain.errors import some_of
from bigtrain.untrusted import open_plain

FORMAT = "bigtrain-index"
"""What an index says that it is."""
_HEAD_BYTES = 100
"""The format of an index stands within so many bytes of its beginning."""
_NAMED = 5
"""Indexes that a message names."""


def how_to_make(folder: Path) -> str:
    """How shards are made that are looked for in a folder: of the points after which it is named, as recipes name it, or of any
    other samples."""
    if folder.name in POINT_SETS:
        return f"make the shards with `python launch/shard.py {folder.name} {shlex.quote(str(folder))}`"
    return "make the shards with `python launch/shard.py SOURCE OUT` (with --size N for pictures)"


def why_none_is_there(path: Path) -> str:
    """The end of a sentence about a file that is not there: the indexes in its folder, or how to make one."""
    beside = _indexes_in(path.parent, "*.json")
    return f"beside it are {some_of(beside, _NAMED)}" if beside else how_to_make(path.parent)


def why_a_folder_is_none(folder: Path) -> str:
    """The end of a sentence about a folder where an index is wanted: the indexes in it, or else in those that it holds."""
    paths = _indexes_in(folder, "*.json") or _indexes_in(folder, "*/*.json")
    if not paths:
        return f"is a folder without an index; {how_to_make(folder)}, and give its OUT/SPLIT.json"
    return f"is a folder; give the index in it ({some_of(paths, _NAMED)})"


def _indexes_in(folder: Path, pattern: str) -> list[Path]:
    return [path for path in sorted(folder.glob(pattern)) if _begins_as_index(path)]


def _begins_as_index(path: Path) -> bool:
    try:
        with open_plain(path) as file:
            return FORMAT.encode() in file.read(_HEAD_BYTES)
    except OSError:
        return False
