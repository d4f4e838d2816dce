"""The share of held-out samples whose class the model tells: for a class-conditional generative model, by p(sample | class)."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import HeldOutMetric, Split


class HeldOutAccuracy(HeldOutMetric, name="held_out_accuracy"):
    measured_on = "classification"
    higher_is_better = ("held_out_accuracy",)
    shares = ("held_out_accuracy",)

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self._right, self._not_finite = torch.zeros(2, dtype=torch.float64, device=split.device).unbind()

    def update(self, seen: Mapping[str, Tensor]) -> None:
        """`seen`: "scores" [n, classes] and "label" int64 [n]."""
        self._right += (seen["scores"].argmax(1) == seen["label"]).sum()
        self._not_finite += (~seen["scores"].isfinite()).sum()

    def reduce(self) -> None:
        for number in (self._right, self._not_finite):
            world.sum_over_ranks(number)

    def compute(self) -> dict[str, Any]:
        if self._not_finite:
            raise UserError(
                f"evaluation.metrics: held_out_accuracy of {self.split.index.path} is not finite: the weights have diverged"
            )
        return {"held_out_accuracy": int(self._right) / self.split.samples}
