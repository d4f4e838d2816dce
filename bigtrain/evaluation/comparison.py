"""What metrics of samples are made from: both sides, the options, and the networks that look at images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from bigtrain.cluster.passes import Reading
from bigtrain.errors import UserError
from bigtrain.evaluation.images import ImageSet
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData
from bigtrain.evaluation.sides import ReferenceSide, SampleSide
from bigtrain.evaluation.statistics.neighbourhoods import Neighbourhoods, NeighbourMetric
from bigtrain.evaluation.statistics.subsets import StoredFeatures
from bigtrain.features.classifier import Classifier, find_classifier
from bigtrain.features.network import Features
from bigtrain.features.opening import open_features


@dataclass(frozen=True)
class StoredSides:
    """The feature vectors of a random subset of each side, after the passes on rank 0."""

    samples: StoredFeatures
    real: StoredFeatures

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(real [n, d], fake [m, d]), float32 on one device."""
        return self.real.vectors.to(self.samples.vectors.device), self.samples.vectors

    def counts(self) -> dict[str, int]:
        """How many there are of each, for the protocol."""
        return {"real": len(self.real.vectors), "fake": len(self.samples.vectors)}


class Comparison:
    """Samples and a reference. Metrics ask both sides to accumulate what they need before the passes, and read it after them.

    Networks are there only after `open_features` and `find_evaluator`, and only if a metric uses them.
    """

    def __init__(
        self,
        images: ImageSet,
        labels: Labels | None,
        data: RealData,
        options: EvaluationOptions,
        device: torch.device,
        reading: Reading,
    ) -> None:
        self.samples, self.real = SampleSide(images, labels), ReferenceSide(data.reference)
        self.data, self.options, self.device, self.reading = data, options, device, reading
        self.label = options.features_label
        self._features: Features | None = None
        self._evaluator: Classifier | None = None
        self._neighbourhoods: Neighbourhoods | None = None

    @property
    def count(self) -> int:
        """Number of samples."""
        return self.samples.images.count

    @property
    def images_a_side(self) -> list[tuple[int, str]]:
        """(number of images or of vectors, what they are called in messages) of each side."""
        sides = [(self.count, self.samples.images.name)]
        reference = self.real.reference
        if self.real.images is not None:
            sides.append((self.real.images.count, self.real.images.name))
        elif reference is not None and reference.moments is not None and reference.moments.features is not None:
            sides.append((len(reference.moments.features), reference.name))
        return sides

    # -- what metrics ask for before the passes ---------------------------------------------------------------------

    def stored_features(self, metric: str) -> StoredSides:
        """The feature vectors of a random subset of each side. Raises UserError."""
        most = min(self.options.max_features, self.count)
        real = self.real.accumulate(lambda count: StoredFeatures(min(most, count)), metric)
        return StoredSides(self.samples.accumulate(StoredFeatures(most)), real)

    def neighbourhoods(self, metric: NeighbourMetric) -> Neighbourhoods:
        """What computes the metrics of neighbourhoods together, since they share the distances. Raises UserError."""
        stored = self.stored_features(metric)
        if self._neighbourhoods is None:
            neighbours = self.options.recall_neighbours, self.options.coverage_neighbours
            self._neighbourhoods = Neighbourhoods(stored.vectors, *neighbours)
        self._neighbourhoods.wanted.append(metric)
        return self._neighbourhoods

    def classes(self, metric: str, both_sides: bool = False) -> tuple[str, ...]:
        """The names of the classes that the samples' labels number from now on, and the reference's where `both_sides`.

        Raises UserError if a side has no such labels.
        """
        real = self.real.images
        classes = self.data.train.classes if self.data.train is not None else (real and real.classes)
        if not classes:
            raise UserError(
                f"evaluation.metrics: {metric} needs a reference whose classes have names: an index of shards, or a "
                "folder laid out as CLASS/*.png; or leave it out"
            )
        self.samples.relabel(classes, metric)
        if both_sides:
            self.real.relabel(classes, metric)
        return classes

    # -- networks ---------------------------------------------------------------------------------------------------

    @property
    def features(self) -> Features:
        assert self._features is not None, "the feature network has not been opened"
        return self._features

    @property
    def has_features(self) -> bool:
        return self._features is not None

    @property
    def evaluator(self) -> Classifier:
        """The classifier that says which class a sample shows."""
        assert self._evaluator is not None, "the evaluator has not been found"
        return self._evaluator

    @property
    def has_evaluator(self) -> bool:
        return self._evaluator is not None

    def open_features(self) -> Features:
        """Opens the feature network, or trains it. Every rank calls it. Raises UserError and Stopped."""
        self._features = open_features(
            self.options.features,
            self.options.weights,
            self.samples.images.size(),
            self.reading,
            self.device,
            train=self.data.train,
            validation=self.data.validation,
        )
        if self.real.reference is not None and self.real.reference.moments is not None:
            self.real.reference.moments.check(self._features)
        return self._features

    def find_evaluator(self) -> None:
        """Trains the evaluator, or takes it from the cache. Every rank calls it. Raises UserError and Stopped."""
        assert self.data.train is not None
        self._evaluator = find_classifier(self.data.train, self.data.validation, "evaluator", self.reading, self.device)

    # -- the passes -------------------------------------------------------------------------------------------------

    def collect(self) -> None:
        """Makes the passes over both sides. Every rank calls it. Raises UserError and Stopped."""
        mixed = self.options.allow_mixed_sizes
        self.real.collect(self._features, mixed, self.reading)
        self.samples.collect(self._features, mixed, self.device, self.reading)
