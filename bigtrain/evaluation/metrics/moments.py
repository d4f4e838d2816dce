"""Mean and covariance of features that are not stored: float64 sums, added up over ranks."""

import torch
from torch import Tensor

from bigtrain.cluster import world

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
    def from_tensors(cls, tensors: dict[str, Tensor]) -> "Moments":
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
