"""A field of a sample: its name, its kind, how a batch of it is read, and how it gets to the device."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np

from bigtrain.data.decode import MAX_PIXELS, Undecodable
from bigtrain.data.fields.painting import text_tile

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

Failures = dict[int, str]
"""By row of a batch, why its sample cannot be read."""


@dataclass(frozen=True)
class Geometry:
    """How n samples are cut and mirrored: drawn once a sample, and applied to all its pictured fields alike.

    flips: bool [n], which are mirrored left to right; crops: float64 [n, 2] in [0, 1), where a crop lies between the top and
    the bottom, the left and the right; starts: float64 [n] in [0, 1), where a window of frames lies in its clip. Without
    `crops` and `starts` crops are central, and windows begin at the first frame.
    """

    flips: np.ndarray
    crops: np.ndarray | None = None
    starts: np.ndarray | None = None

    @classmethod
    def plain(cls, count: int) -> Geometry:
        """Of `count` samples that are not mirrored, with central crops."""
        return cls(np.zeros(count, dtype=bool))

    def of(self, row: int) -> Geometry:
        """That of one sample."""
        crops, starts = (None if drawn is None else drawn[row : row + 1] for drawn in (self.crops, self.starts))
        return Geometry(self.flips[row : row + 1], crops, starts)

    def offset(self, row: int, spare: tuple[int, int]) -> tuple[int, int]:
        """(top, left) of a sample's crop; spare: how many pixels higher and wider than the crop the picture is."""
        if self.crops is None:
            return spare[0] // 2, spare[1] // 2
        down, right = self.crops[row].tolist()
        return int(down * (spare[0] + 1)), int(right * (spare[1] + 1))

    def first_frame(self, row: int, spare: int) -> int:
        """The first frame of a sample's window; spare: how many frames longer than the window the clip is."""
        return 0 if self.starts is None else int(self.starts[row] * (spare + 1))


class Members(Protocol):
    """The samples that a field is read from."""

    labels: np.ndarray
    """int64 [samples], as the index has them."""

    def read(self, field: Field, numbers: np.ndarray) -> list[list[bytes]]:
        """For each sample the contents of the field's members that it has: of the first of them, or of `all_members`."""


def check_count(name: str, shape: Sequence[int]) -> None:
    """Raises ValueError for samples of more than MAX_PIXELS numbers (of pictures: pixels): an index may come from anywhere, and
    memory is taken as it says."""
    if math.prod(shape) > MAX_PIXELS:
        raise ValueError(
            f"the field {name} has the size {list(shape)}, which is more than {MAX_PIXELS} numbers a sample"
        )


@dataclass(frozen=True, eq=False)
class Field(ABC):
    """One field, as an index declares it and a recipe asks for it.

    `members`: the extensions that may hold it, KEY.EXTENSION; of several the first that a sample has is read.
    """

    name: str
    members: tuple[str, ...]

    kind: ClassVar[str]
    all_members: ClassVar[bool] = False
    """Whether a sample's value is in all of the members together, as the frames of a clip are."""

    # -- in an index ------------------------------------------------------------------------------------------------

    @classmethod
    @abstractmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> Field:
        """Raises KeyError, TypeError or ValueError for facts that `facts` does not give."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """What an index says about the field besides its kind and members, as JSON."""

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "members": list(self.members)} | self.facts()

    # -- in a worker ------------------------------------------------------------------------------------------------

    @property
    def source(self) -> Field | None:
        """The field that this one is made from by `derive`; None if it is read from members."""
        return None

    def derive(self, decoded: np.ndarray) -> np.ndarray:
        """This field's values, `dtype` [n, *shape], of what the source's `decode` has given."""
        raise NotImplementedError

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample as `decode` gives it. Raises UserError if samples differ and the recipe has set none."""

    @property
    @abstractmethod
    def dtype(self) -> np.dtype:
        """The type of a sample as `decode` gives it."""

    @property
    def is_cut(self) -> bool:
        """Whether what `decode` gives depends on the geometry, so that it differs from epoch to epoch."""
        return False

    @property
    def sample_bytes(self) -> int:
        """Bytes that a sample takes in a batch."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize

    def read(self, source: Members, numbers: np.ndarray, geometry: Geometry, out: np.ndarray) -> Failures:
        """Reads samples `numbers`, int64 [n], into `out`, `dtype` [n, *shape]; rows that fail are left as they are."""
        failures = {}
        for row, contents in enumerate(source.read(self, numbers)):
            try:
                if not contents:
                    raise Undecodable(f"it has no {', '.join(self.members)} member")
                self.decode(contents, out[row], geometry, row)
            except Undecodable as error:
                failures[row] = str(error)
        return failures

    @abstractmethod
    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        """Decodes row `row` of a batch into `out`, `dtype` [*shape]. Raises Undecodable."""

    def deliver(self, decoded: np.ndarray, geometry: Geometry) -> np.ndarray:
        """What is sent to the device, [n, ...], of what `decode` has given."""
        return decoded

    def check(self, contents: Sequence[bytes]) -> None:
        """Raises Undecodable unless the members hold what the index says: for `launch/shard.py --verify`."""
        self.decode(contents, np.empty(self.shape, self.dtype), Geometry.plain(1), 0)

    # -- for people -------------------------------------------------------------------------------------------------

    def for_show(self) -> Field:
        """The field as it is read to be shown: pictures of various sizes at one."""
        return self

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        """A tile for each of some samples' values, as `decode` gives them; without a better way, the first of its numbers."""
        return [text_tile(" ".join(f"{number:.3g}" for number in value.flat[:64])) for value in values]

    # -- on the device ----------------------------------------------------------------------------------------------

    def described(self) -> dict[str, Any]:
        """What a model keeps about the field: enough to build the networks that take it, as JSON."""
        return {
            "kind": self.kind,
            "tensors": {name: list(shape) for name, shape in self.tensors.items()},
        } | self.facts()

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        """The names and shapes, without the leading dimension, of what `to_device` gives."""
        return {self.name: self.shape}

    @abstractmethod
    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        """What a phase is handed, by name, of what `deliver` gave; flips: bool [n] on the CPU. Copies do not wait for the
        device where `values` are in page-locked memory."""
