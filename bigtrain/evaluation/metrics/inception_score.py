"""The Inception Score (Salimans et al. 2016), from sums that do not grow with the number of samples."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.accumulator import Accumulator, Seen, Share
from bigtrain.features.network import Features

LEAST_IN_SPLIT = 10
"""Images in a split. The score of n images is n at most, and 1 of one image, whatever it shows."""
LEAST_SHARE = 50
"""Fewer images in a split than a fiftieth of the classes are refused."""

log = logging.getLogger(__name__)


class InceptionScore(SampleMetric, name="inception_score"):
    """Needs no reference; of any network that predicts classes. With its deviation over splits of the samples."""

    higher_is_better = ("inception_score",)
    needs_reference = False

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._splits = self.options.score_splits
        self._scores = comparison.samples.accumulate(SplitScores(self._splits))

    def check(self) -> None:
        self._check_splits(LEAST_IN_SPLIT)

    def check_features(self, features: Features) -> None:
        classes = features.facts.get("classes")
        if not classes:
            raise UserError(
                f"evaluation.metrics: inception_score needs a network that predicts classes, which {features.name} "
                "(evaluation.features) does not; choose another, or leave it out"
            )

        self._check_splits(max(LEAST_IN_SPLIT, classes // LEAST_SHARE))
        in_split = self.comparison.count // self._splits
        if in_split < classes and world.is_main():
            log.warning(
                "evaluation.score_splits: inception_score of splits of %d images, where the network knows %d classes, is far "
                "below that of more images; compare it only with others of exactly this protocol",
                in_split,
                classes,
            )

    def _check_splits(self, least: int) -> None:
        count = self.comparison.count
        if count // self._splits < least:
            remedy = "evaluation.score_splits=1, or " if count >= least and self._splits > 1 else ""
            raise UserError(
                f"evaluation.score_splits: inception_score of {count} images in {self._splits} splits would say how few they "
                f"are (a split of n images scores n at most); take {remedy}at least {least * self._splits} images, or leave it "
                "out of evaluation.metrics"
            )

    def compute(self) -> dict[str, float | None]:
        mean, deviation = self._scores.sums.score()
        return {"inception_score": mean, "inception_score_std": deviation if self._splits > 1 else None}

    def facts(self) -> dict[str, Any]:
        return {"splits": self._splits}


class SplitScores(Accumulator):
    """The sums of `count` random splits of the samples, which differ by one image at most."""

    uses = frozenset({"logits"})

    def __init__(self, count: int) -> None:
        self._count = count
        self._sums: ScoreSums | None = None
        self._images = 0

    @property
    def wanted(self) -> Mapping[str, Any]:
        return {"splits": self._count}

    @property
    def sums(self) -> "ScoreSums":
        assert self._sums is not None, "there has been no pass"
        return self._sums

    def begin(self, share: Share) -> None:
        self._sums, self._images = ScoreSums(self._count, share.logits, share.device), share.images.count

    def update(self, seen: Seen) -> None:
        assert seen.logits is not None
        # Bounds like i * N // splits, so that splits differ by one image at most.
        split = ((seen.fair_positions + 1) * self._count - 1) // self._images
        self.sums.add(seen.logits, torch.from_numpy(split).to(seen.logits.device))

    def reduce(self) -> None:
        self.sums.reduce()


class ScoreSums:
    """exp(E KL(p(y|x) || p(y))) of each split of the samples (Salimans et al. 2016, section 4).

    The mean divergence is E sum p log p - sum q log q with q = E p, so each split needs its count, the sum of its p and
    the sum of its p log p: float64, added up over ranks.
    """

    def __init__(self, splits: int, classes: int, device: torch.device | str = "cpu") -> None:
        self._counts = torch.zeros(splits, dtype=torch.float64, device=device)
        self._sums = torch.zeros(splits, classes, dtype=torch.float64, device=device)
        self._negentropies = torch.zeros(splits, dtype=torch.float64, device=device)

    def add(self, logits: Tensor, split: Tensor) -> None:
        """Logits [n, classes] before the softmax, and the split that each belongs to, int64 [n]."""
        log_p = logits.double().log_softmax(1)
        p = log_p.exp()
        # A product with indicators, since index_add_ on a GPU sums in an undefined order.
        member = (split[:, None] == torch.arange(len(self._counts), device=split.device)).double()
        self._counts += member.sum(0)
        self._sums += member.T @ p
        self._negentropies += member.T @ (p * log_p).sum(1)

    def reduce(self) -> None:
        """Adds up over ranks, in place."""
        for sums in (self._counts, self._sums, self._negentropies):
            world.sum_over_ranks(sums)

    def score(self) -> tuple[float, float]:
        """(mean, standard deviation) over the splits, as papers print it. Every split needs a sample."""
        assert bool((self._counts > 0).all()), "a split without samples has no score"
        q = self._sums / self._counts[:, None]
        scores = (self._negentropies / self._counts - torch.special.xlogy(q, q).sum(1)).exp()
        return float(scores.mean()), float(scores.std(correction=0))
