"""Metrics by nearest neighbours in feature space: precision, recall, density and coverage.

Distances are computed in float64, in blocks of bounded memory, from features [n, d] of any float type on one device.
"""

from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

BLOCK_ELEMENTS = 2**23
"""Distances in memory at a time (64 MB)."""


NeighbourMetric = Literal["precision", "recall", "density", "coverage"]


def measure_neighbourhoods(
    real: Tensor,
    fake: Tensor,
    wanted: Collection[NeighbourMetric],
    recall_neighbours: int = 3,
    coverage_neighbours: int = 5,
) -> dict[NeighbourMetric, float]:
    """The `wanted` metrics of real features [n, d] and fake ones [m, d], from one pass over the distances between them.

    A vector's ball reaches to its k-th nearest other vector of its own side; a side whose balls are used needs more than k
    vectors.

    precision: the share of fake vectors in some real ball; recall: of real vectors in some fake ball (Kynkäänniemi et al.
    2019, eq. 1 and 2; k = `recall_neighbours`). density: the mean number of real balls around a fake vector, divided by k: 1 in
    expectation for equal distributions, and it may be larger; coverage: the share of real balls with some fake vector in them
    (Naeem et al. 2020, eq. 3 and 4; k = `coverage_neighbours`).
    """
    real, fake = centred(real, fake)
    depths = [recall_neighbours] if "precision" in wanted else []
    depths += [coverage_neighbours] if {"density", "coverage"}.intersection(wanted) else []
    real_radii = _radii(real, depths)
    fake_radii = _radii(fake, [recall_neighbours] if "recall" in wanted else [])
    inside = torch.zeros((), dtype=torch.float64, device=real.device)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
    recalled, reached = [], []
    rows = block_rows(fake)
    for start in range(0, len(real), rows):
        distances = squared_distances(real[start : start + rows], fake)
        if "recall" in wanted:
            recalled.append((distances <= fake_radii[recall_neighbours]).any(1))
        if "precision" in wanted:
            precise |= (distances <= real_radii[recall_neighbours][start : start + rows, None]).any(0)
        if "density" in wanted or "coverage" in wanted:
            within = distances <= real_radii[coverage_neighbours][start : start + rows, None]
            inside += within.sum()
            reached.append(within.any(1))
    values: dict[NeighbourMetric, float] = {}
    if "precision" in wanted:
        values["precision"] = float(precise.double().mean())
    if recalled:
        values["recall"] = float(torch.cat(recalled).double().mean())
    if reached:
        values["density"] = float(inside) / (coverage_neighbours * len(fake))
        values["coverage"] = float(torch.cat(reached).double().mean())
    return values


class Neighbourhoods:
    """The `wanted` metrics of vectors that are known later: `vectors()` gives (real [n, d], fake [m, d])."""

    def __init__(
        self, vectors: Callable[[], tuple[Tensor, Tensor]], recall_neighbours: int, coverage_neighbours: int
    ) -> None:
        self._vectors, self._neighbours = vectors, (recall_neighbours, coverage_neighbours)
        self.wanted: list[NeighbourMetric] = []

    @cached_property
    def values(self) -> dict[NeighbourMetric, float]:
        """All of them at once."""
        return measure_neighbourhoods(*self._vectors(), self.wanted, *self._neighbours)


def recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> float:
    """The recall of `measure_neighbourhoods`."""
    return measure_neighbourhoods(real, fake, ["recall"], neighbours)["recall"]


def centred(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64, without the mean of the real vectors."""
    centre = real.to(torch.float64).mean(0)  # does not change distances, and loses fewer digits
    return real.to(torch.float64) - centre, fake.to(torch.float64) - centre


def block_rows(columns: Tensor) -> int:
    """How many rows of distances to these columns are computed at a time."""
    return max(1, BLOCK_ELEMENTS // len(columns))


def _radii(features: Tensor, depths: Sequence[int]) -> dict[int, Tensor]:
    """By each k of `depths`, the squared distance of each row to its k-th nearest other row, [n]."""
    if not depths:
        return {}
    deepest = max(depths)
    assert len(features) > deepest, f"{len(features)} features have no {deepest}-th nearest neighbour each"
    rows = block_rows(features)
    nearest = torch.cat([_nearest_in(features, start, rows, deepest) for start in range(0, len(features), rows)])
    return {depth: nearest[:, depth - 1] for depth in depths}


def _nearest_in(features: Tensor, start: int, rows: int, count: int) -> Tensor:
    """Ascending squared distances of rows start .. start + rows to the `count` other rows nearest to each."""
    block = features[start : start + rows]
    distances = squared_distances(block, features)
    here = torch.arange(len(block), device=features.device)
    distances[here, start + here] = torch.inf  # a row is not its own neighbour, but its duplicate is
    return distances.topk(count, dim=1, largest=False).values


def squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """float64 [len(rows), len(columns)]."""
    lengths = rows.square().sum(1)[:, None] + columns.square().sum(1)
    return torch.addmm(lengths, rows, columns.T, alpha=-2).clamp_(min=0)
