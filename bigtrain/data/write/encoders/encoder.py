"""How one field of a sample is written, and what the index says of it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigtrain.data.fields.field import Field

Facts = Mapping[str, Any]
"""What samples turned out to be (sizes, channels, lengths), as JSON."""


@dataclass(frozen=True)
class Encoded:
    """A field of one sample. members: contents by extension; mended: the source's file was damaged, but could be read."""

    members: Mapping[str, bytes]
    facts: Facts
    mended: bool = False


class Encoder(ABC):
    """One field. Can be pickled."""

    name: str

    @abstractmethod
    def encode(self, contents: Sequence[bytes]) -> Encoded:
        """The members of one sample, of the contents of its files. Raises Undecodable."""

    @abstractmethod
    def merged(self, one: Facts, other: Facts) -> Facts:
        """What is true of all samples, of which some are `one` and some `other`."""

    @abstractmethod
    def field(self, extensions: Sequence[str], facts: Facts) -> Field:
        """The field of an index whose samples have members of these extensions and are what `facts` says."""
