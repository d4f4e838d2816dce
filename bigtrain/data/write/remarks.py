"""What a user may not expect of pictures that were written all the same: a sentence for each kind, and not for each picture."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from bigtrain.data.write.convert import Member

DARK_BELOW = 2**14
"""Pictures of 16 bits whose values stay below this have less than the darkest quarter of the range."""


@dataclass
class Remarks:
    """Numbers of pictures, and one as an example. deep: of 16 bits, `largest` the largest value in them; transparent: that have
    transparent pixels; flat: that became one colour; several: whose files hold several."""

    deep: int = 0
    largest: int = 0
    deep_at: str = ""
    transparent: int = 0
    transparent_at: str = ""
    flat: int = 0
    flat_at: str = ""
    several: int = 0
    several_at: str = ""

    def add(self, member: Member, where: str) -> None:
        """where: the picture's file, for messages."""
        if member.largest is not None:
            self.deep, self.largest = self.deep + 1, max(self.largest, member.largest)
            self.deep_at = self.deep_at or where
        if member.transparent:
            self.transparent, self.transparent_at = self.transparent + 1, self.transparent_at or where
        if member.flat:
            self.flat, self.flat_at = self.flat + 1, self.flat_at or where
        if member.several:
            self.several, self.several_at = self.several + 1, self.several_at or where

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Remarks":
        """Raises TypeError for what `to_json` does not give."""
        return cls(**value)

    @classmethod
    def of_all(cls, parts: Iterable["Remarks"]) -> "Remarks":
        whole = cls()
        for part in parts:
            for name, value in part.to_json().items():
                known = getattr(whole, name)
                if isinstance(value, str):
                    setattr(whole, name, known or value)
                else:
                    setattr(whole, name, max(known, value) if name == "largest" else known + value)
        return whole

    def sentences(self) -> Iterator[str]:
        if self.deep and self.largest < DARK_BELOW:
            limit = max(2 ** self.largest.bit_length(), 2) - 1
            yield (
                f"{self.deep_at}: no value of the {self.deep} pictures of 16 bits is above {self.largest}, so they are nearly "
                f"black where the high byte is taken; --range 0,{limit} makes {limit} white (of grey ones)"
            )
        if self.transparent:
            flat = f", {self.flat} of which become one colour by that" if self.flat else ""
            yield (
                f"{self.transparent_at}: {self.transparent} pictures have transparent pixels, and are written with the colours "
                f"that these hide{flat}; --background white (or #RRGGBB) puts them over a colour"
            )
        elif self.flat:
            yield f"{self.flat_at}: {self.flat} pictures become one colour, though their files hold more"
        if self.several:
            yield f"{self.several_at}: {self.several} files hold several pictures; the first of each is taken"
