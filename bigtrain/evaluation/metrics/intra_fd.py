"""The mean over classes of the Frechet distance within each (Miyato & Koyama 2018, section 4)."""

import logging
from typing import Any

import numpy as np

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.statistics.class_features import FeaturesByClass
from bigtrain.evaluation.statistics.frechet import frechet_distance_of_features
from bigtrain.features.network import Features

log = logging.getLogger(__name__)


class IntraFD(SampleMetric, name="intra_fd"):
    """Also gives the distance of each class, and the number of samples of the rarest."""

    needs = frozenset({"features", "labels"})
    lower_is_better = ("intra_fd",)
    estimates_covariance = True

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        comparison.real.images_for(self.name)
        self._classes = comparison.classes(self.name, both_sides=True)
        self._fake = comparison.samples.accumulate(FeaturesByClass(len(self._classes)))
        self._real = comparison.real.accumulate(lambda count: FeaturesByClass(len(self._classes)), self.name)
        self._fewest: dict[str, int] = {}

    def check(self) -> None:
        """Counts each class on both sides: a covariance needs two images."""
        samples, real = self.comparison.samples, self.comparison.real
        assert samples.labels is not None, "a metric of classes is asked for where labels are known"
        assert real.reference is not None
        assert real.reference.labels is not None
        for side, name, numbers, names in (
            ("real", "the reference", real.reference.labels(), real.opened_classes),
            ("fake", samples.images.name, samples.labels(), samples.opened_classes),
        ):
            class_numbers = np.array([self._classes.index(known) for known in names or self._classes])
            counts = np.bincount(class_numbers[numbers[numbers < len(class_numbers)]], minlength=len(self._classes))
            if counts.min() < 2:
                raise UserError(
                    f"evaluation.metrics: intra_fd needs 2 images of each class, and {name} have fewer of "
                    f"{self._classes[int(counts.argmin())]!r}; take more samples, or leave it out"
                )
            self._fewest[side] = int(counts.min())

    def check_features(self, features: Features) -> None:
        fewest = min(self._fewest.values())
        if fewest <= features.dimensions and world.is_main():
            log.warning(
                "evaluation.metrics: intra_fd has as few as %d images of a class in %d feature dimensions: it has a large "
                "bias; compare it only with others of exactly this protocol",
                fewest,
                features.dimensions,
            )

    def compute(self) -> dict[str, Any]:
        values, counts = {}, []
        for name, fake, real in zip(self._classes, self._fake.found, self._real.found, strict=True):
            values[name] = frechet_distance_of_features(fake, real)
            counts.append(len(fake))
        return {
            self.title: sum(values.values()) / len(values),
            f"{self.title}_by_class": values,
            f"{self.title}_fewest_of_a_class": min(counts),
        }

    def facts(self) -> dict[str, Any]:
        # The samples' smallest class depends on the seed, so it is part of the result instead.
        return {"fewest_of_a_class": {"real": self._fewest["real"]}}
