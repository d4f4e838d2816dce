"""The Frechet distance of the samples' features and the whole reference's: FID in Inception's (Heusel et al. 2017)."""

from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.frechet import frechet_distance
from bigtrain.evaluation.statistics.moments import FeatureMoments


class FD(SampleMetric, name="fd"):
    lower_is_better = ("fd",)
    estimates_covariance = True

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._fake = comparison.samples.accumulate(FeatureMoments())
        self._real = comparison.real.accumulate(lambda count: FeatureMoments(), self.name)

    def compute(self) -> dict[str, float]:
        return {self.title: frechet_distance(*self._fake.gaussian(), *self._real.gaussian())}
