"""Feature vectors by class, on disk: what an intra-class FID looks at, one class at a time.

The moments of every class would take d^2 numbers each in memory (33 GB for 1000 classes of 2048 features). The vectors
themselves take 4 d bytes an image, which is what a small image takes, and memory holds one class of them.
"""

import os
import tempfile
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import gather_by_number, together
from bigtrain.errors import UserError


class ClassFeatures:
    """float32 vectors of `dimensions`, in the order in which they were added, in a file that vanishes with the process."""

    def __init__(self, classes: int, dimensions: int) -> None:
        self._classes, self._dimensions = classes, dimensions
        self._file = tempfile.TemporaryFile()  # noqa: SIM115, it lives as long as this object
        self._labels: list[np.ndarray] = []
        self._numbers: list[np.ndarray] = []

    def add(self, features: Tensor, labels: np.ndarray, numbers: np.ndarray) -> None:
        """Vectors [n, d] of images `numbers` of classes `labels`, int64 [n]. Raises UserError where the disk is full."""
        try:
            self._file.write(features.to("cpu", torch.float32).contiguous().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"{tempfile.gettempdir()}: cannot be written ({error.strerror}), where intra_fid keeps {4 * self._dimensions} "
                "bytes for each image on either side; set TMPDIR to a folder with more room, or leave it out of "
                "evaluation.metrics"
            ) from None
        self._labels.append(labels)
        self._numbers.append(numbers)

    def __len__(self) -> int:
        """How many classes there are."""
        return self._classes

    def __iter__(self) -> Iterator[Tensor]:
        """The vectors of each class, float32 [n, d] on the CPU."""
        return (features for _, features in self._with_numbers())

    def _with_numbers(self) -> Iterator[tuple[np.ndarray, Tensor]]:
        labels, numbers = (np.concatenate([*parts, np.empty(0, np.int64)]) for parts in (self._labels, self._numbers))
        for number in range(self._classes):
            places = np.flatnonzero(labels == number)
            yield numbers[places], self._read(places)

    def _read(self, places: np.ndarray) -> Tensor:
        """Row by row: a mapped file would count as memory, megabytes around each row that is looked at."""
        rows = np.empty((len(places), self._dimensions), dtype=np.float32)
        for row, place in zip(rows, places.tolist(), strict=True):
            read = os.preadv(self._file.fileno(), [row.data], place * row.nbytes)
            assert read == row.nbytes, (place, read)
        return torch.from_numpy(rows)

    def gathered(self, device: torch.device) -> "ClassFeatures":
        """On rank 0 those of all ranks, each class in the order of the images' numbers; every rank calls it.

        Raises UserError, on all ranks alike, where rank 0's disk is full.
        """
        if world.size() == 1:
            return self
        whole = ClassFeatures(self._classes, self._dimensions)
        for label, (numbers, features) in enumerate(self._with_numbers()):
            together(partial(whole._add_class, label, gather_by_number(numbers, features.to(device))))
        return whole

    def _add_class(self, label: int, rows: Tensor | None) -> None:
        if rows is not None:
            self.add(rows, np.full(len(rows), label), np.arange(len(rows)))
