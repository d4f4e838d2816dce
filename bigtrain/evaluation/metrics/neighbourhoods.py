"""Metrics by nearest neighbours in feature space: precision, recall, density, coverage, a two-sample test.

Distances are computed in float64, in blocks of bounded memory, from features [n, d] of any float type on one device.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from bigtrain.randomness import generator

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
    real, fake = _centred(real, fake)
    depths = [recall_neighbours] if "precision" in wanted else []
    depths += [coverage_neighbours] if {"density", "coverage"}.intersection(wanted) else []
    real_radii = _radii(real, depths)
    fake_radii = _radii(fake, [recall_neighbours] if "recall" in wanted else [])
    inside = torch.zeros((), dtype=torch.float64, device=real.device)
    precise = torch.zeros(len(fake), dtype=torch.bool, device=real.device)
    recalled, reached = [], []
    rows = _rows(fake)
    for start in range(0, len(real), rows):
        distances = _squared_distances(real[start : start + rows], fake)
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


def recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> float:
    """The recall of `measure_neighbourhoods`."""
    return measure_neighbourhoods(real, fake, ["recall"], neighbours)["recall"]


@dataclass(frozen=True)
class TwoSampleTest:
    """`accuracy`: of telling real from fake on held-out vectors, 0.5 in expectation for equal distributions; `p_value`: the
    probability of an accuracy this high if they are equal; `tested`: number of held-out vectors; `neighbours`: number that
    vote."""

    accuracy: float
    p_value: float
    tested: int
    neighbours: int


def two_sample_test(real: Tensor, fake: Tensor, seed: int) -> TwoSampleTest:
    """C2ST-KNN (Lopez-Paz & Oquab 2017, sections 3 and 5): a classifier by the vote of k neighbours in one half of the
    vectors, tested on the other half. k is the square root of the number of training vectors, made odd so that no vote ties.

    As many real as fake vectors are taken, min(n, m) of each; `seed` keys which, and the halves. For equal distributions
    the accuracy is about N(1/2, 1 / (4 tested)), which gives the p-value.
    """
    count = min(len(real), len(fake))
    assert count >= 4, f"a two-sample test needs 4 vectors of each side, not {count}"
    half = count // 2
    # Not the first ones: vectors come in the order of their images, which may be sorted by class.
    order = [
        torch.from_numpy(generator(seed, "evaluation/c2st", index=side).permutation(len(values))[:count])
        for side, values in enumerate((real, fake))
    ]
    sides = _centred(*(values[chosen.to(values.device)] for values, chosen in zip((real, fake), order, strict=True)))
    train = torch.cat([values[:half] for values in sides])
    test = torch.cat([values[half:] for values in sides])
    root = math.isqrt(len(train))
    neighbours = max(1, root if root % 2 else root - 1)
    votes = [
        (_squared_distances(block, train).topk(neighbours, dim=1, largest=False).indices >= half).double().mean(1)
        for block in test.split(_rows(train))
    ]
    predicted_fake = torch.cat(votes) > 0.5
    is_fake = torch.arange(len(test), device=test.device) >= count - half
    accuracy = float((predicted_fake == is_fake).double().mean())
    z = (accuracy - 0.5) * 2 * math.sqrt(len(test))
    return TwoSampleTest(accuracy, 0.5 * math.erfc(z / math.sqrt(2)), len(test), neighbours)


class Nearest:
    """The `count` vectors of a stream that are nearest to each of `queries` [q, d]; the stream is not kept."""

    def __init__(self, queries: Tensor, count: int) -> None:
        self._queries = queries.double()
        self._count = count
        self.distances = torch.full((len(queries), count), torch.inf, dtype=torch.float64, device=queries.device)
        """Squared, float64 [q, count], ascending."""
        self.numbers = torch.full((len(queries), count), -1, dtype=torch.int64, device=queries.device)
        """int64 [q, count]."""

    def add(self, numbers: Tensor, features: Tensor) -> None:
        """Vectors [n, d] and their numbers, int64 [n]."""
        # From differences, not from products: the distance of a copy must be exactly 0, not the root of a rounding error.
        distances = torch.stack([(features.double() - query).square().sum(1) for query in self._queries])
        self.merge(distances, numbers.to(distances.device).expand(len(distances), -1))

    def merge(self, distances: Tensor, numbers: Tensor) -> None:
        """Adds candidates, [q, n] each; of equal distances the lower number counts as nearer."""
        distances, numbers = torch.cat([self.distances, distances], 1), torch.cat([self.numbers, numbers], 1)
        by_number = numbers.argsort(dim=1, stable=True)
        by_distance = distances.gather(1, by_number).argsort(dim=1, stable=True)[:, : self._count]
        chosen = by_number.gather(1, by_distance)
        self.distances, self.numbers = distances.gather(1, chosen), numbers.gather(1, chosen)


def _centred(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    centre = real.to(torch.float64).mean(0)  # does not change distances, and loses fewer digits
    return real.to(torch.float64) - centre, fake.to(torch.float64) - centre


def _rows(columns: Tensor) -> int:
    return max(1, BLOCK_ELEMENTS // len(columns))


def _radii(features: Tensor, depths: Sequence[int]) -> dict[int, Tensor]:
    """By each k of `depths`, the squared distance of each row to its k-th nearest other row, [n]."""
    if not depths:
        return {}
    deepest = max(depths)
    assert len(features) > deepest, f"{len(features)} features have no {deepest}-th nearest neighbour each"
    rows = _rows(features)
    nearest = torch.cat([_nearest_in(features, start, rows, deepest) for start in range(0, len(features), rows)])
    return {depth: nearest[:, depth - 1] for depth in depths}


def _nearest_in(features: Tensor, start: int, rows: int, count: int) -> Tensor:
    """Ascending squared distances of rows start .. start + rows to the `count` other rows nearest to each."""
    block = features[start : start + rows]
    distances = _squared_distances(block, features)
    here = torch.arange(len(block), device=features.device)
    distances[here, start + here] = torch.inf  # a row is not its own neighbour, but its duplicate is
    return distances.topk(count, dim=1, largest=False).values


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """[len(rows), len(columns)]."""
    lengths = rows.square().sum(1)[:, None] + columns.square().sum(1)
    return torch.addmm(lengths, rows, columns.T, alpha=-2).clamp_(min=0)
