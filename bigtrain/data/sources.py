"""A folder of pictures: its splits, its classes, its files."""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigtrain.data.index import UNLABELLED
from bigtrain.errors import UserMistake

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Files taken as pictures, in any case; others are left out and counted."""
_LAYOUTS = "SOURCE/CLASS/*.jpg or SOURCE/SPLIT/CLASS/*.jpg"
_DEEPEST = 3
SPLITS = frozenset({"train", "validation", "val", "test"})
"""Names of folders that are taken as splits where pictures have no classes."""


@dataclass(frozen=True)
class Source:
    """Pictures by split. `splits`: for each split its (path relative to `folder`, class number), sorted by path.

    `classes`: names by number, sorted: the union over the splits, so that a number means one class everywhere.
    `left_out`: files that are not pictures by their extension.
    """

    folder: Path
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[tuple[str, int], ...]]
    left_out: int

    def fingerprint(self, split: str) -> str:
        """A hash of the split's file names, labels and class names (not of the files' contents)."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for name, label in self.splits[split]:
            digest.update(f"\n{label} {name}".encode(errors="surrogateescape"))
        return digest.hexdigest()


def list_folder(folder: Path) -> Source:
    """Lists `split/class/picture` or `class/picture` (the split is then `train`); UserMistake for anything else."""
    if not folder.is_dir():
        raise UserMistake(
            f"{folder}: there is no such folder; give a folder laid out as {_LAYOUTS}, or the word digits"
        )
    by_depth: dict[int, list[str]] = {}
    left_out = 0
    for name in _files(folder, "", 0):
        if name.lower().endswith(PICTURE_EXTENSIONS):
            by_depth.setdefault(name.count("/"), []).append(name)
        else:
            left_out += 1
    if not by_depth:
        raise UserMistake(f"{folder}: no pictures here ({', '.join(PICTURE_EXTENSIONS)}), laid out as {_LAYOUTS}")
    for depth, names in by_depth.items():
        if depth not in (1, 2):
            where = "outside a class folder" if depth == 0 else "deeper than SPLIT/CLASS"
            raise UserMistake(
                f"{folder}: {names[0]} lies {where}; lay the folder out as {_LAYOUTS}, or take the pictures without classes "
                "by --labels none"
            )
    if len(by_depth) == 2:
        raise UserMistake(
            f"{folder}: {by_depth[1][0]} is laid out as CLASS/picture but {by_depth[2][0]} as SPLIT/CLASS/picture; "
            f"choose one of {_LAYOUTS}"
        )
    depth, names = by_depth.popitem()
    return _source(folder, names, has_splits=depth == 2, left_out=left_out)


def list_unlabelled(folder: Path) -> Source:
    """Lists all pictures as one class. Folders that are called as splits are (SPLITS) are splits; else all is `train`."""
    if not folder.is_dir():
        raise UserMistake(f"{folder}: there is no such folder; give a folder of pictures")
    found = list(_files(folder, "", 0))
    names = [name for name in found if name.lower().endswith(PICTURE_EXTENSIONS)]
    if not names:
        raise UserMistake(f"{folder}: no pictures here ({', '.join(PICTURE_EXTENSIONS)})")
    tops = {name.partition("/")[0] for name in names}
    by_split: dict[str, list[tuple[str, int]]] = {}
    for name in sorted(names):
        by_split.setdefault(name.partition("/")[0] if tops <= SPLITS else "train", []).append((name, 0))
    splits = {split: tuple(samples) for split, samples in sorted(by_split.items())}
    return Source(folder, (UNLABELLED,), splits, len(found) - len(names))


def _files(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    """Paths relative to the folder, hidden ones left out, down to a depth that is enough to see that it is too deep."""
    try:
        with os.scandir(folder / prefix) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserMistake(f"{folder / prefix}: the folder cannot be read: {error.strerror}") from None
    for entry in found:
        if entry.name.startswith("."):
            continue
        if not entry.is_dir():
            yield prefix + entry.name
        elif depth < _DEEPEST:
            yield from _files(folder, f"{prefix}{entry.name}/", depth + 1)


def _source(folder: Path, names: list[str], *, has_splits: bool, left_out: int) -> Source:
    by_split: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        *split, label, _ = name.split("/")
        by_split.setdefault(split[0] if has_splits else "train", []).append((name, label))
    classes = sorted({label for samples in by_split.values() for _, label in samples})
    numbers = {label: number for number, label in enumerate(classes)}
    splits = {
        split: tuple(sorted((name, numbers[label]) for name, label in samples))
        for split, samples in sorted(by_split.items())
    }
    return Source(folder, tuple(classes), splits, left_out)
