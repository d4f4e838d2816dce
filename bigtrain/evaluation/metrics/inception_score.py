"""The Inception Score, from sums that do not grow with the number of samples."""

import torch
from torch import Tensor

from bigtrain.cluster import world


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
