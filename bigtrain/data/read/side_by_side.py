"""Several indexes read side by side, as unpaired domains are: each with its own order, at one position."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.fields.pictures import PicturedField
from bigtrain.data.index import Index, Part
from bigtrain.errors import UserError


@dataclass(frozen=True, eq=False)
class SideBySide:
    """Indexes by the names that `data.train` gives them.

    A batch holds the main field of index NAME as NAME, and its other fields as NAME_FIELD: with {a: ..., b: ...} of plain
    images, `a`, `a_label`, `b` and `b_label`. The samples as a whole have no class.
    """

    indexes: Mapping[str, Index]

    def __post_init__(self) -> None:
        names = [name for part in self.parts for name in part.names.values()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(
                f"data.train: two fields would be called {twice[0]}: one of the index of that name, and one of another index; "
                "give the index another name"
            )

    @cached_property
    def parts(self) -> Sequence[Part]:
        return [Part(index, _names_in(name, index), f"data/order/{name}") for name, index in self.indexes.items()]

    @cached_property
    def fields(self) -> dict[str, Field]:
        """By the name in a batch."""
        return {
            named: replace(part.index.fields[own], name=named)
            for part in self.parts
            for own, named in part.names.items()
        }

    @property
    def where(self) -> str:
        return ", ".join(index.where for index in self.indexes.values())

    @property
    def samples(self) -> int:
        """Of the largest index, whose epoch is that of the data."""
        return max(index.samples for index in self.indexes.values())

    @property
    def classes(self) -> tuple[str, ...]:
        return (UNLABELLED,)

    @property
    def class_counts(self) -> tuple[int, ...]:
        return (self.samples,)

    @property
    def picture(self) -> PicturedField | None:
        """The field whose size is that of the data: that of the index `image`, or else of the first index that has one."""
        pictures = {name: index.picture for name, index in self.indexes.items() if index.picture is not None}
        return pictures.get("image", next(iter(pictures.values()), None))

    @property
    def image_size(self) -> tuple[int, int] | None:
        return None if self.picture is None else self.picture.size

    @property
    def channels(self) -> int:
        return getattr(self.picture, "channels", 3)

    @property
    def codes(self) -> None:
        """Codes are not read side by side."""
        return

    @property
    def is_fetched(self) -> bool:
        return any(index.is_fetched for index in self.indexes.values())

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the names, and of the samples and their numbering."""
        parts = [[name, index.fingerprint] for name, index in self.indexes.items()]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _names_in(name: str, index: Index) -> dict[str, str]:
    """The names in a batch of the fields of index `name`: NAME for the main one, which is the picture, or else the first, and
    NAME_FIELD for the others."""
    fields = {own: field for own, field in index.fields.items() if field.members}
    main = index.picture.name if index.picture is not None else next(iter(fields))
    return {own: name if own == main else f"{name}_{own}" for own in fields}
