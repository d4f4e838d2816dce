"""Tables of the pictures that sources hold, in compact columns and not in Python objects: 1.28 million take some 100 MB."""

import hashlib
import itertools
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigtrain.data.sources.image_source import ImageSource
from bigtrain.errors import UserError

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
"""Files taken as pictures, in any case; others are left out and counted."""
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


@dataclass(frozen=True, eq=False)
class Members:
    """Files in `sources`. names: of each; locations: int64 [n, 1 + columns], the number of its source and where it is there.

    A name may have folders before the one that its source knows, where that does not need the name to find it.
    """

    names: Names
    sources: tuple[ImageSource, ...]
    locations: np.ndarray

    def __len__(self) -> int:
        return len(self.names)

    def take(self, numbers: np.ndarray) -> "Members":
        """These members in this order."""
        return Members(self.names.take(numbers), self.sources, self.locations[numbers])

    def sorted_by_name(self, path: Path, numbers: np.ndarray | None = None) -> np.ndarray:
        """The numbers (of all members, or of `numbers`) in the order of their names, int64 [n].

        Raises UserError, which names `path`, if a name comes twice, as it may in an archive.
        """
        every = range(len(self)) if numbers is None else numbers.tolist()
        ordered = sorted(every, key=self.names.__getitem__)
        for one, next_one in itertools.pairwise(ordered):
            if self.names[one] == self.names[next_one]:
                raise UserError(f"{path}: {self.names[one]} is there twice; leave one of them away")
        return np.array(ordered, dtype=np.int64)

    def read(self, number: int) -> bytes:
        """The file's bytes. Raises Undecodable, OSError, or UserError where a package is missing."""
        source, *location = self.locations[number].tolist()
        return self.sources[source].read(self.names[number], location)

    def shown(self, number: int) -> str:
        """Where the file is, for messages."""
        return self.sources[self.locations[number, 0]].shown(self.names[number])

    def close(self) -> None:
        for source in self.sources:
            source.close()


class Listing:
    """Members as they are found. Those whose names do not end as `extensions` say are counted, and left out."""

    def __init__(self, sources: Sequence[ImageSource], extensions: tuple[str, ...] = PICTURE_EXTENSIONS) -> None:
        self._sources, self._extensions = tuple(sources), extensions
        self.names, self._locations, self.left_out = Names(), array("q"), 0

    def add(self, name: str, location: Sequence[int], source: int = 0) -> bool:
        """Whether the member of that source is taken in."""
        if not name.lower().endswith(self._extensions):
            self.left_out += 1
            return False
        self.names.append(name)
        self._locations.append(source)
        self._locations.extend(location)
        return True

    def members(self) -> Members:
        columns = 1 + self._sources[0].columns
        locations = np.array(self._locations, dtype=np.int64).reshape(-1, columns)
        return Members(self.names, self._sources, locations)


@dataclass(frozen=True, eq=False)
class Pictures:
    """The pictures of one split, sorted by name, each name once; labels: int32 [n]."""

    members: Members
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return zip(self.members.names, self.labels.tolist(), strict=True)

    def take(self, numbers: np.ndarray) -> "Pictures":
        """These pictures in this order."""
        return Pictures(self.members.take(numbers), self.labels[numbers])


@dataclass(frozen=True)
class PictureSet:
    """Pictures by split. `classes`: names by number, one numbering for all splits; `left_out`: files that are no pictures
    by their extension."""

    path: Path
    classes: tuple[str, ...]
    splits: Mapping[str, Pictures]
    left_out: int

    def fingerprint(self, split: str) -> str:
        """A hash of the split's names, labels and class names (not of the pictures' contents)."""
        digest = hashlib.sha256("\n".join(self.classes).encode(errors="surrogateescape"))
        for name, label in self.splits[split]:
            digest.update(f"\n{label} {name}".encode(errors="surrogateescape"))
        return digest.hexdigest()
