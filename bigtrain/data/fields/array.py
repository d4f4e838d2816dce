"""Fields of plain numbers: arrays (points, trajectories) and attributes, as float32."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bigtrain.data.decode import MAX_PIXELS, Undecodable
from bigtrain.data.fields.field import Field, Geometry, check_count
from bigtrain.data.fields.painting import path_tile, text_tile
from bigtrain.data.npy import read_npy_header
from bigtrain.untrusted import parse_json

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from torch import Tensor

_NUMBERS = "fiu"
"""The kinds of numpy types that are plain numbers: floats and integers."""


@dataclass(frozen=True, eq=False)
class ArrayField(Field):
    """An npy of numbers of the shape `stored_shape`; its first dimension is the longest where lengths vary (`varies`).

    On the device: NAME, float32 (torch's default dtype) [n, *shape], zero behind the end of a shorter sample; where lengths
    vary also NAME_mask, bool [n, longest], which rows are there. `axes`: the names of the last dimension's numbers, or ().
    """

    stored_shape: tuple[int, ...]
    axes: tuple[str, ...] = ()
    varies: bool = False
    kind = "array"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> ArrayField:
        shape, axes = tuple(map(int, facts["shape"])), tuple(map(str, facts.get("axes", ())))
        varies = bool(facts.get("varies", False))
        if not shape or min(shape) < 1 or (axes and len(axes) != shape[-1]):
            raise ValueError(f"the field {name} has the shape {shape} with {len(axes)} names of axes")
        check_count(name, shape)
        return cls(name, members, shape, axes, varies)

    def facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"shape": list(self.stored_shape)}
        facts |= {"axes": list(self.axes)} if self.axes else {}
        return facts | ({"varies": True} if self.varies else {})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored_shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        """NaN, which no sample has, fills the rows behind a shorter one's end."""
        values = numbers_of(contents[0], self.members[0])
        fits = values.shape[1:] == self.shape[1:] and (
            1 <= len(values) <= self.shape[0] if self.varies else len(values) == self.shape[0]
        )
        if not fits:
            raise Undecodable(f"its {self.members[0]} holds {values.shape}, not {self.shape}")
        out[: len(values)] = values
        out[len(values) :] = np.nan

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        """Points and paths in the plane are drawn within common bounds; other arrays are the first of their numbers."""
        if not _is_path(self.shape):
            return super().tiles(values)
        every = np.concatenate([value.reshape(-1, 2) for value in values])
        low, high = np.nanmin(every, axis=0), np.nanmax(every, axis=0)
        return [path_tile(value.reshape(-1, 2), low, high) for value in values]

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name: self.shape} | ({f"{self.name}_mask": self.shape[:1]} if self.varies else {})

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        import torch  # here, because the processes that write shards do without it

        sent = values.to(device, non_blocking=True)
        if not self.varies:
            return {self.name: sent.to(torch.get_default_dtype())}
        missing = sent.isnan()
        filled = sent.masked_fill(missing, 0).to(torch.get_default_dtype())
        return {self.name: filled, f"{self.name}_mask": ~missing.flatten(2).any(2) if missing.ndim > 2 else ~missing}


def _is_path(shape: tuple[int, ...]) -> bool:
    return shape == (2,) or (len(shape) == 2 and shape[1] == 2)


def numbers_of(data: bytes, member: str) -> np.ndarray:
    """The finite numbers in an npy, float32. Raises Undecodable."""
    try:
        dtype, shape, begin = read_npy_header(data)
    except ValueError as error:
        raise Undecodable(f"its {member} {error}") from None
    if dtype.kind not in _NUMBERS or not shape:
        raise Undecodable(f"its {member} holds {dtype} {shape}, not an array of numbers")
    if math.prod(shape) > MAX_PIXELS:
        raise Undecodable(f"its {member} holds {dtype} {shape}, more than {MAX_PIXELS} numbers")
    if len(data) - begin != math.prod(shape) * dtype.itemsize:
        raise Undecodable(f"its {member} has {len(data) - begin} bytes of numbers, which are not {dtype} {shape}")
    with np.errstate(over="ignore"):
        values = np.frombuffer(data, dtype, offset=begin).reshape(shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise Undecodable(f"its {member} has NaN, or numbers that float32 does not hold")
    return values


@dataclass(frozen=True, eq=False)
class AttributesField(Field):
    """Several numbers at once, as CelebA's forty attributes: float32 [n], from an npy, or from a member of a JSON that maps
    their names to numbers (`key`: the JSON's key that holds them, None for the whole)."""

    names: tuple[str, ...]
    key: str | None = None
    kind = "attributes"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> AttributesField:
        names = tuple(map(str, facts["names"]))
        if not names or len(set(names)) < len(names):
            raise ValueError(f"the field {name} has no attributes, or one twice")
        return cls(name, members, names, None if facts.get("key") is None else str(facts["key"]))

    def facts(self) -> dict[str, Any]:
        return {"names": list(self.names)} | ({"key": self.key} if self.key is not None else {})

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.names),)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        values = (
            self._of_json(contents[0]) if self.members[0].endswith("json") else numbers_of(contents[0], self.members[0])
        )
        if values.shape != self.shape:
            raise Undecodable(
                f"its {self.members[0]} holds {values.shape}, not one number for each of {self.shape[0]} names"
            )
        out[:] = values

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image]:
        """The names of the attributes that are above 0."""
        named = [[name for name, on in zip(self.names, value > 0, strict=True) if on] for value in values]
        return [text_tile(" ".join(names)) for names in named]

    def _of_json(self, data: bytes) -> np.ndarray:
        try:
            value = parse_json(data)
            value = value if self.key is None else value[self.key]
            numbers = np.array([value[name] for name in self.names], dtype=np.float32)
        except (ValueError, OverflowError, KeyError, TypeError) as error:
            raise Undecodable(f"its json does not have the attributes: {type(error).__name__}: {error}") from None
        if not np.isfinite(numbers).all():
            raise Undecodable("its json has NaN, or numbers that float32 does not hold")
        return numbers

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        import torch  # here, because the processes that write shards do without it

        return {self.name: values.to(device, non_blocking=True).to(torch.get_default_dtype())}
