"""Images that are not in shards, as evaluation reads them: numbered, with labels where they have any, and in several processes.

They are numbered in sorted order, so that image i is the same wherever and however often it is read, and read one by one,
so that memory does not grow with their number.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigtrain.data.decode import Undecodable
from bigtrain.data.read.loader import Loader
from bigtrain.errors import UserError

DIGEST_BYTES = 16
"""Of the hash of one image's pixels."""


class ImageCollection(ABC):
    """`labels`: int64 [count], or None; `classes`: names by label, or None where labels are numbers of somebody else's.

    `key`: a hash of names, sizes and times of change, by which work on these very files is found again.
    """

    kind: str
    """folder, tar, zip or npz."""
    path: Path
    count: int
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    key: str

    @abstractmethod
    def image(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3]. Raises Undecodable, or UserError if the file cannot be read."""

    @abstractmethod
    def name(self, number: int) -> str:
        """What a message calls the image."""


@dataclass(frozen=True)
class ImageChunk:
    """Images `numbers`, int64 [n], by size: (positions among the n, uint8 [m, H, W, 3]); `digests`: a hash of each's pixels."""

    numbers: np.ndarray
    groups: list[tuple[np.ndarray, Tensor]]
    digests: list[bytes]


def read_images(
    collection: ImageCollection, chunks: Iterable[np.ndarray], workers: int, slot_bytes: int = 0
) -> Generator[ImageChunk, None, None]:
    """The images of each of `chunks` (int64 [n], numbers ascending over all), read by `workers` processes (0: this one).

    `slot_bytes`: bytes that most chunks take; workers hand over larger ones more slowly. Raises UserError, naming the
    image, for one that cannot be read.
    """
    batches = Loader(_Chunks(collection), iter(chunks), workers, pin_memory=False, slot_bytes=slot_bytes)
    try:
        yield from batches
    finally:
        batches.close()


class _Chunks(Dataset[Any]):
    def __init__(self, collection: ImageCollection) -> None:
        self._collection = collection

    def __getitem__(self, numbers: np.ndarray) -> ImageChunk:
        images = [self._image(int(number)) for number in numbers]
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for position, image in enumerate(images):
            by_shape.setdefault(image.shape, []).append(position)
        groups = [
            (np.array(same), torch.from_numpy(np.stack([images[position] for position in same])))
            for same in by_shape.values()
        ]
        return ImageChunk(numbers, groups, [_digest(image) for image in images])

    def _image(self, number: int) -> np.ndarray:
        try:
            return self._collection.image(number)
        except Undecodable as error:
            raise UserError(
                f"{self._collection.path}: {self._collection.name(number)} cannot be decoded: {error}; mend it or take it "
                "away"
            ) from None


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()[:DIGEST_BYTES]


def file_key(path: Path) -> str:
    """The `key` of a collection that is one file."""
    facts = path.stat()
    return hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()
