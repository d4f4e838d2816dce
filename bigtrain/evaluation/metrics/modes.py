"""How drawn points meet the modes of a mixture of normals, such as eight on a circle, where each class of the data is a mode.

A drawn point is good if it is within three standard deviations of the mode that is nearest in these units; a mode is captured
if a good point is nearest to it (Srivastava et al. 2017, arXiv:1705.07761; Lin et al. 2018, arXiv:1712.04086, who draw 2,500).
The reverse KL is that of the shares q of the good points at the modes to the shares p of the data: sum q log(q / p), in nats.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import PointMetric, Split

_DEVIATIONS = 3.0
"""How far a good point is from its mode, at most."""


class Modes(PointMetric, name="modes"):
    """`modes`: how many are captured; `good_points`: a share of the drawn ones; `reverse_kl`: None if no point is good.

    A mode's middle and its standard deviation, one for all numbers of a point, are those of the data of its class.
    """

    higher_is_better = ("modes", "good_points")
    lower_is_better = ("reverse_kl",)
    shares = ("good_points",)

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        classes = split.index.classes
        if len(classes) < 2:
            raise UserError(
                f"evaluation.metrics: modes are the classes of the points, and {split.index.where} has no classes; leave it out"
            )
        if smallest := [name for name, count in zip(classes, split.index.class_counts, strict=True) if count < 2]:
            raise UserError(
                f"evaluation.metrics: modes needs two points of each class, and {split.index.where} has fewer of "
                f"{smallest[0]}; leave it out"
            )
        numbers = split.index.fields[split.target].described()["shape"][0]
        self._counts = torch.zeros(len(classes), dtype=torch.float64, device=split.device)
        self._sums = torch.zeros(len(classes), numbers, dtype=torch.float64, device=split.device)
        self._squares = torch.zeros_like(self._sums)
        self._drawn: list[Tensor] = []
        self._good = torch.zeros_like(self._counts)

    def update_reference(self, points: Tensor, labels: Tensor) -> None:
        points = points.double()
        self._counts.index_add_(0, labels, torch.ones_like(points[:, 0]))
        self._sums.index_add_(0, labels, points)
        self._squares.index_add_(0, labels, points.square())

    def update(self, seen: Tensor) -> None:
        self._drawn.append(seen.double())

    def reduce(self) -> None:
        for total in (self._counts, self._sums, self._squares):
            world.sum_over_ranks(total)
        middles, deviations = self._modes()
        self._check_apart(middles, deviations)
        for points in self._drawn:
            distances, nearest = (torch.cdist(points, middles) / deviations).min(1)
            self._good += torch.bincount(nearest[distances <= _DEVIATIONS], minlength=len(middles))
        world.sum_over_ranks(self._good)

    def compute(self) -> dict[str, Any]:
        good = float(self._good.sum())
        q, p = self._good / max(good, 1.0), self._counts / self._counts.sum()
        return {
            "modes": float((self._good > 0).sum()),
            "good_points": good / self.split.samples,
            "reverse_kl": float(torch.special.xlogy(q, q / p).sum()) if good else None,
        }

    def facts(self) -> Mapping[str, Any]:
        return {"of": len(self._counts), "deviations": _DEVIATIONS}

    def _modes(self) -> tuple[Tensor, Tensor]:
        """The middles [modes, numbers] and the standard deviations [modes]."""
        counts = self._counts.unsqueeze(1)
        middles = self._sums / counts
        variances = (self._squares - counts * middles.square()).clamp(min=0) / (counts - 1)
        return middles, variances.mean(1).sqrt()

    def _check_apart(self, middles: Tensor, deviations: Tensor) -> None:
        """Raises UserError, on every rank, if a point could be good of two modes: then classes are no modes."""
        between = torch.cdist(middles, middles) / (deviations.unsqueeze(0) + deviations.unsqueeze(1))
        if bool((between.fill_diagonal_(torch.inf) <= _DEVIATIONS).any()):
            raise UserError(
                f"evaluation.metrics: modes are classes that lie {_DEVIATIONS:.0f} standard deviations apart, and those of "
                f"{self.split.index.where} do not; leave it out"
            )
