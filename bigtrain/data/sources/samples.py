"""Tables of the samples that sources hold, in compact columns and not in Python objects: 1.28 million take some 100 MB.

A sample has one row in the column of each of its fields: one file there (`Members`), or several in order (`Runs`).
"""

import hashlib
import itertools
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.sources.dataset_json import DATASET_JSON
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.errors import UserError

PICTURE_EXTENSIONS = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
)  # fmt: skip
"""Files taken as pictures, in any case; others are left out and counted."""
UNREAD_EXTENSIONS = (".jp2", ".j2k", ".avif", ".heic", ".heif", ".jxl", ".tga", ".exr", ".svg", ".dcm")
"""Files that other tools take as pictures: left out too, and named."""
ANY_EXTENSION = ("",)


class Names(Sequence[str]):
    """Strings in one block of bytes. They may hold what is no UTF-8, as file names may."""

    def __init__(self, names: "Iterable[str]" = ()) -> None:
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


class Column(ABC):
    """One field of many samples; names: of each."""

    names: Names

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def take(self, numbers: np.ndarray) -> "Column":
        """These samples in this order."""

    @abstractmethod
    def contents(self, number: int) -> list[bytes]:
        """The bytes of a sample's files. Raises Undecodable, OSError, or UserError where a package is missing."""

    @abstractmethod
    def shown(self, number: int) -> str:
        """Where a sample is, for messages."""

    @abstractmethod
    def close(self) -> None:
        """Closes what was opened for reading."""

    def sorted_by_name(self, path: Path, numbers: np.ndarray | None = None) -> np.ndarray:
        """The numbers (of all samples, or of `numbers`) in the order of their names, int64 [n].

        Raises UserError, which names `path`, if a name comes twice, as it may in an archive.
        """
        every = range(len(self)) if numbers is None else numbers.tolist()
        ordered = sorted(every, key=self.names.__getitem__)
        for one, next_one in itertools.pairwise(ordered):
            if self.names[one] == self.names[next_one]:
                raise UserError(f"{path}: {self.names[one]} is there twice; leave one of them away")
        return np.array(ordered, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Members(Column):
    """Files in `sources`. locations: int64 [n, 1 + columns], the number of a file's source and where it is there.

    A name may have folders before the one that its source knows, where that does not need the name to find it.
    """

    names: Names
    sources: tuple[ImageSource, ...]
    locations: np.ndarray

    def take(self, numbers: np.ndarray) -> "Members":
        return Members(self.names.take(numbers), self.sources, self.locations[numbers])

    def read(self, number: int) -> bytes:
        """The file's bytes. Raises as `contents` does."""
        source, *location = self.locations[number].tolist()
        return self.sources[source].read(self.names[number], location)

    def contents(self, number: int) -> list[bytes]:
        return [self.read(number)]

    def shown(self, number: int) -> str:
        return self.sources[self.locations[number, 0]].shown(self.names[number])

    def close(self) -> None:
        for source in self.sources:
            source.close()


@dataclass(frozen=True, eq=False)
class Runs(Column):
    """Several files a sample: sample i has `files` number begins[i] .. begins[i + 1] - 1, in this order.

    begins: int64 [n + 1].
    """

    names: Names
    files: Members
    begins: np.ndarray

    def take(self, numbers: np.ndarray) -> "Runs":
        runs = [np.arange(self.begins[number], self.begins[number + 1]) for number in numbers.tolist()]
        begins = np.cumsum([0, *map(len, runs)], dtype=np.int64)
        return Runs(self.names.take(numbers), self.files.take(np.concatenate([np.arange(0), *runs])), begins)

    def contents(self, number: int) -> list[bytes]:
        return [self.files.read(file) for file in range(self.begins[number], self.begins[number + 1])]

    def shown(self, number: int) -> str:
        return self.files.shown(int(self.begins[number])).rpartition("/")[0]

    def close(self) -> None:
        self.files.close()


class Listing:
    """Members as they are found: those whose names end in one of `endings`, and in none of `without`, which belong to other
    fields. The rest is counted, and left out; `unread`: those among them that look like pictures, `left_folders`: where they
    lie; `labels_files`: those called dataset.json in a folder."""

    def __init__(
        self,
        sources: Sequence[ImageSource],
        endings: tuple[str, ...] = PICTURE_EXTENSIONS,
        without: tuple[str, ...] = (),
    ) -> None:
        self._sources, self._endings, self._without = tuple(sources), endings, without
        self.names, self._locations, self.left_out = Names(), array("q"), 0
        self.unread: list[str] = []
        self.labels_files: list[str] = []
        self.left_folders: set[str] = set()

    def add(self, name: str, location: Sequence[int], source: int = 0) -> bool:
        """Whether the member of that source is taken in."""
        lower = name.lower()
        if self._without and lower.endswith(self._without):
            return False
        if not lower.endswith(self._endings):
            self.left_out += 1
            self.left_folders.add(name.rpartition("/")[0])
            if lower.endswith(UNREAD_EXTENSIONS):
                self.unread.append(name)
            if name.endswith(f"/{DATASET_JSON}"):
                self.labels_files.append(name)
            return False
        self.names.append(name)
        self._locations.append(source)
        self._locations.extend(location)
        return True

    def members(self) -> Members:
        columns = 1 + self._sources[0].columns
        locations = np.array(self._locations, dtype=np.int64).reshape(-1, columns)
        return Members(self.names, self._sources, locations)


@dataclass(frozen=True)
class FieldSpec:
    """How a field of the samples is to be written. `kind`: one of bigtrain.data.fields, or `instance`, a map of objects.

    factor: by how much its sides are smaller than those of the largest field; names: of a map's classes, of attributes or of an
    array's axes; half: which half of the picture it is; fps: frames a second; least_frames: clips may not be shorter; key: of
    the JSON that holds it; members: the extensions of its members, where shards of others are indexed.
    """

    kind: str
    factor: int = 1
    names: tuple[str, ...] = ()
    half: str | None = None
    fps: float | None = None
    least_frames: int = 1
    key: str | None = None
    members: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """What is not as by default, as JSON gives it back."""
        values = {
            item.name: getattr(self, item.name) for item in fields(self) if getattr(self, item.name) != item.default
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


IMAGE = {"image": FieldSpec("image")}
"""The field of samples that are one picture."""


@dataclass(frozen=True, eq=False)
class Samples:
    """The samples of one split, sorted by name, each name once. members: of the first field; labels: int32 [n]; beside: of each
    further field by name, of the same samples in the same order."""

    members: Column
    labels: np.ndarray
    beside: Mapping[str, Column] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self.members.names, self.labels.tolist(), strict=True)

    def take(self, numbers: np.ndarray) -> "Samples":
        """These samples in this order."""
        beside = {name: column.take(numbers) for name, column in self.beside.items()}
        return Samples(self.members.take(numbers), self.labels[numbers], beside)


@dataclass(frozen=True)
class SampleSet:
    """Samples by split. `classes`: names by number, one numbering for all splits; `left_out`: files that are no samples by
    their extension; `fields`: by name, the first one that of `Samples.members`."""

    path: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Samples]
    left_out: int
    fields: Mapping[str, FieldSpec] = field(default_factory=lambda: IMAGE)

    @property
    def is_labelled(self) -> bool:
        return self.classes != (UNLABELLED,)

    def numbered_as(self, classes: Sequence[str]) -> "SampleSet":
        """The same samples with their classes in another order."""
        numbers = np.array([classes.index(name) for name in self.classes], dtype=np.int32)
        splits = {split: replace(samples, labels=numbers[samples.labels]) for split, samples in self.splits.items()}
        return replace(self, classes=tuple(classes), splits=splits)

    def fingerprint(self, split: str) -> str:
        """A hash of the split's names, labels and class names (not of the files' contents)."""
        samples = self.splits[split]
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for name, label in samples:
            digest.update(f"\n{label} {name}".encode(errors="surrogateescape"))
        for column_name, column in samples.beside.items():
            digest.update(f"\n\n{column_name}".encode())
            for name in column.names:
                digest.update(f"\n{name}".encode(errors="surrogateescape"))
        for runs in (column for column in (samples.members, *samples.beside.values()) if isinstance(column, Runs)):
            digest.update(runs.begins.astype("<i8").tobytes())
        return digest.hexdigest()
