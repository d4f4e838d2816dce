"""How one field of a sample is written, and what the index says of it."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from bigtrain.data.decode import Undecodable
from bigtrain.data.write.convert import Member

Facts = Mapping[str, Any]
"""What samples turned out to be, as the facts of their field in an index: sizes, channels, lengths."""


@dataclass(frozen=True)
class Encoded:
    """A field of one sample. members: contents by extension; mended: the source's file was damaged, but could be read; whole:
    (height, width) of the source's picture before it was resized, None for what is no picture; pictures: what they were written
    from, for remarks."""

    members: Mapping[str, bytes]
    facts: Facts
    mended: bool = False
    whole: tuple[int, int] | None = None
    pictures: Sequence[Member] = ()


@dataclass(frozen=True)
class Encoder(ABC):
    """One field. Can be pickled. `prefix`: of its members' extensions: none for the first field, else NAME and a dot; `factor`:
    by how much its sides are smaller than those of the largest field."""

    name: str
    prefix: str
    factor: int = 1

    kind: ClassVar[str]
    """In the index: one of bigtrain.data.fields."""
    noun: ClassVar[str]
    """What a message calls it."""
    alike: ClassVar[bool] = False
    """Whether samples must agree in what `merged` compares, so that the first one says what the others must be."""

    @abstractmethod
    def encode(self, contents: Sequence[bytes]) -> Encoded:
        """The members of one sample, of the contents of its files. Raises Undecodable."""

    @abstractmethod
    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        """The facts of one sample of shards that others made, from its members' contents; `members`: their extensions. Raises
        Undecodable."""

    @abstractmethod
    def merged(self, one: Facts, other: Facts) -> Facts:
        """What is true of all samples, of which some are `one` and some `other`. Raises Undecodable, which speaks of `other`,
        if they cannot be in one set."""

    def members(self, extensions: Iterable[str]) -> list[str]:
        """The members of the index's field; extensions: those that occur."""
        return sorted(extensions)

    def described(self, facts: Facts, extensions: Iterable[str]) -> dict[str, Any]:
        """The field as JSON of an index."""
        return {"kind": self.kind, "members": self.members(extensions), **facts}


def refuse_unequal(what: str, one: Any, other: Any, remedy: str) -> None:
    """Raises Undecodable if samples that must agree do not."""
    if one != other:
        raise Undecodable(f"it has {what} {other}, where others have {one}; {remedy}")
