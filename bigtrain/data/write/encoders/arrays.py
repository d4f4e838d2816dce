"""Arrays and attributes on their way into shards."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigtrain.data.decode import Undecodable
from bigtrain.data.fields.array import AttributesField, numbers_of
from bigtrain.data.fields.field import Geometry
from bigtrain.data.npy import MAGIC, npy_header
from bigtrain.data.sources.tables.csv_file import table_of_numbers
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts, refuse_unequal


def as_npy(values: np.ndarray) -> bytes:
    """float32 in C order."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    return npy_header(values.dtype, values.shape) + values.tobytes()


@dataclass(frozen=True)
class ArrayEncoder(Encoder):
    """Finite numbers, from an npy or from a csv of rows. Facts: `shape`, of the longest; `varies`, whether lengths do; `axes`.

    axes: names of the last dimension's numbers, () if nobody knows, or a csv's header says.
    """

    axes: tuple[str, ...] = ()

    kind = "array"
    noun = "array"
    alike = True

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        (data,) = contents
        axes = self.axes
        if not data.startswith(MAGIC):
            values, named = table_of_numbers(data)
            data, axes = as_npy(values), axes or named
        values = numbers_of(data, "file")
        return Encoded({f"{self.prefix}npy": as_npy(values)}, _facts(values, axes))

    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        return _facts(numbers_of(contents[0], members[0]), self.axes)

    def merged(self, one: Facts, other: Facts) -> Facts:
        remedy = "only the first dimension may differ"
        refuse_unequal("rows of the shape", one["shape"][1:], other["shape"][1:], remedy)
        refuse_unequal("the axes", one.get("axes"), other.get("axes"), "name them alike")
        length = max(one["shape"][0], other["shape"][0])
        varies = one.get("varies", False) or other.get("varies", False) or one["shape"] != other["shape"]
        return {**one, "shape": [length, *one["shape"][1:]], **({"varies": True} if varies else {})}


def _facts(values: np.ndarray, axes: tuple[str, ...]) -> dict[str, Any]:
    if min(values.shape) < 1:
        raise Undecodable(f"it is empty: {values.shape}")
    if axes and len(axes) != values.shape[-1]:
        raise Undecodable(f"it has {values.shape[-1]} numbers for the axes {', '.join(axes)}")
    return {"shape": list(values.shape)} | ({"axes": list(axes)} if axes else {})


@dataclass(frozen=True)
class AttributesEncoder(Encoder):
    """A number for each of `names`, from an npy, or in shards of others from a JSON (`key`: of it). Facts: `names`."""

    names: tuple[str, ...] = ()
    key: str | None = None

    kind = "attributes"
    noun = "line of attributes"
    alike = True

    def encode(self, contents: Sequence[bytes]) -> Encoded:
        (data,) = contents
        values = numbers_of(data, "file")
        if values.shape != (len(self.names),):
            raise Undecodable(f"it has {values.size} numbers for {len(self.names)} attributes")
        return Encoded({f"{self.prefix}npy": as_npy(values)}, {"names": list(self.names)})

    def inspect(self, contents: Sequence[bytes], members: Sequence[str]) -> Facts:
        names = self.names or _keys(contents[0], self.key)
        field = AttributesField(self.name, tuple(members), names, self.key)
        field.decode(contents, np.empty(field.shape, field.dtype), Geometry.plain(1), 0)
        return {"names": list(names)} | ({} if self.key is None else {"key": self.key})

    def merged(self, one: Facts, other: Facts) -> Facts:
        refuse_unequal("the attributes", one["names"], other["names"], "each sample needs all of them")
        return one


def _keys(data: bytes, key: str | None) -> tuple[str, ...]:
    """The names of the attributes in a JSON. Raises Undecodable."""
    try:
        value = json.loads(data)
        value = value if key is None else value[key]
        return tuple(sorted(value)) if isinstance(value, dict) else ()
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise Undecodable(f"it has no attributes: {type(error).__name__}: {error}") from None
