"""Random access to the images of an index: one positioned read and one decode per image."""

import os
from bisect import bisect_right
from collections import OrderedDict

import numpy as np

from bigtrain.data.decode import Undecodable, decode
from bigtrain.data.index import IMAGE_EXTENSIONS, Index
from bigtrain.errors import UserMistake

OPEN_SHARDS = 128
"""File descriptors kept per reader, the least recently used closed first: well below the usual limit of 1024."""

RESIDENT_BYTES = 32 * 2**20
"""A set whose pixels take no more than this is decoded once: each reader (one a worker) keeps what it has decoded."""


class Reader:
    """Reads images by sample number. Opens shards when they are first read, so it may be handed to a worker process."""

    def __init__(self, index: Index, image_size: int) -> None:
        self.index = index
        self.image_size = image_size
        self._starts = np.cumsum([0] + [shard.samples for shard in index.shards]).tolist()
        self._offsets = np.full(index.samples, -1, dtype=np.int64)
        self._sizes = np.zeros(index.samples, dtype=np.int64)
        for start, shard in zip(self._starts, index.shards, strict=False):
            for extension in IMAGE_EXTENSIONS:
                if extension in shard.members:
                    offsets, sizes = shard.members[extension]
                    here = np.flatnonzero(offsets >= 0)
                    self._offsets[start + here], self._sizes[start + here] = offsets[here], sizes[here]
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        small = index.samples * image_size**2 * 3 <= RESIDENT_BYTES
        self._resident: dict[int, np.ndarray] | None = {} if small else None

    def image(self, number: int) -> np.ndarray:
        """uint8 [size, size, 3]. Raises Undecodable, or UserMistake if the shard is missing or truncated."""
        if self._resident is not None and number in self._resident:
            return self._resident[number]
        pixels = decode(self._bytes(number))
        if pixels.shape != (self.image_size, self.image_size, 3):
            raise Undecodable(f"it is {pixels.shape[0]} x {pixels.shape[1]}, not {self.image_size} x {self.image_size}")
        if self._resident is not None:
            self._resident[number] = pixels
        return pixels

    def name(self, number: int) -> str:
        """ "SHARD/KEY" of a sample."""
        position = bisect_right(self._starts, number) - 1
        shard = self.index.shards[position]
        return f"{shard.name}/{shard.keys[number - self._starts[position]]}"

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _bytes(self, number: int) -> bytes:
        position = bisect_right(self._starts, number) - 1
        offset, size = int(self._offsets[number]), int(self._sizes[number])
        if offset < 0:
            raise Undecodable(f"it has no {', '.join(IMAGE_EXTENSIONS)} member")
        try:
            data = os.pread(self._descriptor(position), size, offset)
        except OSError as error:
            raise UserMistake(f"{self._path(position)}: the shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise UserMistake(
                f"{self._path(position)}: the shard ends within sample {self.name(number)}: it is truncated; "
                "run launch/shard.py again, which replaces damaged shards"
            )
        return data

    def _descriptor(self, position: int) -> int:
        if position in self._descriptors:
            self._descriptors.move_to_end(position)
            return self._descriptors[position]
        descriptor = os.open(self._path(position), os.O_RDONLY | os.O_CLOEXEC)
        self._descriptors[position] = descriptor
        if len(self._descriptors) > OPEN_SHARDS:
            os.close(self._descriptors.popitem(last=False)[1])
        return descriptor

    def _path(self, position: int) -> str:
        return str(self.index.folder / self.index.shards[position].name)
