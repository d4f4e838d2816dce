"""Random access to the samples of an index: one positioned read a member, and a batch of each field at a time."""

import os
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import numpy as np

from bigtrain.data.fields.field import Failures, Field, Geometry
from bigtrain.data.index import Index
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.errors import UserError

OPEN_SHARDS = 128
"""File descriptors open per reader, the least recently used is closed first; well below the usual limit of 1024."""

RESIDENT_BYTES = 32 * 2**20
"""A split that takes no more than this when decoded is kept in memory: each reader (one per worker) decodes a sample once."""


def _close(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


class _Shards:
    """Reads members by sample number. Opens shards when they are first read, so it may be passed to a worker process."""

    def __init__(self, index: Index) -> None:
        self.index, self.labels = index, index.labels
        self._starts = np.cumsum([0] + [shard.samples for shard in index.shards]).tolist()
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        # A loader without workers does not close its reader, and a training may make hundreds of them.
        weakref.finalize(self, _close, self._descriptors)
        self._cache = ShardCache(index)
        self._extents: dict[tuple[str, ...], np.ndarray] = {}

    def name(self, number: int) -> str:
        """ "SHARD/KEY" of a sample."""
        position = bisect_right(self._starts, number) - 1
        shard = self.index.shards[position]
        return f"{shard.name}/{shard.keys[number - self._starts[position]]}"

    def close(self) -> None:
        _close(self._descriptors)

    def read(self, field: Field, numbers: np.ndarray) -> list[list[bytes]]:
        """For each of samples `numbers`, int64 [n], the contents of the field's members that it has: of the first of them, or
        of all if the field wants all. Raises UserError if a shard is missing or truncated."""
        if not field.all_members:
            return [
                [self._bytes(number, offset, size)] if offset >= 0 else []
                for number, (offset, size) in zip(
                    numbers.tolist(), self._extents_of(field.members)[numbers].tolist(), strict=True
                )
            ]
        columns = [self._extents_of((member,))[numbers].tolist() for member in field.members]
        return [
            [self._bytes(number, *column[row]) for column in columns if column[row][0] >= 0]
            for row, number in enumerate(numbers.tolist())
        ]

    def _extents_of(self, members: Sequence[str]) -> np.ndarray:
        """(offset, size) of each sample's member of these extensions, int64 [samples, 2]; offset -1 where it has none."""
        key = tuple(members)
        if key not in self._extents:
            self._extents[key] = self._offsets_and_sizes(key)
        return self._extents[key]

    def _offsets_and_sizes(self, extensions: Sequence[str]) -> np.ndarray:
        """(offset, size) of each sample's member of these extensions, int64 [samples, 2]; offset -1 where it has none."""
        offsets_and_sizes = np.tile(np.array([-1, 0]), (self.index.samples, 1))
        for start, shard in zip(self._starts, self.index.shards, strict=False):
            # In reverse, so that the first extension that a sample has overwrites the others.
            for extension in reversed(extensions):
                if extension in shard.members:
                    offsets, sizes = shard.members[extension]
                    present = np.flatnonzero(offsets >= 0)
                    offsets_and_sizes[start + present, 0], offsets_and_sizes[start + present, 1] = (
                        offsets[present],
                        sizes[present],
                    )
        return offsets_and_sizes

    def _bytes(self, number: int, offset: int, size: int) -> bytes:
        position = bisect_right(self._starts, number) - 1
        try:
            data = os.pread(self._descriptor(position), size, offset)
        except OSError as error:
            raise UserError(f"{self.index.location(position)}: the shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise UserError(
                f"{self.index.location(position)}: the shard ends within sample {self.name(number)}: it is truncated; "
                f"run {self.index.made_by} again, which replaces damaged shards"
            )
        return data

    def _descriptor(self, position: int) -> int:
        if position in self._descriptors:
            self._descriptors.move_to_end(position)
            return self._descriptors[position]
        descriptor = self._open(position)
        self._descriptors[position] = descriptor
        if len(self._descriptors) > OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def _open(self, position: int) -> int:
        if not self.index.is_remote(position):
            return os.open(self.index.location(position), os.O_RDONLY | os.O_CLOEXEC)
        new = self._cache.open(position)
        for held in [held for held, descriptor in self._descriptors.items() if os.fstat(descriptor).st_nlink == 0]:
            os.close(self._descriptors.pop(held))  # evicted; the disk space is freed only when it is closed
        return new


class Reader:
    """Reads samples by number: `fields` of them, by name, or all that the index has."""

    def __init__(self, index: Index, fields: Sequence[str] | None = None) -> None:
        self.index = index
        names = index.fields if fields is None else fields
        self.fields: Mapping[str, Field] = {name: index.fields[name] for name in names}
        self._shards = _Shards(index)
        # What is decoded is kept in memory where the split is small and the geometry does not change it.
        kept = [field for field in self.fields.values() if not field.is_cut]
        small = index.samples * sum(_decoded_bytes(field) for field in kept) <= RESIDENT_BYTES
        self._resident = {field.name: _rows_of(field, index.samples) for field in kept if small}
        self._is_resident = np.zeros(index.samples if small else 0, dtype=bool)

    def name(self, number: int) -> str:
        """ "SHARD/KEY" of a sample."""
        return self._shards.name(number)

    def close(self) -> None:
        self._shards.close()

    def read(self, numbers: np.ndarray, geometry: Geometry | None = None) -> tuple[dict[str, np.ndarray], Failures]:
        """(samples `numbers`, int64 [n], by field as its `deliver` gives them; by row, why a sample cannot be decoded).

        Without a geometry they are not mirrored, and cut at their centre. Raises UserError if a shard is missing or truncated.
        """
        geometry = Geometry.plain(len(numbers)) if geometry is None else geometry
        decoded, failures = self.decode(numbers, geometry)
        return {name: field.deliver(decoded[name], geometry) for name, field in self.fields.items()}, failures

    def decode(self, numbers: np.ndarray, geometry: Geometry | None = None) -> tuple[dict[str, np.ndarray], Failures]:
        """As `read`, but as the fields' `decode` gives them."""
        geometry = Geometry.plain(len(numbers)) if geometry is None else geometry
        decoded: dict[str, np.ndarray] = {}
        failures: Failures = {}
        if self._resident:
            failures |= self._keep(numbers)
            for name, rows in self._resident.items():
                decoded[name] = np.take(rows, numbers, axis=0)
        fresh = [field for field in self.fields.values() if field.name not in self._resident]
        failures |= self._decode(fresh, numbers, geometry, decoded)
        return decoded, failures

    def _keep(self, numbers: np.ndarray) -> Failures:
        """Decodes those of the samples that are not in memory yet; returns, by row of `numbers`, why one cannot be decoded."""
        new = np.unique(numbers[~self._is_resident[numbers]])
        if not len(new):
            return {}
        decoded: dict[str, np.ndarray] = {}
        kept = [self.fields[name] for name in self._resident]
        failed = {int(new[row]): why for row, why in self._decode(kept, new, Geometry.plain(len(new)), decoded).items()}
        for name, rows in self._resident.items():
            rows[new] = decoded[name]
        self._is_resident[new] = [number not in failed for number in new.tolist()]
        return {row: failed[number] for row, number in enumerate(numbers.tolist()) if number in failed}

    def _decode(
        self, fields: Sequence[Field], numbers: np.ndarray, geometry: Geometry, decoded: dict[str, np.ndarray]
    ) -> Failures:
        """Puts `fields` of samples `numbers` into `decoded`; what others are derived from is decoded once, and first."""
        failures: Failures = {}
        for field in fields:
            if field.name in decoded:
                continue
            source = field.source
            if source is not None:
                failures |= self._decode([source], numbers, geometry, decoded)
                decoded[field.name] = field.derive(decoded[source.name])
            else:
                decoded[field.name] = _rows_of(field, len(numbers))
                failures |= field.read(self._shards, numbers, geometry, decoded[field.name])
        return failures


def _rows_of(field: Field, count: int) -> np.ndarray:
    return np.empty((count, *field.shape), dtype=field.dtype)


def _decoded_bytes(field: Field) -> int:
    return int(np.prod(field.shape, dtype=np.int64)) * field.dtype.itemsize
