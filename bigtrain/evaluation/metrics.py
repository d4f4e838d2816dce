"""What is measured. Each metric is a function of evidence that one pass over the samples gathers for all of them.

To add one: write the function, say in `METRICS` what evidence it needs, and give its name to `SampleMetricName`. What is
measured on real data without any sample is in held_out.py.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from bigtrain.evaluation.frechet import frechet_distance
from bigtrain.evaluation.moments import Moments

SampleMetricName = Literal["fid", "recall", "accuracy", "real_fid"]
EvidenceName = Literal["fake_moments", "fake_features", "recognised", "real_moments", "real_features"]

BLOCK_ELEMENTS = 2**23
"""Distances that `recall` holds at a time (64 MB)."""


def recall(real: Tensor, fake: Tensor, neighbours: int = 3) -> float:
    """The share of real features that lie among the fake ones (Kynkäänniemi et al. 2019, eq. 1 and 2).

    A real vector counts if it lies within some fake vector's ball, which reaches to that vector's `neighbours`-th
    nearest other fake vector. real [n, d], fake [m, d] with m > neighbours, of any float type on one device; computed
    in float64 there, in blocks of bounded memory.
    """
    assert len(fake) > neighbours, f"{len(fake)} fake features have no {neighbours}-th nearest neighbour each"
    centre = real.to(torch.float64).mean(0)  # distances are unchanged by it, and lose fewer digits
    real, fake = real.to(torch.float64) - centre, fake.to(torch.float64) - centre
    rows = max(1, BLOCK_ELEMENTS // len(fake))
    radii = torch.cat([_neighbour_distances(fake, start, rows, neighbours) for start in range(0, len(fake), rows)])
    covered = [(_squared_distances(block, fake) <= radii).any(1) for block in real.split(rows)]
    return float(torch.cat(covered).double().mean())


def _neighbour_distances(features: Tensor, start: int, rows: int, neighbours: int) -> Tensor:
    """Squared distance of rows start .. start + rows to their `neighbours`-th nearest other row, [rows]."""
    block = features[start : start + rows]
    distances = _squared_distances(block, features)
    here = torch.arange(len(block), device=features.device)
    distances[here, start + here] = torch.inf  # a row is not its own neighbour, but its duplicate is
    return distances.topk(neighbours, dim=1, largest=False).values[:, -1]


def _squared_distances(rows: Tensor, columns: Tensor) -> Tensor:
    """[len(rows), len(columns)]."""
    lengths = rows.square().sum(1)[:, None] + columns.square().sum(1)
    return torch.addmm(lengths, rows, columns.T, alpha=-2).clamp_(min=0)


@dataclass(frozen=True)
class Evidence:
    """What metrics may look at. A field is None unless some chosen metric needs it."""

    neighbours: int
    """The k of k-nearest-neighbour metrics."""
    samples: int
    """Generated images."""
    fake_moments: Moments | None = None
    fake_features: Tensor | None = None
    """float32 [samples, d], by index of the sample."""
    recognised: float | None = None
    """Share of the samples in which the judge sees the class that was asked for."""
    real_moments: Moments | None = None
    """Of the whole reference split."""
    real_features: Tensor | None = None
    """float32 [min(2 * samples, reference), d], in a fixed random order: any part of it is a fair sample."""


@dataclass(frozen=True)
class Metric:
    """A number from evidence. `needs`: the fields of Evidence that `value` looks at."""

    value: Callable[[Evidence], float]
    needs: frozenset[EvidenceName] = field(default_factory=frozenset)


def _fid(evidence: Evidence) -> float:
    assert evidence.fake_moments is not None
    assert evidence.real_moments is not None
    return _distance(evidence.fake_moments, evidence.real_moments)


def _real_fid(evidence: Evidence) -> float:
    """The FID of as many real images as there are samples against as many others (at most half of the reference)."""
    assert evidence.real_features is not None
    half = len(evidence.real_features) // 2
    return _distance(*(Moments.of(part) for part in evidence.real_features[: 2 * half].split(half)))


def _distance(moments1: Moments, moments2: Moments) -> float:
    return frechet_distance(moments1.mean(), moments1.covariance(), moments2.mean(), moments2.covariance())


def _recall(evidence: Evidence) -> float:
    assert evidence.real_features is not None
    assert evidence.fake_features is not None
    real = evidence.real_features[: evidence.samples].to(evidence.fake_features.device)
    return recall(real, evidence.fake_features, evidence.neighbours)


def _accuracy(evidence: Evidence) -> float:
    assert evidence.recognised is not None
    return evidence.recognised


METRICS: dict[SampleMetricName, Metric] = {
    "fid": Metric(_fid, frozenset({"fake_moments", "real_moments"})),
    "recall": Metric(_recall, frozenset({"fake_features", "real_features"})),
    "accuracy": Metric(_accuracy, frozenset({"recognised"})),
    "real_fid": Metric(_real_fid, frozenset({"real_features"})),
}
