"""Accumulators: what metrics keep of the images that a pass shows them, in memory that does not grow with their number.

Metrics that need the same of a side share one accumulator, so that it is fed once. To add one: subclass `Accumulator`, or
`CachedAccumulator` where what it finds in a reference is to be kept for the next evaluation.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from bigtrain.evaluation.images import ImageSet

Use = Literal["features", "logits", "labels", "images"]


@dataclass(frozen=True)
class Share:
    """What a rank knows before a pass: the set, its own images `numbers` (int64, in the order in which they
    are shown: ascending, after what an earlier pass has kept) and their `fair_positions`
    (int64: which of `fair_order` each is), the device, and the sizes of what the feature network gives (0 without)."""

    images: ImageSet
    numbers: np.ndarray
    fair_positions: np.ndarray
    device: torch.device
    dimensions: int
    logits: int

    def first(self, count: int) -> np.ndarray:
        """The numbers of this rank's images that are among the first `count` of the fair order."""
        return self.numbers[self.fair_positions < count]


@dataclass(frozen=True)
class Seen:
    """A batch of a pass: n images, their `numbers` and `fair_positions`, int64 [n] each.

    images: uint8 [n, C, H, W] on the device, None if their sizes differ; labels: int64 [n] on the CPU, where the set has any;
    features: float32 [n, d] and logits: float32 [n, k], where the pass has a network that gives them; digests: a hash of each
    one's pixels, where the set has no fingerprint.
    """

    numbers: np.ndarray
    fair_positions: np.ndarray
    images: Tensor | None
    labels: Tensor | None
    features: Tensor | None
    logits: Tensor | None
    digests: list[bytes]


@dataclass(frozen=True)
class KnownMoments:
    """What a file says of features: mean float64 [d], covariance float64 [d, d] (over count - 1), and the features [n, d]
    themselves if it has them."""

    mean: Tensor
    covariance: Tensor
    features: Tensor | None


class Accumulator(ABC):
    """`uses`: what it needs of a batch; `first`: it needs the first so many images of the fair order, None: all.

    Two of one class are the same if `wanted` is equal. After `reduce`, rank 0 has what one process would have.
    """

    uses: ClassVar[frozenset[Use]] = frozenset({"features"})
    first: int | None = None

    @property
    def wanted(self) -> Mapping[str, Any]:
        """What it was asked for, as JSON."""
        return {}

    @abstractmethod
    def begin(self, share: Share) -> None:
        """Called on every rank before the pass."""

    @abstractmethod
    def update(self, seen: Seen) -> None:
        """Adds a batch. On a GPU it only queues work, where that can be helped."""

    @abstractmethod
    def reduce(self) -> None:
        """Adds up over ranks, after the pass; every rank calls it."""

    def read(self, moments: KnownMoments) -> bool:
        """Takes what it needs from a file of moments or features; whether that is all that it needs."""
        return False


class CachedAccumulator(Accumulator):
    """One whose result is kept in the cache of a reference, as entries of `kind`. Rank 0 calls `entries` and `restore`."""

    kind: ClassVar[str]

    @abstractmethod
    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """For each entry what its key has beside that of the set, the features and `wanted`; and its tensors."""

    @abstractmethod
    def restore(self, read: Callable[[Mapping[str, Any]], Mapping[str, Tensor] | None]) -> bool:
        """Whether all entries were there, and it then holds what they hold. `read`: an entry by what its key has."""


def select(rows: Tensor, chosen: np.ndarray) -> Tensor:
    """The rows [n, ...] where `chosen` (bool [n]) is true: by index, since a mask would make the host wait for a GPU."""
    return rows[torch.from_numpy(np.flatnonzero(chosen)).to(rows.device)]
