"""Feature vectors by class, on disk: an intra-class distance needs them one class at a time.

The moments of each class would take d^2 numbers in memory (33 GB for 1000 classes of 2048 features). The vectors themselves
take 4 d bytes an image on disk, as much as a small image, and only one class of them is in memory.
"""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import gather_by_number, together
from bigtrain.errors import UserError
from bigtrain.evaluation.statistics.accumulator import CachedAccumulator, Seen, Share


class ClassFeatures:
    """float32 vectors of `dimensions`, in the order in which they were added, in a temporary file."""

    def __init__(self, classes: int, dimensions: int) -> None:
        self._classes, self._dimensions = classes, dimensions
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as this object
        self._labels: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []

    def add(self, features: Tensor, labels: np.ndarray, numbers: np.ndarray) -> None:
        """Vectors [n, d] of images `numbers` of classes `labels`, int64 [n]. Raises UserError if the disk is full."""
        try:
            self._file.write(features.to("cpu", torch.float32).contiguous().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: cannot be written ({error.strerror}), where intra_fd keeps {4 * self._dimensions} "
                "bytes for each image on either side; set TMPDIR to a folder with more room, or leave it out of "
                "evaluation.metrics"
            ) from None
        self._labels.append(labels)
        self._numbers.append(numbers)

    def __len__(self) -> int:
        """Number of classes."""
        return self._classes

    def __iter__(self) -> Iterator[Tensor]:
        """The vectors of each class, float32 [n, d] on the CPU."""
        return (features for _, features in self._with_numbers())

    def _with_numbers(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        labels, numbers = (np.concatenate([*parts, np.empty(0, np.int64)]) for parts in (self._labels, self._numbers))
        for label in range(self._classes):
            positions = np.flatnonzero(labels == label)
            yield numbers[positions], self._read(positions)

    def _read(self, positions: np.ndarray) -> Tensor:
        """Reads row by row: a mapped file would count as memory, megabytes around each row that is read."""
        rows = np.empty((len(positions), self._dimensions), dtype=np.float32)
        for row, position in zip(rows, positions.tolist(), strict=True):
            read = os.preadv(self._file.fileno(), [row.data], position * row.nbytes)
            assert read == row.nbytes, (position, read)
        return torch.from_numpy(rows)

    def gathered(self, device: torch.device) -> "ClassFeatures":
        """On rank 0 the vectors of all ranks, each class in the order of the images' numbers; every rank calls it.

        Raises UserError, on all ranks, if rank 0's disk is full.
        """
        if world.size() == 1:
            return self
        merged = ClassFeatures(self._classes, self._dimensions)
        for label, (numbers, features) in enumerate(self._with_numbers()):
            together(
                "sorts features by class",
                partial(merged._add_class, label, gather_by_number(numbers, features.to(device))),
            )
        return merged

    def _add_class(self, label: int, rows: Tensor | None) -> None:
        if rows is not None:
            self.add(rows, np.full(len(rows), label), np.arange(len(rows)))


class FeaturesByClass(CachedAccumulator):
    """All feature vectors of a side, by class."""

    kind = "class_features"
    uses = frozenset({"features", "labels"})

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._found: ClassFeatures | None = None
        self._device = torch.device("cpu")

    @property
    def wanted(self) -> Mapping[str, Any]:
        return {"by_class": self._classes}

    @property
    def found(self) -> ClassFeatures:
        assert self._found is not None, "there has been no pass"
        return self._found

    def begin(self, share: Share) -> None:
        self._found, self._device = ClassFeatures(self._classes, share.dimensions), share.device

    def update(self, seen: Seen) -> None:
        assert seen.features is not None
        assert seen.labels is not None
        self.found.add(seen.features, seen.labels.numpy(), seen.numbers)

    def reduce(self) -> None:
        self._found = self.found.gathered(self._device)

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """One of each class: all of them may not fit into memory."""
        for number, features in enumerate(self.found):
            yield {"class": number}, {"features": features}

    def restore(self, read: Callable[[Mapping[str, Any]], Mapping[str, Tensor] | None]) -> bool:
        whole: ClassFeatures | None = None
        for number in range(self._classes):
            tensors = read({"class": number})
            if tensors is None:
                return False
            features = tensors["features"]
            if whole is None:
                whole = ClassFeatures(self._classes, features.shape[1])
            whole.add(features, np.full(len(features), number), np.arange(len(features)))
        self._found = whole
        return True
