"""The kernel distance, unlike a Frechet distance unbiased at any number of samples: KID in Inception's features (Binkowski et
al. 2018)."""

import logging
from typing import Any

import torch
from torch import Tensor

from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.randomness import generator

SUBSET_SIZE = 1000
"""Vectors in a subset, as in the paper and in clean-fid."""

log = logging.getLogger(__name__)


class KD(SampleMetric, name="kd"):
    """Of random subsets of each side's vectors; with the deviation over subsets."""

    lower_is_better = ("kd",)
    fewest = 2

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._stored = comparison.stored_features(self.name)

    def compute(self) -> dict[str, float | None]:
        mean, deviation = kernel_distance(
            *self._stored.vectors(), self.options.kd_subsets, self._subset_size(), self.options.seed
        )
        if deviation is None:
            log.warning("evaluation.%s", self._why_no_deviation())
        return {self.title: mean, f"{self.title}_std": deviation}

    def _why_no_deviation(self) -> str:
        if self.options.kd_subsets == 1:
            return f"kd_subsets: {self.title} of one subset has no deviation (null); take more"
        key, remedy = "kd_subset_size", "take fewer, or leave the key null"
        if self.options.kd_subset_size is None:
            key, remedy = self.limit(min(count for count, _ in self.comparison.images_a_side))[0], "take more"
        return (
            f"{key}: every subset holds all {min(self._stored.counts().values())} vectors of the smaller side, so {self.title} "
            f"has no deviation (null); {remedy}"
        )

    def _subset_size(self) -> int:
        smaller = min(self._stored.counts().values())
        asked = self.options.kd_subset_size
        return min(SUBSET_SIZE, max(2, smaller // 2)) if asked is None else min(asked, smaller)

    def facts(self) -> dict[str, Any]:
        return {
            "subsets": self.options.kd_subsets,
            "subset_size": self._subset_size(),
            "kernel": "(x.y / d + 1)^3",
            **self._stored.counts(),
        }


def polynomial_mmd(first: Tensor, second: Tensor) -> float:
    """The unbiased squared maximum mean discrepancy of [m, d] and [m, d] under k(x, y) = (x.y / d + 1)^3.

    Binkowski et al. 2018, section 4 (the kernel) and eq. 4 (the estimator); may be below zero. In float64.
    """
    assert first.shape == second.shape, (first.shape, second.shape)
    count, dimensions = first.shape
    assert count >= 2, "an unbiased estimate needs 2 vectors of each side"
    first, second = first.double(), second.double()

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / dimensions + 1) ** 3

    within = sum(values.sum() - values.trace() for values in (kernel(first, first), kernel(second, second)))
    return float(within / (count * (count - 1)) - 2 * kernel(first, second).mean())


def kernel_distance(
    real: Tensor, fake: Tensor, subsets: int, subset_size: int, seed: int
) -> tuple[float, float | None]:
    """(mean, standard deviation) of `polynomial_mmd` over random subsets of real [n, d] and fake [m, d].

    Subset s holds min(subset_size, n, m) vectors of each side, drawn without replacement, keyed by (seed, s). The deviation
    is that of a single subset's value, not the error of the mean: subsets overlap. It is None where there is but one subset, or
    where each holds the whole of a side and so says nothing of another draw of it.
    """
    size = min(subset_size, len(real), len(fake))
    values = []
    for subset in range(subsets):
        draws = generator(seed, "evaluation/kid", step=subset)  # the name from before: another would draw other subsets
        chosen = [torch.from_numpy(draws.permutation(len(side))[:size]).to(side.device) for side in (real, fake)]
        values.append(polynomial_mmd(real[chosen[0]], fake[chosen[1]]))
    distances = torch.tensor(values, dtype=torch.float64)
    alike = subsets == 1 or size == min(len(real), len(fake))
    return float(distances.mean()), None if alike else float(distances.std(correction=0))
