"""What is kept of a fair random subset of a side: feature vectors, or the images themselves; and the hash of all of them."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster.passes import gather_by_number
from bigtrain.data.sources.collection import DIGEST_BYTES
from bigtrain.evaluation.images import fair_order
from bigtrain.evaluation.statistics.accumulator import (
    Accumulator,
    CachedAccumulator,
    KnownMoments,
    Seen,
    Share,
    select,
)


class StoredFeatures(CachedAccumulator):
    """The feature vectors of `count` images, in memory that is allocated once."""

    kind = "features"

    def __init__(self, count: int) -> None:
        self.first: int = count
        self.rows: Tensor | None = None
        """float32 [count, d] in ascending order of the images' numbers, on rank 0; None elsewhere and before the pass."""
        self._numbers = np.empty(0, dtype=np.int64)
        self._mine = torch.empty(0)
        self._filled = 0

    @property
    def wanted(self) -> Mapping[str, Any]:
        return {"stored": self.first}

    @property
    def vectors(self) -> Tensor:
        """`rows`, on rank 0 after the pass."""
        assert self.rows is not None, "there has been no pass, or this is not rank 0"
        return self.rows

    def begin(self, share: Share) -> None:
        self._numbers, self._filled = share.first(self.first), 0
        self._mine = torch.empty(len(self._numbers), share.dimensions, device=share.device, dtype=torch.float32)

    def update(self, seen: Seen) -> None:
        assert seen.features is not None
        chosen = seen.fair_positions < self.first
        count = int(chosen.sum())
        if count:
            self._mine[self._filled : self._filled + count] = select(seen.features, chosen)
            self._filled += count

    def reduce(self) -> None:
        self.rows = gather_by_number(self._numbers, self._mine)
        self._mine = torch.empty(0)

    def read(self, moments: KnownMoments) -> bool:
        if moments.features is None:
            return False
        chosen = np.sort(fair_order(len(moments.features))[: self.first])
        self.rows = moments.features[torch.from_numpy(chosen)].float()
        return True

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        assert self.rows is not None
        yield {}, {"features": self.rows}

    def restore(self, read: Callable[[Mapping[str, Any]], Mapping[str, Tensor] | None]) -> bool:
        tensors = read({})
        if tensors is not None:
            self.rows = tensors["features"]
        return tensors is not None


class StoredImages(Accumulator):
    """`count` images; on rank 0, the same at any number of ranks.

    images: uint8 [n, C, H, W] on the CPU, in ascending order of their `numbers`, int64 [n]; labels: int64 [n] on the CPU,
    where the set has any.
    """

    uses = frozenset({"images"})

    def __init__(self, count: int) -> None:
        self.first: int = count
        self.images: Tensor | None = None
        self.numbers = np.empty(0, dtype=np.int64)
        self.labels: Tensor | None = None
        self._share: Share | None = None
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []

    @property
    def wanted(self) -> Mapping[str, Any]:
        return {"images": self.first}

    def begin(self, share: Share) -> None:
        self._share, self._images, self._labels = share, [], []

    def update(self, seen: Seen) -> None:
        assert seen.images is not None, "images of several sizes cannot be kept"
        chosen = seen.fair_positions < self.first
        self._images.append(select(seen.images, chosen).cpu())
        if seen.labels is not None:
            self._labels.append(seen.labels[torch.from_numpy(chosen)])

    def reduce(self) -> None:
        assert self._share is not None
        share, device = self._share, self._share.device
        mine = share.first(self.first)
        images = torch.cat([torch.empty(0, *share.images.shape(), dtype=torch.uint8), *self._images]).to(device)
        gathered = gather_by_number(mine, images)
        self.images = None if gathered is None else gathered.cpu()
        order = gather_by_number(mine, torch.from_numpy(mine).to(device))
        self.numbers = self.numbers if order is None else order.cpu().numpy()
        if share.images.classes is not None:
            labels = torch.cat([torch.empty(0, dtype=torch.int64), *self._labels]).to(device)
            gathered_labels = gather_by_number(mine, labels)
            self.labels = None if gathered_labels is None else gathered_labels.cpu()
        self._images, self._labels = [], []


class PixelDigest(Accumulator):
    """sha256 over the hashes of all images' pixels, in ascending order of their numbers, for a set without a fingerprint."""

    uses = frozenset()

    def __init__(self) -> None:
        self.value: str | None = None
        """On rank 0, after the pass."""
        self._digests: list[bytes] = []
        self._share: Share | None = None

    def begin(self, share: Share) -> None:
        self._share, self._digests = share, []

    def update(self, seen: Seen) -> None:
        self._digests += seen.digests

    def reduce(self) -> None:
        assert self._share is not None
        rows = np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES).copy()
        digests = gather_by_number(self._share.numbers, torch.from_numpy(rows).to(self._share.device))
        self.value = None if digests is None else hashlib.sha256(digests.cpu().numpy().tobytes()).hexdigest()
