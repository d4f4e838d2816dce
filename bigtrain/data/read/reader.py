"""Random access to the samples of an index: one positioned read and one decode per image, or per level of codes."""

import os
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from bigtrain.data.decode import Undecodable, decode_into
from bigtrain.data.index import IMAGE_EXTENSIONS, Index, codes_extension
from bigtrain.data.npy import npy_header, read_npy_header
from bigtrain.data.resize import read_square
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.errors import UserError

OPEN_SHARDS = 128
"""File descriptors open per reader, the least recently used is closed first; well below the usual limit of 1024."""

RESIDENT_BYTES = 32 * 2**20
"""A split that takes no more than this when decoded is kept in memory: each reader (one per worker) decodes a sample once."""

CODES_DTYPE = np.dtype("<u2")


def _close(descriptors: OrderedDict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


class _ShardReader:
    """Reads members by sample number. Opens shards when they are first read, so it may be passed to a worker process."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._starts = np.cumsum([0] + [shard.samples for shard in index.shards]).tolist()
        self._descriptors: OrderedDict[int, int] = OrderedDict()
        # A loader without workers does not close its reader, and a training may make hundreds of them.
        weakref.finalize(self, _close, self._descriptors)
        self._cache = ShardCache(index)

    def name(self, number: int) -> str:
        """ "SHARD/KEY" of a sample."""
        position = bisect_right(self._starts, number) - 1
        shard = self.index.shards[position]
        return f"{shard.name}/{shard.keys[number - self._starts[position]]}"

    def close(self) -> None:
        _close(self._descriptors)

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


class Reader(_ShardReader):
    """Reads images by sample number."""

    def __init__(self, index: Index, image_size: int) -> None:
        super().__init__(index)
        self.image_size = image_size
        self._resize = index.variant.get("resize", "never")
        self._images = self._offsets_and_sizes(IMAGE_EXTENSIONS)
        small = index.samples * image_size**2 * 3 <= RESIDENT_BYTES
        self._resident = np.empty((index.samples, image_size, image_size, 3), dtype=np.uint8) if small else None
        self._is_resident = np.zeros(index.samples if small else 0, dtype=bool)

    def image(self, number: int) -> np.ndarray:
        """uint8 [size, size, 3]. Raises Undecodable, or UserError if the shard is missing or truncated."""
        image = np.empty((self.image_size, self.image_size, 3), dtype=np.uint8)
        failed = self.fill(np.array([number]), image[None])
        if failed:
            raise Undecodable(failed[0])
        return image

    def fill(self, numbers: np.ndarray, out: np.ndarray) -> dict[int, str]:
        """Reads images `numbers`, int64 [n], into `out`, uint8 [n, size, size, 3].

        Returns the reason, by row of `out`, for each that cannot be decoded. Raises UserError if a shard is missing or
        truncated.
        """
        if self._resident is None:
            return self._decode(numbers, out)
        new = np.unique(numbers[~self._is_resident[numbers]])
        pixels = np.empty((len(new), *out.shape[1:]), dtype=np.uint8)
        failed = {int(new[row]): reason for row, reason in self._decode(new, pixels).items()}
        self._resident[new] = pixels
        self._is_resident[new] = [number not in failed for number in new.tolist()]
        np.take(self._resident, numbers, axis=0, out=out)
        return {row: failed[number] for row, number in enumerate(numbers.tolist()) if number in failed}

    def _decode(self, numbers: np.ndarray, out: np.ndarray) -> dict[int, str]:
        failed = {}
        for row, (number, (offset, size)) in enumerate(
            zip(numbers.tolist(), self._images[numbers].tolist(), strict=True)
        ):
            try:
                if offset < 0:
                    raise Undecodable(f"it has no {', '.join(IMAGE_EXTENSIONS)} member")
                data = self._bytes(number, offset, size)
                if self._resize == "never":
                    decode_into(data, out[row])
                else:
                    out[row] = read_square(data, self.image_size, self._resize)
            except Undecodable as error:
                failed[row] = str(error)
        return failed


class CodeReader(_ShardReader):
    """Reads codes by sample number."""

    def __init__(self, index: Index) -> None:
        assert index.codes is not None, f"{index.path}: has no codes"
        super().__init__(index)
        self._manifest = index.codes
        self._levels = {level: self._offsets_and_sizes([codes_extension(level)]) for level in index.codes.levels}
        self._headers = {level: npy_header(CODES_DTYPE, index.codes.shape(level)) for level in index.codes.levels}
        codes = sum(int(np.prod(index.codes.shape(level))) for level in index.codes.levels)
        small = index.samples * codes * CODES_DTYPE.itemsize <= RESIDENT_BYTES
        self._resident: dict[int, dict[str, np.ndarray]] | None = {} if small else None

    def fill(self, numbers: np.ndarray, out: list[dict[str, np.ndarray]]) -> dict[int, str]:
        """Puts the codes of samples `numbers`, int64 [n], into `out`, as `Reader.fill` does images."""
        failed = {}
        for row, number in enumerate(numbers.tolist()):
            try:
                out[row] = self.codes(number)
            except Undecodable as error:
                failed[row] = str(error)
        return failed

    def codes(self, number: int) -> dict[str, np.ndarray]:
        """uint16 [flip variants, h, w] by level. Raises Undecodable, or UserError if the shard is missing or truncated."""
        if self._resident is not None and number in self._resident:
            return self._resident[number]
        codes = {level: self._level(number, level) for level in self._levels}
        if self._resident is not None:
            self._resident[number] = codes
        return codes

    def _level(self, number: int, level: str) -> np.ndarray:
        extension, shape = codes_extension(level), self._manifest.shape(level)
        offset, size = self._levels[level][number].tolist()
        if offset < 0:
            raise Undecodable(f"it has no {extension} member")
        data = self._bytes(number, offset, size)
        header = self._headers[level]
        # launch/encode.py writes exactly this header; parsing one takes longer than reading the codes.
        begin = len(header) if data.startswith(header) else _end_of_header(data, extension, shape)
        if len(data) - begin != np.prod(shape) * CODES_DTYPE.itemsize:
            raise Undecodable(
                f"its {extension} has {len(data) - begin} bytes of codes, which are not {shape} of uint16"
            )
        codes = np.frombuffer(data, CODES_DTYPE, offset=begin).reshape(shape)
        codebook_size = self._manifest.levels[level]["codebook_size"]
        if codes.max() >= codebook_size:
            raise Undecodable(
                f"its {extension} has the code {codes.max()}, but level {level} has {codebook_size} codes"
            )
        return codes


def _end_of_header(data: bytes, extension: str, wanted: tuple[int, ...]) -> int:
    """Offset of the codes. Raises Undecodable unless it is npy of uint16 with that shape; nothing is ever unpickled."""
    try:
        dtype, shape, begin = read_npy_header(data)
    except ValueError as error:
        raise Undecodable(f"its {extension} {error}") from None
    if dtype != CODES_DTYPE or shape != wanted:
        raise Undecodable(f"its {extension} holds {dtype} {shape}, not uint16 {wanted}")
    return begin
