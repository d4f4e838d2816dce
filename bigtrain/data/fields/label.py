"""The class of a sample, of all or of few. Its number is in the index, because class counts, subsets and balance need all of
them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigtrain.data.fields.field import Failures, Field, Geometry, Members
from bigtrain.data.fields.painting import text_tile

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

UNLABELLED = "unlabelled"
"""The name of the only class of data without labels."""
KNOWN_LABEL = "known_label"
"""The name of the field that says the labels of few samples."""


@dataclass(frozen=True, eq=False)
class _ClassNumber(Field):
    """The number of a class, which is read from the index."""

    @property
    def shape(self) -> tuple[int, ...]:
        return ()

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.int64)

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        raise AssertionError("labels are read from the index")

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {self.name: values.to(device, non_blocking=True)}


@dataclass(frozen=True, eq=False)
class LabelField(_ClassNumber):
    """`classes`: names by number; `key`: of the JSON member that holds the number or the name, None for a .cls member."""

    classes: tuple[str, ...]
    key: str | None = None
    kind = "label"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> LabelField:
        classes = tuple(map(str, facts["classes"]))
        if not classes:
            raise ValueError(f"the field {name} has no classes")
        return cls(name, members, classes, None if facts.get("key") is None else str(facts["key"]))

    def facts(self) -> dict[str, Any]:
        return {"classes": list(self.classes)} | ({"key": self.key} if self.key is not None else {})

    def read(self, source: Members, numbers: np.ndarray, geometry: Geometry, out: np.ndarray) -> Failures:
        out[:] = source.labels[numbers]
        return {}

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        return [text_tile(self.classes[int(value)]) for value in values]


@dataclass(frozen=True, eq=False)
class KnownLabelField(_ClassNumber):
    """The class of the samples whose label training is told, -1 of all others. It is in no index: a recipe asks for it.

    `known`: bool [samples], by sample number; `share`: of the samples of an epoch that are known.
    """

    known: np.ndarray
    share: float
    kind = "known_label"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> KnownLabelField:
        raise AssertionError("known labels are chosen by a recipe")

    def facts(self) -> dict[str, Any]:
        return {"share": self.share}

    def read(self, source: Members, numbers: np.ndarray, geometry: Geometry, out: np.ndarray) -> Failures:
        out[:] = np.where(self.known[numbers], source.labels[numbers], -1)
        return {}
