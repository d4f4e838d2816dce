"""The share of the samples that an independent classifier assigns to the class that they were conditioned on."""

import torch

from bigtrain.cluster import world
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.accumulator import Accumulator, Seen, Share


class ClassAccuracy(SampleMetric, name="class_accuracy"):
    needs = frozenset({"evaluator", "labels", "images"})
    needs_reference = False
    higher_is_better = ("class_accuracy",)
    shares = ("class_accuracy",)

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        comparison.classes(self.name)
        self._recognised = comparison.samples.accumulate(Recognised(comparison))

    def compute(self) -> dict[str, float]:
        return {"class_accuracy": int(self._recognised.count) / self.comparison.count}


class Recognised(Accumulator):
    """The number of images whose predicted class is their label."""

    uses = frozenset({"images", "labels"})

    def __init__(self, comparison: Comparison) -> None:
        self._comparison = comparison
        self.count = torch.zeros((), dtype=torch.float64)

    def begin(self, share: Share) -> None:
        self.count = torch.zeros((), dtype=torch.float64, device=share.device)

    def update(self, seen: Seen) -> None:
        assert seen.images is not None
        assert seen.labels is not None
        predicted = self._comparison.evaluator.predict(seen.images)
        self.count += (predicted == seen.labels.to(predicted.device)).sum()

    def reduce(self) -> None:
        world.sum_over_ranks(self.count)
