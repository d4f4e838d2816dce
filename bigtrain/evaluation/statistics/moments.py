"""Mean and covariance of features that are not stored: float64 sums, added up over ranks."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.evaluation.statistics.accumulator import CachedAccumulator, KnownMoments, Seen, Share, select

BLOCKS = 16
"""Blocks of rows in which outer products are added up: 53 % of the work of the full matrix."""


class Moments:
    """The count, the sum and the sum of outer products of feature vectors, in float64.

    Takes d^2 numbers whatever the count (33.6 MB at d = 2048), and is closer to the exact moments than features that
    are stored in float32 and averaged there.
    """

    def __init__(self, dimensions: int, device: torch.device | str = "cpu") -> None:
        self._count = torch.zeros((), dtype=torch.float64, device=device)
        self._total = torch.zeros(dimensions, dtype=torch.float64, device=device)
        self._outer = torch.zeros(dimensions, dimensions, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """The moments of stored features [n, d]."""
        moments = cls(features.shape[1], features.device)
        moments.add(features)
        return moments

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "Moments":
        """The inverse of `tensors`."""
        moments = cls(0)
        moments._count, moments._total, moments._outer = (tensors[name] for name in ("count", "total", "outer"))
        return moments

    def tensors(self) -> dict[str, Tensor]:
        """The sums so far, float64 on the CPU: count [], total [d], outer [d, d]."""
        return {"count": self._count.cpu(), "total": self._total.cpu(), "outer": self._symmetric().cpu()}

    def add(self, features: Tensor) -> None:
        """Adds features [n, d] of any float type. On a GPU this only queues work and does not wait for it."""
        values = features.to(torch.float64)
        self._count += len(values)
        self._total += values.sum(0)
        # Blocks of rows from the diagonal to the right: the lower triangle equals the upper (`_symmetric`).
        block = max(1, -(-len(self._total) // BLOCKS))
        for start in range(0, len(self._total), block):
            rows = values[:, start : start + block]
            self._outer[start : start + block, start:].addmm_(rows.T, values[:, start:])

    def _symmetric(self) -> Tensor:
        """The sum of outer products, from its upper triangle."""
        upper = self._outer.triu()
        return upper + upper.triu(1).T

    def reduce(self) -> None:
        """Adds up over ranks, in place; every rank then has the same moments. Ranks' counts may differ."""
        for tensor in (self._count, self._total, self._outer):
            world.sum_over_ranks(tensor)

    @property
    def count(self) -> int:
        return int(self._count)

    @property
    def dimensions(self) -> int:
        return len(self._total)

    def finite(self) -> bool:
        """Whether every feature so far was finite: a float64 sum of float32 values cannot overflow."""
        return bool(self._symmetric().isfinite().all())

    def mean(self) -> Tensor:
        """float64 [d]."""
        return self._total / self._count

    def covariance(self) -> Tensor:
        """float64 [d, d], unbiased (over count - 1), as numpy.cov. Needs a count of at least 2."""
        assert self.count >= 2, f"a covariance needs 2 feature vectors, not {self.count}"
        mean = self.mean()
        return (self._symmetric() - self._count * torch.outer(mean, mean)) / (self._count - 1)


class FeatureMoments(CachedAccumulator):
    """The moments of the features of all images of a side, or those that a file gives."""

    kind = "moments"

    def __init__(self) -> None:
        self._moments: Moments | None = None
        self._file: KnownMoments | None = None
        self._count = 0

    @property
    def wanted(self) -> Mapping[str, Any]:
        return {"moments": True}

    @property
    def moments(self) -> Moments:
        assert self._moments is not None, "there has been no pass"
        return self._moments

    def gaussian(self) -> tuple[Tensor, Tensor]:
        """(mean [d], covariance [d, d]), float64."""
        if self._file is not None:
            return self._file.mean, self._file.covariance
        return self.moments.mean(), self.moments.covariance()

    def begin(self, share: Share) -> None:
        self._moments, self._count = Moments(share.dimensions, share.device), share.images.count

    def update(self, seen: Seen) -> None:
        assert seen.features is not None
        self.moments.add(seen.features)

    def reduce(self) -> None:
        self.moments.reduce()
        assert self.moments.count == self._count, (self.moments.count, self._count)

    def read(self, moments: KnownMoments) -> bool:
        self._file = moments
        return True

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        yield {}, self.moments.tensors()

    def restore(self, read: Callable[[Mapping[str, Any]], Mapping[str, Tensor] | None]) -> bool:
        tensors = read({})
        if tensors is not None:
            self._moments = Moments.from_tensors(tensors)
        return tensors is not None


class HalfMoments(CachedAccumulator):
    """The moments of two disjoint random subsets of `count` images each."""

    kind = "half_moments"

    def __init__(self, count: int) -> None:
        self.of_each, self.first = count, 2 * count
        self._halves: tuple[Moments, Moments] | None = None

    @property
    def wanted(self) -> Mapping[str, Any]:
        return {"halves": self.of_each}

    @property
    def halves(self) -> tuple[Moments, Moments]:
        assert self._halves is not None, "there has been no pass"
        return self._halves

    def begin(self, share: Share) -> None:
        self._halves = (Moments(share.dimensions, share.device), Moments(share.dimensions, share.device))

    def update(self, seen: Seen) -> None:
        assert seen.features is not None
        for half, moments in enumerate(self.halves):
            moments.add(select(seen.features, seen.fair_positions // self.of_each == half))

    def reduce(self) -> None:
        for moments in self.halves:
            moments.reduce()

    def entries(self) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        yield (
            {},
            {f"{half}/{name}": value for half in range(2) for name, value in self.halves[half].tensors().items()},
        )

    def restore(self, read: Callable[[Mapping[str, Any]], Mapping[str, Tensor] | None]) -> bool:
        tensors = read({})
        if tensors is None:
            return False
        first, second = (
            Moments.from_tensors({name: tensors[f"{half}/{name}"] for name in ("count", "total", "outer")})
            for half in range(2)
        )
        self._halves = (first, second)
        return True
