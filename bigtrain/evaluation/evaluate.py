"""Evaluation of images: one distributed pass over them serves every metric.

A distance means nothing without the features, the number of samples, the reference and the way the samples were drawn. So
every result holds them as its protocol, and two results are comparable when their protocols are equal.
A model's images are compared as the uint8 that a user would save, [-1, 1] rounded to 8 bits, at their own size.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, Stopped, on_main
from bigtrain.data.splits import image_shape
from bigtrain.errors import UserError
from bigtrain.evaluation.images import ImageSet, Relabelled, fair_order
from bigtrain.evaluation.metrics.definitions import (
    METRICS,
    Evidence,
    Need,
    SampleMetricName,
    Settings,
)
from bigtrain.evaluation.metrics.neighbour_picture import neighbour_picture
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData, Reference, survey_reference
from bigtrain.evaluation.result import EvaluationResult, versions
from bigtrain.evaluation.sample_counts import check_enough
from bigtrain.evaluation.survey import Findings, Survey, Wants, nearest
from bigtrain.features.classifier import (
    Classifier,
    check_classes,
    find_classifier,
    measure_accuracy,
    train_on_images,
)
from bigtrain.features.network import Features
from bigtrain.features.opening import open_features
from bigtrain.sizes import size_flag, size_text

MINIMUM_IMAGES: dict[SampleMetricName, int] = {"kid": 2, "two_sample_test": 4, "real_fid": 2}
"""The fewest images of each side from which a metric can be computed."""

log = logging.getLogger(__name__)


def evaluate(
    images: ImageSet,
    real: RealData,
    metrics: Sequence[SampleMetricName],
    options: EvaluationOptions,
    device: torch.device,
    workers: int,
    protocol: Mapping[str, Any],
    should_stop: Callable[[], bool] = lambda: False,
    *,
    labels: Labels | None = None,
    keep_moments: bool = False,
) -> EvaluationResult | None:
    """Measures `metrics` of images; every rank calls it, and every rank gets the same result.

    `workers`: reading processes per rank; `protocol`: what the caller knows of how the images were made (JSON values);
    `labels`: called if a metric counts the images of each class; `keep_moments`: whether to return the images' moments,
    whatever the metrics. The result is a JSON dict: each number by name and, under "protocol", everything that the numbers
    depend on (they do not depend on the number of ranks).

    Returns None if `should_stop` (called at every call of a network, on every rank) is true on any rank. Raises UserError on
    all ranks. Networks, generators and precision settings of the run are left as they were.
    """
    reading = Reading(options.batch_size, workers, should_stop)
    try:
        evaluation = _Evaluation(images, labels, real, metrics, options, device, reading, keep_moments)
        evaluation.open_features()
        return evaluation.run(protocol)
    except Stopped:
        return None


def check(
    images: ImageSet,
    labels: Labels,
    real: RealData,
    metrics: Sequence[SampleMetricName],
    options: EvaluationOptions,
    device: torch.device,
) -> None:
    """Raises UserError, on all ranks, for what `evaluate` would refuse before it reads an image; every rank calls it.

    A classifier that gives the features is trained only if a file of moments must be checked against them.
    """
    evaluation = _Evaluation(images, labels, real, metrics, options, device, Reading(options.batch_size, 0), False)
    if options.features != "classifier" or (real.reference is not None and real.reference.moments is not None):
        evaluation.open_features()


class _Evaluation:
    """The steps of one evaluation, in order: checks, networks, the reference, the images, what is computed from both."""

    def __init__(
        self,
        images: ImageSet,
        labels: Labels | None,
        real: RealData,
        metrics: Sequence[SampleMetricName],
        options: EvaluationOptions,
        device: torch.device,
        reading: Reading,
        keep_moments: bool,
    ) -> None:
        self.images, self.real, self.metrics, self.options = images, real, metrics, options
        self.device, self.reading, self.keep_moments = device, reading, keep_moments
        self._check_reference()
        self._check_sizes()
        self._check_ranks_agree()
        self._check_classifiers()
        self._check_counts()
        sets = self.images, self._real_images()
        self.classes = self._agree_on_classes()
        self.fewest = self._count_classes(labels, *sets) if self.needs("fake", "classes") else {}
        self.features: Features | None = None

    def _real_images(self) -> ImageSet | None:
        return None if self.real.reference is None else self.real.reference.images

    def needs(self, side: Literal["fake", "real"], need: Need) -> bool:
        """Whether a chosen metric needs it of that side."""
        return any(need in getattr(METRICS[metric], side) for metric in self.metrics)

    # -- checks before any image is read ----------------------------------------------------------------------------

    def _check_reference(self) -> None:
        for metric in self.metrics:
            needs = METRICS[metric].real
            if not needs:
                continue
            if self.real.reference is None:
                raise UserError(
                    f"evaluation.reference: {metric} compares images with others; give an index of shards, a folder, a tar or "
                    "zip, an npz of samples or of moments"
                )
            gaussian = self.real.reference.moments
            available = {"moments"} | (
                {"features"} if gaussian is not None and gaussian.features is not None else set()
            )
            if self.real.reference.images is None and not needs <= available:
                raise UserError(
                    f"evaluation.metrics: {metric} needs the reference's images, and {gaussian and gaussian.path} holds "
                    "only moments; give the images, or set evaluation.metrics=[fid]"
                )

    def _check_sizes(self) -> None:
        real = self._real_images()
        size, reference_size = self.images.size(), None if real is None else real.size()
        if reference_size is not None and size != reference_size and not self.options.allow_mixed_sizes:
            raise UserError(
                f"evaluation.reference: {self.images.name} are {size[0]} x {size[1]}, the reference's {reference_size[0]} x "
                f"{reference_size[1]}; compare images of one size (python launch/shard.py SOURCE OUT --size "
                f"{size_flag(size)}), or let the feature network resize each with evaluation.allow_mixed_sizes=true"
            )

        if self.options.allow_mixed_sizes and (
            self.needs("fake", "evaluator") or self.needs("fake", "images") or self._pictured()
        ):
            raise UserError(
                "evaluation.allow_mixed_sizes: class_accuracy, classification_accuracy_score and nearest_neighbours use the "
                "images themselves, which must be of one size; leave them out, or make the images one size"
            )

    def _check_ranks_agree(self) -> None:
        real = self._real_images()
        counts = world.gather_objects((self.images.count, 0 if real is None else real.count))
        if len(set(counts)) > 1:
            raise UserError(
                f"{self.images.name}, or the reference's, are not the same on all machines ({sorted(set(counts))} files); "
                "evaluate from a folder that all share"
            )

    def _counts(self) -> list[tuple[int, str]]:
        """(number of images, what they are called in messages) of each side."""
        sides = [(self.images.count, self.images.name)]
        real = self._real_images()
        reference = self.real.reference
        if real is not None:
            sides.append((real.count, real.name))
        elif reference is not None and reference.moments is not None and reference.moments.features is not None:
            sides.append((len(reference.moments.features), reference.name))
        return sides

    def _check_counts(self) -> None:
        for count, name in self._counts():
            self._check_least(count, name)
        if self.keep_moments and self.images.count < 2:
            raise UserError(
                f"--save-moments: a covariance needs 2 images, not {self.images.count} ({self.images.name})"
            )

    def _check_least(self, count: int, name: str) -> None:
        available = min(count, self.options.max_features)
        for metric, least in MINIMUM_IMAGES.items():
            if metric in self.metrics and available < least:
                raise UserError(
                    f"evaluation.samples: {metric} needs {least} images of each side, not {available} ({name}); take more, or "
                    "leave it out of evaluation.metrics"
                )
        for metrics, key in (
            ({"precision", "recall"}, "recall_neighbours"),
            ({"density", "coverage"}, "coverage_neighbours"),
        ):
            wanted = metrics.intersection(self.metrics)
            if wanted and min(count, self.options.max_features) <= getattr(self.options, key):
                raise UserError(
                    f"evaluation.samples: {min(wanted)} needs more images than neighbours, not {count} ({name}) with "
                    f"evaluation.{key}={getattr(self.options, key)}; take more, or leave it out of evaluation.metrics"
                )

    def _agree_on_classes(self) -> tuple[str, ...]:
        """The class names that the labels of both sides number; relabels both sides if a metric uses labels."""
        labelled = [metric for metric in self.metrics if "labels" in METRICS[metric].fake]
        reference = self._real_images()
        if not labelled:
            return ()
        classes = self.real.train.classes if self.real.train is not None else (reference and reference.classes)
        if not classes:
            raise UserError(
                f"evaluation.metrics: {labelled[0]} needs a reference whose classes have names: an index of shards, or a "
                "folder laid out as CLASS/*.png; or leave it out"
            )
        if self.images.classes != classes:
            self.images = Relabelled(self.images, classes, labelled[0])
        if self.needs("real", "labels") and reference is not None and reference.classes != classes:
            assert self.real.reference is not None
            relabelled = Relabelled(reference, classes, labelled[0])
            self.real = replace(self.real, reference=replace(self.real.reference, images=relabelled))
        return classes

    def _needs_features(self) -> bool:
        sides: tuple[Literal["fake", "real"], ...] = ("fake", "real")
        needed: tuple[Need, ...] = ("moments", "features", "classes", "halves", "logits", "neighbours")
        return self.keep_moments or any(self.needs(side, need) for side in sides for need in needed)

    def _needs_evaluator(self) -> bool:
        return self.needs("fake", "evaluator") or self.needs("fake", "images")

    def _check_classifiers(self) -> None:
        """Raises UserError if data that a classifier is trained or tested on is missing, before one is trained."""
        train = self.real.train
        if self._needs_features() and self.options.features == "classifier" and train is not None:
            check_classes(train, "features")
        if not self._needs_evaluator():
            return
        if train is None:
            raise UserError(
                "evaluation.metrics: class_accuracy and classification_accuracy_score need labelled real images; give the "
                "index of shards as evaluation.reference, or leave them out"
            )
        check_classes(train, "evaluator")
        size = image_shape(train)[1:]
        if self.images.size() != size:
            raise UserError(
                f"evaluation.metrics: class_accuracy and classification_accuracy_score need images of the size of {train.path} "
                f"({size_text(size)} pixels); leave them out"
            )
        if self.needs("fake", "images") and self.real.test is None:
            raise UserError(
                "evaluation.metrics: classification_accuracy_score is tested on held-out images, and data.validation names "
                "none; give them, or leave it out"
            )

    def _count_classes(self, labels: Labels | None, images: ImageSet, real: ImageSet | None) -> dict[str, int]:
        """Number of images of the rarest class, by side. Raises UserError if a class has too few for a covariance."""
        reference = self.real.reference
        assert labels is not None, "a metric of classes is asked for where labels are known"
        assert real is not None
        assert reference is not None
        assert reference.labels is not None
        fewest = {}
        for side, name, numbers, names in (
            ("real", "the reference", reference.labels(), real.classes),
            ("fake", images.name, labels(), images.classes),
        ):
            class_numbers = np.array([self.classes.index(known) for known in names or self.classes])
            counts = np.bincount(class_numbers[numbers[numbers < len(class_numbers)]], minlength=len(self.classes))
            if counts.min() < 2:
                raise UserError(
                    f"evaluation.metrics: intra_fid needs 2 images of each class, and {name} have fewer of "
                    f"{self.classes[int(counts.argmin())]!r}; take more samples, or leave it out"
                )
            fewest[side] = int(counts.min())
        return fewest

    # -- networks ---------------------------------------------------------------------------------------------------

    def open_features(self) -> None:
        """Opens or trains the feature network, where one is needed, and checks that it fits."""
        if not self._needs_features():
            return
        features = open_features(
            self.options.features,
            self.options.weights,
            self.images.size(),
            self.reading,
            self.device,
            train=self.real.train,
            validation=self.real.validation,
        )
        if self.needs("fake", "logits") and not features.facts.get("classes"):
            raise UserError(
                f"evaluation.metrics: inception_score needs a network that predicts classes, which {features.name} "
                "(evaluation.features) does not; choose another, or leave it out"
            )
        if self.real.reference is not None and self.real.reference.moments is not None:
            self.real.reference.moments.check(features)
        distances = [metric for metric in self.metrics if METRICS[metric].fake & {"moments", "classes"}]
        if distances:
            count, name = min(self._counts())
            check_enough(features, count, name, distances[0], "evaluation.samples")
        if self.fewest and min(self.fewest.values()) <= features.dimensions and world.is_main():
            log.warning(
                "evaluation.metrics: intra_fid has as few as %d images of a class in %d feature dimensions: it has a large "
                "bias; compare it only with others of exactly this protocol",
                min(self.fewest.values()),
                features.dimensions,
            )
        self.features = features

    def _find_evaluator(self) -> Classifier | None:
        if not self._needs_evaluator():
            return None
        assert self.real.train is not None
        return find_classifier(self.real.train, self.real.validation, "evaluator", self.reading, self.device)

    # -- the passes -------------------------------------------------------------------------------------------------

    def run(self, protocol: Mapping[str, Any]) -> EvaluationResult:
        evaluator = self._find_evaluator()
        real = self._survey_real()
        fake = Survey(
            self.images, self._wants(), self.features, evaluator, self.options.allow_mixed_sizes, self.device
        ).run(self.reading)
        accuracy = self._score_classification(fake) if self.needs("fake", "images") else None
        neighbours, picture = self._find_neighbours(fake) if self.needs("fake", "neighbours") else ([], None)

        def measure() -> dict[str, Any]:
            evidence = Evidence(
                metrics=self.metrics,
                settings=self._settings(),
                samples=self.images.count,
                fake=fake,
                real=real,
                real_gaussian=self._real_gaussian(real),
                classes=self.classes,
                classification_accuracy=accuracy,
                neighbours=neighbours,
            )
            result: dict[str, Any] = {}
            for metric in self.metrics:
                result |= METRICS[metric].values(evidence)
            return result | {"protocol": self._protocol(protocol, fake, real, evaluator)}

        return EvaluationResult(on_main(measure), picture, fake.moments if world.is_main() else None)

    def _settings(self) -> Settings:
        return Settings(**{name: getattr(self.options, name) for name in Settings.__dataclass_fields__})

    def _survey_real(self) -> Findings:
        reference = self.real.reference
        if reference is None or reference.images is None:
            return self._stored_features(reference)
        count = reference.images.count
        stored = min(self.options.max_features, self.images.count, count)
        wants = Wants(
            moments=self.needs("real", "moments") and reference.moments is None,
            by_class=len(self.classes) if self.needs("real", "classes") else 0,
            halves=min(self.images.count, count // 2) if self.needs("real", "halves") else 0,
            stored=stored if self.needs("real", "features") else 0,
        )
        if wants == Wants():
            return Findings()
        assert self.features is not None
        return survey_reference(reference.images, wants, self.features, self.options.allow_mixed_sizes, self.reading)

    def _stored_features(self, reference: Reference | None) -> Findings:
        """The features of a reference that is a file of features; for any other reference, nothing."""
        if reference is None or reference.moments is None or reference.moments.features is None:
            return Findings()
        features = reference.moments.features
        count = min(self.options.max_features, self.images.count)
        return Findings(stored=features[torch.from_numpy(np.sort(fair_order(len(features))[:count]))].float())

    def _wants(self) -> Wants:
        count = min(self.options.max_features, self.images.count)
        return Wants(
            moments=self.keep_moments or self.needs("fake", "moments"),
            by_class=len(self.classes) if self.needs("fake", "classes") else 0,
            stored=count if self.needs("fake", "features") else 0,
            images=count if self.needs("fake", "images") else self._pictured(),
            splits=min(self.options.score_splits, self.images.count) if self.needs("fake", "logits") else 0,
            recognised=self.needs("fake", "evaluator"),
            digest=self.images.hashed,
        )

    def _pictured(self) -> int:
        """Number of samples that are shown with their neighbours."""
        return min(self.options.pictured_samples, self.images.count) if self.needs("fake", "neighbours") else 0

    def _real_gaussian(self, real: Findings) -> tuple[Tensor, Tensor] | None:
        if self.real.reference is not None and self.real.reference.moments is not None:
            return self.real.reference.moments.mean, self.real.reference.moments.covariance
        return None if real.moments is None else (real.moments.mean(), real.moments.covariance())

    def _score_classification(self, fake: Findings) -> float:
        """The held-out accuracy of a classifier trained on the samples (Ravuri & Vinyals 2019), by rank 0."""

        def score() -> float:
            assert fake.images is not None
            assert fake.image_labels is not None
            assert self.real.test is not None
            network = train_on_images(
                fake.images, fake.image_labels, len(self.classes), "evaluator", self.reading, self.device
            )
            return measure_accuracy(Classifier(network, "evaluator", {}, self.device), self.real.test, self.reading)

        return on_main(score)

    def _find_neighbours(self, fake: Findings) -> tuple[list[dict[str, Any]], Image.Image | None]:
        """The reference's images nearest to each pictured sample, and their picture; on rank 0, empty on the others."""
        reference = self._real_images()
        assert reference is not None
        assert self.features is not None
        features, device = self.features, self.device
        count = min(self.options.pictured_neighbours, reference.count)
        shown = np.isin(fake.image_numbers, fair_order(self.images.count)[: self._pictured()])
        samples = None if fake.images is None else fake.images[torch.from_numpy(shown)]

        def queries() -> Tensor:
            assert samples is not None
            return features(samples.to(device)).features.cpu()

        vectors = on_main(queries).to(device)
        nearby = nearest(reference, vectors, count, features, self.reading)
        if nearby is None or samples is None:
            return [], None
        return neighbour_picture(samples, self.images, fake.image_numbers[shown], reference, *nearby, self.reading)

    # -- the protocol -----------------------------------------------------------------------------------------------

    def _protocol(
        self, drawing: Mapping[str, Any], fake: Findings, real: Findings, evaluator: Classifier | None
    ) -> dict[str, Any]:
        """Everything that the numbers depend on, and nothing that they do not."""
        options, reference = self.options, self.real.reference
        facts: dict[str, Any] = {
            "samples": self.images.count,
            "seed": options.seed,
            "image_size": list(self.images.size()) if not options.allow_mixed_sizes else None,
            "versions": versions(),
            "images": self.images.describe(fake.digest),
        }
        if self.features is not None:
            facts["features"] = self.features.protocol(self._channels())
            if reference is not None and any(METRICS[metric].real for metric in self.metrics):
                facts["reference"] = reference.describe(real.digest)
        if evaluator is not None:
            facts["evaluator"] = evaluator.protocol([self.images.channels])
        if "intra_fid" in self.metrics:
            # The samples' smallest class depends on the seed, so it is part of the result instead.
            facts["intra_fid"] = {"fewest_of_a_class": {"real": self.fewest["real"]}}
        stored = [0 if side.stored is None else len(side.stored) for side in (real, fake)]
        for metric, settings in self._settings_by_metric(stored).items():
            if metric in self.metrics:
                facts[metric] = settings
        clash = facts.keys() & drawing.keys()
        assert not clash, f"the caller's protocol has keys that the evaluation sets: {sorted(clash)}"
        return {**drawing, **facts}

    def _channels(self) -> set[int]:
        """The numbers of channels that images of the two sides have."""
        real = self._real_images()
        return {self.images.channels} | (set() if real is None else {real.channels})

    def _settings_by_metric(self, stored: list[int]) -> dict[str, dict[str, Any]]:
        options = self.options
        kept = {"real": stored[0], "fake": stored[1]}
        return {
            "recall": {"neighbours": options.recall_neighbours, **kept},
            "precision": {"neighbours": options.recall_neighbours, **kept},
            "density": {"neighbours": options.coverage_neighbours, **kept},
            "coverage": {"neighbours": options.coverage_neighbours, **kept},
            "kid": {
                "subsets": options.kid_subsets,
                "subset_size": min(options.kid_subset_size, *stored),
                "kernel": "(x.y / d + 1)^3",
                **kept,
            },
            "inception_score": {"splits": min(options.score_splits, self.images.count)},
            "two_sample_test": {"classifier": "k nearest neighbours", **kept},
            "classification_accuracy_score": {
                "trained_on": min(options.max_features, self.images.count),
                "tested_on": self.real.test.fingerprint if self.real.test is not None else None,
            },
            "real_fid": {"images_a_side": self._half_count()},
        }

    def _half_count(self) -> int:
        reference = self._real_images()
        return min(self.images.count, reference.count // 2) if reference is not None else 0
