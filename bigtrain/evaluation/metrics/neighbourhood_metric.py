"""What precision, recall, density and coverage share."""

import logging
from typing import Any, ClassVar, cast

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.neighbourhoods import NeighbourMetric

IMAGES_A_NEIGHBOUR = 10
"""With fewer images the balls, which reach to the k-th neighbour, hold a good share of all images."""

log = logging.getLogger(__name__)


class NeighbourhoodMetric(SampleMetric):
    """`neighbours_key`: the option that says which neighbour the balls reach to."""

    neighbours_key: ClassVar[str]

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._metric = cast(NeighbourMetric, self.name)
        self._neighbourhoods = comparison.neighbourhoods(self._metric)
        self._stored = comparison.stored_features(self.name)

    @property
    def _neighbours(self) -> int:
        return int(getattr(self.options, self.neighbours_key))

    def check_count(self, count: int, name: str) -> None:
        key, count = self.limit(count)
        if count <= self._neighbours:
            raise UserError(
                f"evaluation.{key}: {self.name} needs more images than neighbours, not {count} ({name}) with "
                f"evaluation.{self.neighbours_key}={self._neighbours}; take more, or leave it out of evaluation.metrics"
            )
        if count < IMAGES_A_NEIGHBOUR * self._neighbours and world.is_main():
            log.warning(
                "evaluation.%s: %s of %d images (%s) with balls that reach to neighbour %d is near what any samples would "
                "score; take at least %d images",
                self.neighbours_key,
                self.name,
                count,
                name,
                self._neighbours,
                IMAGES_A_NEIGHBOUR * self._neighbours,
            )

    def compute(self) -> dict[str, float]:
        return {self.name: self._neighbourhoods.values[self._metric]}

    def facts(self) -> dict[str, Any]:
        return {"neighbours": self._neighbours, **self._stored.counts()}
