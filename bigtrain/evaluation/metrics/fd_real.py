"""The Frechet distance of real images and other real images: what a perfect model would score with so many samples."""

from typing import Any

from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.frechet import frechet_distance
from bigtrain.evaluation.statistics.moments import HalfMoments


class FDReal(SampleMetric, name="fd_real"):
    """As many images of either side as there are samples, at most half the reference."""

    fewest = 2
    of_real_images_only = True

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._real = comparison.real.accumulate(lambda count: HalfMoments(min(comparison.count, count // 2)), self.name)

    def compute(self) -> dict[str, float]:
        first, second = self._real.halves
        return {self.title: frechet_distance(first.mean(), first.covariance(), second.mean(), second.covariance())}

    def facts(self) -> dict[str, Any]:
        return {"images_a_side": self._real.of_each}
