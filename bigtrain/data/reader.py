"""Random access to the samples of an index: one positioned read and one decode per image, or per level of codes."""

import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from bigtrain.data.decode import Undecodable, decode
from bigtrain.data.index import IMAGE_EXTENSIONS, Index, codes_extension
from bigtrain.errors import UserMistake

OPEN_SHARDS = 128
"""File descriptors kept per reader, the least recently used closed first: well below the usual limit of 1024."""

RESIDENT_BYTES = 32 * 2**20
"""A set that takes no more than this when decoded is decoded once: each reader (one a worker) keeps what it has decoded."""

CODES_DTYPE = np.dtype("<u2")


class _ShardReader:
    """Reads members by sample number. Opens shards when they are first read, so it may be handed to a worker process."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._starts = np.cumsum([0] + [shard.samples for shard in index.shards]).tolist()
        self._descriptors: OrderedDict[int, int] = OrderedDict()

    def name(self, number: int) -> str:
        """ "SHARD/KEY" of a sample."""
        position = bisect_right(self._starts, number) - 1
        shard = self.index.shards[position]
        return f"{shard.name}/{shard.keys[number - self._starts[position]]}"

    def close(self) -> None:
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _places(self, extensions: Sequence[str]) -> np.ndarray:
        """(offset, size) of each sample's member of these extensions, int64 [samples, 2]; offset -1 where it has none."""
        places = np.tile(np.array([-1, 0]), (self.index.samples, 1))
        for start, shard in zip(self._starts, self.index.shards, strict=False):
            for extension in extensions:
                if extension in shard.members:
                    offsets, sizes = shard.members[extension]
                    here = np.flatnonzero(offsets >= 0)
                    places[start + here, 0], places[start + here, 1] = offsets[here], sizes[here]
        return places

    def _bytes(self, number: int, places: np.ndarray, extensions: Sequence[str]) -> bytes:
        position = bisect_right(self._starts, number) - 1
        offset, size = map(int, places[number])
        if offset < 0:
            raise Undecodable(f"it has no {', '.join(extensions)} member")
        try:
            data = os.pread(self._descriptor(position), size, offset)
        except OSError as error:
            raise UserMistake(f"{self._path(position)}: the shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise UserMistake(
                f"{self._path(position)}: the shard ends within sample {self.name(number)}: it is truncated; "
                f"run {self.index.door} again, which replaces damaged shards"
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


class Reader(_ShardReader):
    """Reads images by sample number."""

    def __init__(self, index: Index, image_size: int) -> None:
        super().__init__(index)
        self.image_size = image_size
        self._images = self._places(IMAGE_EXTENSIONS)
        small = index.samples * image_size**2 * 3 <= RESIDENT_BYTES
        self._resident: dict[int, np.ndarray] | None = {} if small else None

    def image(self, number: int) -> np.ndarray:
        """uint8 [size, size, 3]. Raises Undecodable, or UserMistake if the shard is missing or truncated."""
        if self._resident is not None and number in self._resident:
            return self._resident[number]
        pixels = decode(self._bytes(number, self._images, IMAGE_EXTENSIONS))
        if pixels.shape != (self.image_size, self.image_size, 3):
            raise Undecodable(f"it is {pixels.shape[0]} x {pixels.shape[1]}, not {self.image_size} x {self.image_size}")
        if self._resident is not None:
            self._resident[number] = pixels
        return pixels


class CodeReader(_ShardReader):
    """Reads codes by sample number."""

    def __init__(self, index: Index) -> None:
        assert index.codes is not None, f"{index.path}: has no codes"
        super().__init__(index)
        self._manifest = index.codes
        self._levels = {level: self._places([codes_extension(level)]) for level in index.codes.levels}
        self._headers = {level: codes_header(index.codes.shape(level)) for level in index.codes.levels}
        codes = sum(int(np.prod(index.codes.shape(level))) for level in index.codes.levels)
        small = index.samples * codes * CODES_DTYPE.itemsize <= RESIDENT_BYTES
        self._resident: dict[int, dict[str, np.ndarray]] | None = {} if small else None

    def codes(self, number: int) -> dict[str, np.ndarray]:
        """uint16 [views, h, w] by level. Raises Undecodable, or UserMistake if the shard is missing or truncated."""
        if self._resident is not None and number in self._resident:
            return self._resident[number]
        codes = {level: self._level(number, level) for level in self._levels}
        if self._resident is not None:
            self._resident[number] = codes
        return codes

    def _level(self, number: int, level: str) -> np.ndarray:
        extension, shape = codes_extension(level), self._manifest.shape(level)
        data = self._bytes(number, self._levels[level], [extension])
        header = self._headers[level]
        # What our door wrote begins with just these bytes: to parse a header takes longer than to read the codes.
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


def codes_header(shape: tuple[int, ...]) -> bytes:
    """The bytes before the codes in a member: those of the npy format, version 1.0."""
    file = io.BytesIO()
    described = {"descr": CODES_DTYPE.str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, described)
    return file.getvalue()


def _end_of_header(data: bytes, extension: str, wanted: tuple[int, ...]) -> int:
    """Where the codes begin. Raises Undecodable unless it is npy of uint16 in that shape; nothing is ever unpickled."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # numpy evaluates a literal, and damaged ones raise nearly anything
        raise Undecodable(f"its {extension} is not npy: {error}") from None
    if dtype != CODES_DTYPE or shape != wanted or fortran_order:
        raise Undecodable(f"its {extension} holds {dtype} {shape}, not uint16 {wanted}")
    return file.tell()
