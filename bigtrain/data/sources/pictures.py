"""Pictures before they are in shards: what there is, its splits, its classes, and how to read one.

A set is a table of compact columns, not of Python objects: 1.28 million pictures take some 100 MB. `layouts` says which
sets are known and lists them.
"""

import hashlib
import itertools
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from bigtrain.data.index import UNLABELLED
from bigtrain.errors import UserError

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Files taken as pictures, in any case; others are left out and counted."""
LAYOUTS = "SOURCE/CLASS/*.jpg or SOURCE/SPLIT/CLASS/*.jpg"
_TOO_DEEP = 3
SPLITS = frozenset({"train", "validation", "val", "test"})
"""Names of folders that are taken as splits where pictures have no classes."""
STORED = -1
"""In the place of a packed size: the bytes are not packed."""
PLACE = 5
"""Columns of a place: number of the file, offset, size in bytes, size as packed by deflate or STORED, CRC-32 or STORED."""


class Names(Sequence[str]):
    """Strings in one block of bytes. They may hold what is no UTF-8, as file names may."""

    def __init__(self, names: "Iterator[str] | Sequence[str]" = ()) -> None:
        self._text, self._ends = bytearray(), array("q", [0])
        for name in names:
            self.append(name)

    def append(self, name: str) -> None:
        self._text += name.encode(errors="surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:  # type: ignore[override]  # `take` is for more than one
        begin, end = self._ends[number], self._ends[number + 1]
        return self._text[begin:end].decode(errors="surrogateescape")

    def take(self, numbers: np.ndarray) -> "Names":
        return Names(self[number] for number in numbers.tolist())


@dataclass(frozen=True)
class Pixels:
    """How raw pixels lie: (height, width, channels), and whether one channel comes after the other."""

    shape: tuple[int, int, int]
    planar: bool


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split, sorted by name.

    names: each once; labels: int32 [n]; kind: `files`: a file each, named relative to files[0]; `parts`: bytes of `files`,
    by `places`, int64 [n, PLACE]; `pixels`: the same, but raw, as `pixels` says; `lmdb`: values of the databases `files`,
    by the last part of the name. shown: where they are, for messages.
    """

    names: Names
    labels: np.ndarray
    files: tuple[Path, ...]
    kind: Literal["files", "parts", "pixels", "lmdb"] = "files"
    places: np.ndarray | None = None
    pixels: Pixels | None = None

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self.names, self.labels.tolist(), strict=True)

    def take(self, numbers: np.ndarray) -> "Pictures":
        """These pictures in this order."""
        places = None if self.places is None else self.places[numbers]
        return Pictures(self.names.take(numbers), self.labels[numbers], self.files, self.kind, places, self.pixels)

    def file(self, number: int) -> Path:
        """The file that holds the picture, or is it."""
        if self.kind == "files":
            return self.files[0] / self.names[number]
        assert self.places is not None
        return self.files[self.places[number, 0]]

    def shown(self, number: int) -> str:
        """Where the picture is, for messages."""
        if self.kind == "files":
            return str(self.file(number))
        return f"{self.file(number)}: {self.names[number]}"


@dataclass(frozen=True)
class Source:
    """Pictures by split. `classes`: names by number, one numbering for all splits; `left_out`: files that are no pictures
    by their extension."""

    folder: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Pictures]
    left_out: int

    def fingerprint(self, split: str) -> str:
        """A hash of the split's names, labels and class names (not of the pictures' contents)."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for name, label in self.splits[split]:
            digest.update(f"\n{label} {name}".encode(errors="surrogateescape"))
        return digest.hexdigest()


@dataclass
class Listing:
    """Pictures as they are found, before they have classes: names, and places where they are parts of files."""

    names: Names = field(default_factory=Names)
    places: "array[int]" = field(default_factory=lambda: array("q"))
    left_out: int = 0

    def add(self, name: str, place: Sequence[int] = ()) -> None:
        """Takes a picture in; counts what is none by its extension."""
        if name.lower().endswith(PICTURE_EXTENSIONS):
            self.names.append(name)
            self.places.extend(place)
        else:
            self.left_out += 1

    def place_columns(self) -> np.ndarray | None:
        return np.array(self.places, dtype=np.int64).reshape(-1, PLACE) if self.places else None


def list_folder(folder: Path) -> Source:
    """Lists `split/class/picture` or `class/picture` (the split is then `train`); UserError for anything else."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a folder laid out as {LAYOUTS}, or the word digits")
    listing = Listing()
    for name in files_below(folder):
        listing.add(name)
    return by_class(folder, listing, (folder,), "files")


def by_class(
    source: Path, listing: Listing, files: tuple[Path, ...], kind: Literal["files", "parts"], *, top: bool = False
) -> Source:
    """Splits and classes as the names say: SPLIT/CLASS/picture or CLASS/picture. Raises UserError for other names.

    top: a folder that all names begin with is left away where they are one level too deep, as archives often have it.
    """
    skip = _common_top(listing.names) if top else 0
    splits: dict[str, int] = {}
    classes: dict[str, int] = {}
    first_at: dict[int, str] = {}
    found = np.empty((len(listing.names), 2), dtype=np.int32)
    for number, name in enumerate(listing.names):
        *folders, _ = name[skip:].split("/")
        first_at.setdefault(len(folders), name)
        *split, label = folders[-2:] or [""]
        found[number, 0] = splits.setdefault(split[0] if split else "train", len(splits))
        found[number, 1] = classes.setdefault(label, len(classes))
    _check_depths(source, first_at)
    ordered = sorted(classes)
    numbers = np.empty(len(classes), dtype=np.int32)
    numbers[[classes[name] for name in ordered]] = np.arange(len(classes))
    labels, places = numbers[found[:, 1]], listing.place_columns()
    by_split = {
        split: sorted_by_name(
            Pictures(listing.names, labels, files, kind, places), np.flatnonzero(found[:, 0] == splits[split]), source
        )
        for split in sorted(splits)
    }
    return Source(source, tuple(ordered), by_split, listing.left_out)


def sorted_by_name(pictures: Pictures, numbers: np.ndarray, source: Path) -> Pictures:
    """These of the pictures, sorted by name. Raises UserError if a name comes twice, as it may in an archive."""
    ordered = sorted(numbers.tolist(), key=pictures.names.__getitem__)
    for one, next_one in itertools.pairwise(ordered):
        if pictures.names[one] == pictures.names[next_one]:
            raise UserError(f"{source}: {pictures.names[one]} is there twice; leave one of them away")
    return pictures.take(np.array(ordered, dtype=np.int64))


def _common_top(names: Names) -> int:
    """Characters of the folder that all names share and that is one too many, with its slash; 0 if there is none."""
    if not len(names) or names[0].count("/") != _TOO_DEEP:
        return 0
    top = names[0].partition("/")[0] + "/"
    return len(top) if all(name.startswith(top) for name in names) else 0


def _check_depths(source: Path, first_at: Mapping[int, str]) -> None:
    if not first_at:
        raise UserError(f"{source}: no pictures here ({', '.join(PICTURE_EXTENSIONS)}), laid out as {LAYOUTS}")
    for depth, name in first_at.items():
        if depth not in (1, 2):
            where = "outside a class folder" if depth == 0 else "deeper than SPLIT/CLASS"
            raise UserError(
                f"{source}: {name} lies {where}; lay it out as {LAYOUTS}, or take the pictures of a folder without classes "
                "by --labels none"
            )
    if len(first_at) == 2:
        raise UserError(
            f"{source}: {first_at[1]} is laid out as CLASS/picture but {first_at[2]} as SPLIT/CLASS/picture; "
            f"choose one of {LAYOUTS}"
        )


def list_unlabelled(folder: Path) -> Source:
    """Lists all pictures as one class. Folders that are called as splits are (SPLITS) are splits; else all is `train`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a folder of pictures")
    listing = Listing()
    for name in files_below(folder):
        listing.add(name)
    if not len(listing.names):
        raise UserError(f"{folder}: no pictures here ({', '.join(PICTURE_EXTENSIONS)})")
    known = {split: number for number, split in enumerate(sorted(SPLITS))}
    tops = np.fromiter((known.get(name.partition("/")[0], -1) for name in listing.names), np.int8, len(listing.names))
    pictures = Pictures(listing.names, np.zeros(len(listing.names), dtype=np.int32), (folder,))
    if tops.min() < 0:
        by_split = {"train": np.arange(len(tops))}
    else:
        by_split = {split: np.flatnonzero(tops == number) for split, number in known.items() if number in tops}
    splits = {split: sorted_by_name(pictures, numbers, folder) for split, numbers in by_split.items()}
    return Source(folder, (UNLABELLED,), splits, listing.left_out)


def files_below(folder: Path) -> Iterator[str]:
    """Paths relative to the folder, hidden ones left out. Raises UserError for a circle of links."""
    return _files(folder, "")


def _files(folder: Path, prefix: str) -> Iterator[str]:
    try:
        with os.scandir(folder / prefix) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    except OSError as error:
        raise UserError(f"{folder / prefix}: the folder cannot be read: {error.strerror}") from None
    for name, is_folder in found:
        if is_folder:
            refuse_a_circle(folder / prefix / name)
            yield from _files(folder, f"{prefix}{name}/")
        else:
            yield prefix + name


def read_classes(path: Path, *, unique: bool = True) -> tuple[str, ...]:
    """The names of classes by number, a line each. Raises UserError unless it is text without an empty line.

    unique: whether a name that comes twice is a mistake; where labels are numbers it is none ("crane" is a bird and a machine).
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
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: its byte {error.start} is no UTF-8; save it as UTF-8 text") from None


def refuse_a_circle(folder: Path) -> None:
    """Raises UserError if the folder is a link to one that it lies in: there would be no end of it."""
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: this link leads back to a folder that it lies in; take it away")
