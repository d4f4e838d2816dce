"""The sets of images that an evaluation looks at: drawn by a model, reconstructed by one, in shards, or lying in files.

Every set numbers its images; image i is the same on whichever rank and in whichever batch it is seen.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.data.fields.pictures import ImageField
from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch
from bigtrain.data.read.stream import read_chunks
from bigtrain.data.sources.collection import ImageCollection, read_images
from bigtrain.data.splits import image_shape
from bigtrain.errors import UserError
from bigtrain.evaluation.kept_pass import KeptPass
from bigtrain.features.cache import Cache, key_of_images
from bigtrain.features.network import pictures
from bigtrain.pictures import to_uint8
from bigtrain.randomness import generator

_BESIDE = 64
"""Bytes for what a worker says of an image beside its pixels."""
Draw = Callable[[np.ndarray, Tensor], Tensor]
"""Samples of a model: (indices int64 [n], labels int64 [n]) to uint8 [n, C, H, W], a function of each index and label
alone (and of options.seed, which the caller keys its noise by), never of the batch or the rank."""
OutputsOf = Callable[[np.ndarray, Batch], Tensor]
"""What a model makes of samples of a split: (their numbers int64 [n], the batch on the CPU) to [n, C, H, W] in [-1, 1]."""


@dataclass(frozen=True)
class ImageBatch:
    """Images `numbers`, int64 [n], of a set, by size: (their positions among the n, uint8 [m, C, H, W] on the device).

    `labels`: int64 [n] on the CPU where the set has any; `digests`: a hash of each one's pixels, where the set has no
    fingerprint of its contents.
    """

    numbers: np.ndarray
    groups: list[tuple[np.ndarray, Tensor]]
    labels: Tensor | None
    digests: list[bytes] = field(default_factory=list)


class ImageSet(ABC):
    """`classes`: the names behind the labels, None where there are no labels, empty where labels are bare numbers."""

    count: int
    name: str
    """For messages."""
    classes: tuple[str, ...] | None = None
    cache: Cache | None = None
    """Where work on this set is kept; None where it is not to be."""
    key: dict[str, Any]
    """What determines the set, for the cache."""
    kept: KeptPass | None = None
    """Where a pass over the set keeps what it has seen, should it be killed; None where it keeps nothing."""
    hashed = False
    """Whether only its pixels can say what it holds, so that batches carry digests."""

    @abstractmethod
    def batches(self, numbers: np.ndarray, reading: Reading, device: torch.device) -> Iterator[ImageBatch]:
        """Images `numbers` (int64 [n], ascending), reading.batch at a time. Raises UserError for one that is broken."""

    @abstractmethod
    def describe(self, digest: str | None) -> dict[str, Any]:
        """What a protocol says of the set; `digest`: the hash of all its images' pixels, where it has looked at them."""

    def name_of(self, number: int) -> str:
        return str(number)

    @abstractmethod
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of its images, as far as the first one tells."""

    @property
    def channels(self) -> int:
        return self.shape()[0]

    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of its images, as far as the first one tells."""
        _, height, width = self.shape()
        return height, width


def fair_order(count: int) -> np.ndarray:
    """A fixed random order of a set of `count`: any part of it is a fair sample, whatever order the set lies in."""
    return generator(0, "evaluation/fair").permutation(count)


def _chunks(numbers: np.ndarray, reading: Reading) -> list[np.ndarray]:
    return [numbers[begin : begin + reading.batch] for begin in range(0, len(numbers), reading.batch)]


class Drawn(ImageSet):
    """What a model draws; `label_of` gives the class asked for by sample index, int64 [n]."""

    def __init__(
        self,
        draw: Draw,
        label_of: Callable[[np.ndarray], Tensor],
        count: int,
        classes: tuple[str, ...],
        shape: tuple[int, int, int],
    ) -> None:
        """`shape`: (channels, height, width) of what is drawn."""
        self._draw, self._label_of = draw, label_of
        self.count, self.name, self.classes = count, "the samples", classes
        self._shape = shape
        self.key = {}

    def batches(self, numbers: np.ndarray, reading: Reading, device: torch.device) -> Iterator[ImageBatch]:
        for chunk in _chunks(numbers, reading):
            labels = self._label_of(chunk)
            images = self._draw(chunk, labels.to(device)).to(device)
            assert images.shape == (len(chunk), *self._shape), (images.shape, len(chunk), self._shape)
            yield ImageBatch(chunk, [(np.arange(len(chunk)), images)], labels)

    def describe(self, digest: str | None) -> dict[str, Any]:
        return {"kind": "drawn", "quantisation": "round"}

    def shape(self) -> tuple[int, int, int]:
        return self._shape


class Shards(ImageSet):
    """A split."""

    def __init__(self, index: Index, split: str) -> None:
        self.index, self.split = index, split
        self._shape = image_shape(index)
        self.count, self.name, self.classes = index.samples, f"the images of {index.where}", index.classes
        self.cache, self.key = Cache(index), key_of_images(index)

    def batches(self, numbers: np.ndarray, reading: Reading, device: torch.device) -> Iterator[ImageBatch]:
        image, label = names = self.index.labelled_image
        for chunk, batch in read_chunks(self.index, _chunks(numbers, reading), workers=reading.workers, fields=names):
            yield ImageBatch(chunk, [(np.arange(len(chunk)), pictures(batch[image], device))], batch[label])

    def describe(self, digest: str | None) -> dict[str, Any]:
        facts = {"split": self.split, "samples": self.count, "fingerprint": self.index.fingerprint}
        return facts | ({"view": dict(self.index.variant)} if self.index.variant else {})

    def shape(self) -> tuple[int, int, int]:
        return self._shape


class Outputs(Shards):
    """What a model makes of a split, or of `limit` samples of it in a fair order: reconstructions, or samples given a picture.

    `outputs_of`: (sample numbers int64 [n], batch of `fields` on the CPU) to [n, C, H, W] in [-1, 1].
    """

    def __init__(
        self,
        index: Index,
        split: str,
        name: str,
        field: str,
        outputs_of: OutputsOf,
        fields: Sequence[str],
        limit: int | None = None,
    ) -> None:
        """`name`: what the outputs are called in messages; `field`: the image that they are like."""
        super().__init__(index, split)
        self._outputs_of, self._fields = outputs_of, fields
        self._numbers = np.sort(fair_order(index.samples)[:limit])
        self.count, self.name, self.cache = len(self._numbers), f"the {name} of {index.where}", None
        made = index.fields[field]
        assert isinstance(made, ImageField), f"{field} is no image"
        self._shape = (made.channels, *made.sized)

    @property
    def labels(self) -> np.ndarray:
        """The class numbers of the samples that the outputs are made of, int64 [count]."""
        return self.index.labels[self._numbers]

    def describe(self, digest: str | None) -> dict[str, Any]:
        return {"kind": "outputs", "quantisation": "round", "given": super().describe(digest)}

    def batches(self, numbers: np.ndarray, reading: Reading, device: torch.device) -> Iterator[ImageBatch]:
        chunks = _chunks(numbers, reading)
        _, label = self.index.labelled_image
        asked = [self._numbers[chunk] for chunk in chunks]
        fields = list(dict.fromkeys([*self._fields, label]))
        batches = read_chunks(self.index, asked, workers=reading.workers, fields=fields)
        for chunk, (own, batch) in zip(chunks, batches, strict=True):
            images = to_uint8(self._outputs_of(own, batch).clamp(-1, 1))
            yield ImageBatch(chunk, [(np.arange(len(chunk)), images)], batch[label])


class ImagesFromFiles(ImageSet):
    """A folder, an archive or an npz, from anywhere."""

    def __init__(self, collection: ImageCollection) -> None:
        self._collection = collection
        self.count, self.name = collection.count, f"the images of {collection.path}"
        if collection.labels is not None:
            self.classes = collection.classes or ()
        self.key = {"loose": collection.key}  # the name from before; another would lose what is in the cache
        self.cache, self.hashed = Cache(None), True

    def batches(self, numbers: np.ndarray, reading: Reading, device: torch.device) -> Iterator[ImageBatch]:
        labels, (channels, height, width) = self._collection.labels, self.shape()
        slot_bytes = min(reading.batch, len(numbers)) * (height * width * channels + _BESIDE)
        for seen in read_images(self._collection, _chunks(numbers, reading), reading.workers, slot_bytes):
            groups = [(positions, images.to(device).permute(0, 3, 1, 2)) for positions, images in seen.groups]
            asked = None if labels is None else torch.from_numpy(labels[seen.numbers])
            yield ImageBatch(seen.numbers, groups, asked, seen.digests)

    def describe(self, digest: str | None) -> dict[str, Any]:
        height, width = self.size()
        facts: dict[str, Any] = {"kind": self._collection.kind, "samples": self.count, "size": [height, width]}
        return facts | ({"pixels_sha256": digest} if digest else {})

    def name_of(self, number: int) -> str:
        return self._collection.name(number)

    def shape(self) -> tuple[int, int, int]:
        (first,) = read_images(self._collection, [np.zeros(1, dtype=np.int64)], workers=0)
        _, height, width, channels = first.groups[0][1].shape
        return channels, height, width


class Relabelled(ImageSet):
    """A set whose labels are the numbers of `classes`: by name where it has names, else as they are."""

    def __init__(self, images: ImageSet, classes: tuple[str, ...], metric: str) -> None:
        if images.classes is None:
            raise UserError(
                f"evaluation.metrics: {metric} needs the class of each image, and {images.name} have none; lay them out as "
                "CLASS/*.png, give an npz with arr_1 or shards, or leave the metric out"
            )
        unknown = sorted(set(images.classes) - set(classes))
        if unknown:
            raise UserError(
                f"evaluation.metrics: {metric} compares class by class, and {images.name} have the class {unknown[0]!r}, "
                f"which the other side does not ({', '.join(classes[:5])}{', ...' if len(classes) > 5 else ''})"
            )
        self._images = images
        self._numbers = torch.tensor([classes.index(name) for name in images.classes], dtype=torch.int64)
        self.count, self.name, self.classes = images.count, images.name, classes
        self.cache, self.key = images.cache, {**images.key, "classes": list(classes)}
        self.hashed, self.kept = images.hashed, images.kept

    def batches(self, numbers: np.ndarray, reading: Reading, device: torch.device) -> Iterator[ImageBatch]:
        for batch in self._images.batches(numbers, reading, device):
            assert batch.labels is not None
            labels = self._numbers[batch.labels] if len(self._numbers) else batch.labels
            if int(labels.max()) >= len(self.classes or ()):
                raise UserError(
                    f"{self.name}: the label {int(labels.max())} is out of range: the other side has "
                    f"{len(self.classes or ())} classes, numbered from 0"
                )
            yield ImageBatch(batch.numbers, batch.groups, labels, batch.digests)

    def describe(self, digest: str | None) -> dict[str, Any]:
        return self._images.describe(digest)

    def name_of(self, number: int) -> str:
        return self._images.name_of(number)

    def shape(self) -> tuple[int, int, int]:
        return self._images.shape()
