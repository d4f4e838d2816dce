"""The share of held-out images that a classifier recognises which was trained on the samples (Ravuri & Vinyals 2019)."""

import logging
from typing import Any

from bigtrain.cluster import world
from bigtrain.cluster.passes import on_main
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.subsets import StoredImages
from bigtrain.features.classifier import Classifier, measure_accuracy, train_on_images

ENOUGH_A_CLASS = 10
"""Samples of each class: with fewer a classifier learns next to nothing of it."""

log = logging.getLogger(__name__)


class ClassificationAccuracyScore(SampleMetric, name="classification_accuracy_score"):
    needs = frozenset({"evaluator", "labels", "images"})
    needs_reference = False
    higher_is_better = ("classification_accuracy_score",)

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._classes = comparison.classes(self.name)
        _, self._trained_on = self.limit(comparison.count)
        self._samples = comparison.samples.accumulate(StoredImages(self._trained_on))
        self._accuracy = 0.0

    def check(self) -> None:
        if self.comparison.data.test is None:
            raise UserError(
                "evaluation.metrics: classification_accuracy_score is tested on held-out images, and data.validation names "
                "none; give them, or leave it out"
            )
        self._check_enough()

    def _check_enough(self) -> None:
        classes, (key, count) = len(self._classes), self.limit(self.comparison.count)
        if count < classes:
            raise UserError(
                f"evaluation.{key}: classification_accuracy_score of {count} samples of {classes} classes would say how few "
                "they are, as the classifier cannot see every class; take at least "
                f"{classes}, or leave it out of evaluation.metrics"
            )
        if count < ENOUGH_A_CLASS * classes and world.is_main():
            log.warning(
                "evaluation.%s: classification_accuracy_score of a classifier trained on %d samples of %d classes is far below "
                "that of more; compare it only with others of exactly this protocol, or take at least %d",
                key,
                count,
                classes,
                ENOUGH_A_CLASS * classes,
            )

    def reduce(self) -> None:
        """Rank 0 trains the classifier."""
        comparison = self.comparison

        def score() -> float:
            samples, test, reading = self._samples, comparison.data.test, comparison.reading
            assert samples.images is not None
            assert samples.labels is not None
            assert test is not None
            network = train_on_images(
                samples.images, samples.labels, len(self._classes), "evaluator", reading, comparison.device
            )
            return measure_accuracy(Classifier(network, "evaluator", {}, comparison.device), test, reading)

        self._accuracy = on_main("trains a classifier on the samples", score)

    def compute(self) -> dict[str, float]:
        return {"classification_accuracy_score": self._accuracy}

    def facts(self) -> dict[str, Any]:
        test = self.comparison.data.test
        return {"trained_on": self._trained_on, "tested_on": None if test is None else test.fingerprint}
