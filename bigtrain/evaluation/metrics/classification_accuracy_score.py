"""The share of held-out images that a classifier recognises which was trained on the samples (Ravuri & Vinyals 2019)."""

from typing import Any

from bigtrain.cluster.passes import on_main
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.subsets import StoredImages
from bigtrain.features.classifier import Classifier, measure_accuracy, train_on_images


class ClassificationAccuracyScore(SampleMetric, name="classification_accuracy_score"):
    needs = frozenset({"evaluator", "labels", "images"})
    needs_reference = False
    higher_is_better = ("classification_accuracy_score",)

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self._classes = comparison.classes(self.name)
        self._trained_on = min(self.options.max_features, comparison.count)
        self._samples = comparison.samples.accumulate(StoredImages(self._trained_on))
        self._accuracy = 0.0

    def check(self) -> None:
        if self.comparison.data.test is None:
            raise UserError(
                "evaluation.metrics: classification_accuracy_score is tested on held-out images, and data.validation names "
                "none; give them, or leave it out"
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
