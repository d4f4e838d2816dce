"""Negative log-likelihood of held-out samples in bits per dimension, or a bound of it."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.metrics.metric import HeldOutMetric, Split, standard_error


class BitsPerDim(HeldOutMetric, name="bits_per_dim"):
    """With its standard error; nats, the mean over samples; and under bits_per_dim_terms every other term of the likelihood, in
    bits per dimension: a number, or a list if the term is a vector."""

    measured_on = "likelihood"
    lower_is_better = ("bits_per_dim",)

    def __init__(self, split: Split) -> None:
        super().__init__(split)
        self._sums: dict[str, Tensor] = {}
        self._squares = torch.zeros((), dtype=torch.float64, device=split.device)

    def update(self, seen: Mapping[str, Tensor]) -> None:
        """`seen`: float64 tensors whose leading dimension is n: "nats" of each sample, and its terms."""
        for name, values in seen.items():
            assert values.dtype == torch.float64, f"the term {name} is {values.dtype}, not float64"
            self._sums[name] = self._sums[name] + values.sum(0) if name in self._sums else values.sum(0)
        self._squares.add_(seen["nats"].square().sum())

    def reduce(self) -> None:
        own_shapes = {name: tuple(total.shape) for name, total in self._sums.items()}
        shapes = next(filter(None, world.gather_objects(own_shapes)))  # a rank may have had no sample at all
        nothing = {
            name: torch.zeros(shape, dtype=torch.float64, device=self._squares.device) for name, shape in shapes.items()
        }
        self._sums = {name: world.sum_over_ranks(self._sums.get(name, nothing[name])) for name in sorted(shapes)}
        world.sum_over_ranks(self._squares)

    def compute(self) -> dict[str, Any]:
        count, scale = self.split.samples, self.split.dimensions * math.log(2)
        means = {name: total / count for name, total in self._sums.items()}
        nats = float(means.pop("nats"))
        if not math.isfinite(nats):
            raise UserError(
                f"evaluation.metrics: bits_per_dim of {self.split.index.path} is not finite: the weights have diverged"
            )
        error = standard_error(count, nats, float(self._squares) / count)
        result: dict[str, Any] = {
            "bits_per_dim": nats / scale,
            "bits_per_dim_standard_error": None if error is None else error / scale,
            "nats": nats,
        }
        if means:
            result["bits_per_dim_terms"] = {name: (mean / scale).tolist() for name, mean in means.items()}
        return result

    def facts(self) -> dict[str, Any]:
        return {"dimensions": self.split.dimensions}
