"""The list of metrics. Each is a function of the evidence that one pass over each side collects for all of them.

To add one: write the function, say in `METRICS` what it needs of each side, and add its name to `SampleMetricName`. Metrics of
real data that need no samples are in held_out.py.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from torch import Tensor

from bigtrain.evaluation.metrics.frechet import frechet_distance, frechet_distance_of_features
from bigtrain.evaluation.metrics.kernel_distance import kernel_distance
from bigtrain.evaluation.metrics.moments import Moments
from bigtrain.evaluation.metrics.neighbourhoods import NeighbourMetric, measure_neighbourhoods, two_sample_test
from bigtrain.evaluation.survey import Findings

SampleMetricName = Literal[
    "fid",
    "recall",
    "class_accuracy",
    "real_fid",
    "kid",
    "inception_score",
    "precision",
    "density",
    "coverage",
    "intra_fid",
    "classification_accuracy_score",
    "two_sample_test",
    "nearest_neighbours",
]
_NEIGHBOUR_METRICS = frozenset[NeighbourMetric](("precision", "recall", "density", "coverage"))
Need = Literal["moments", "features", "classes", "halves", "logits", "evaluator", "images", "neighbours", "labels"]


@dataclass(frozen=True)
class Settings:
    """The options that metrics depend on (EvaluationOptions)."""

    seed: int
    recall_neighbours: int
    coverage_neighbours: int
    kid_subsets: int
    kid_subset_size: int


@dataclass(frozen=True)
class Evidence:
    """What metrics are computed from; what no chosen metric needs is None."""

    metrics: Sequence[SampleMetricName]
    """The metrics to measure."""
    settings: Settings
    samples: int
    """Number of images that were evaluated."""
    fake: Findings
    real: Findings
    real_gaussian: tuple[Tensor, Tensor] | None = None
    """(mean, covariance) of the reference."""
    classes: tuple[str, ...] = ()
    classification_accuracy: float | None = None
    """Held-out accuracy of a classifier that was trained on the samples."""
    neighbours: list[dict[str, Any]] = field(default_factory=list)
    """For the pictured samples, the reference's images nearest to each."""

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """Features (real [n, d], fake [m, d]) on one device."""
        assert self.real.stored is not None
        assert self.fake.stored is not None
        return self.real.stored.to(self.fake.stored.device), self.fake.stored

    @cached_property
    def neighbourhoods(self) -> dict[NeighbourMetric, float]:
        """The chosen metrics of neighbourhoods, computed together because they share the distances."""
        wanted = _NEIGHBOUR_METRICS.intersection(self.metrics)
        settings = self.settings
        return measure_neighbourhoods(*self.stored, wanted, settings.recall_neighbours, settings.coverage_neighbours)


@dataclass(frozen=True)
class Metric:
    """`values`: numbers by name from evidence; `fake` and `real`: what it needs of the samples and of the reference."""

    values: Callable[[Evidence], dict[str, Any]]
    fake: frozenset[Need] = frozenset()
    real: frozenset[Need] = frozenset()


def _fid(evidence: Evidence) -> dict[str, Any]:
    assert evidence.fake.moments is not None
    assert evidence.real_gaussian is not None
    return {"fid": frechet_distance(*_gaussian(evidence.fake.moments), *evidence.real_gaussian)}


def _real_fid(evidence: Evidence) -> dict[str, Any]:
    """The FID of real images against other real images, as many of each as there are samples (at most half the reference)."""
    assert evidence.real.halves is not None
    first, second = evidence.real.halves
    return {"real_fid": frechet_distance(*_gaussian(first), *_gaussian(second))}


def _intra_fid(evidence: Evidence) -> dict[str, Any]:
    """The mean over classes of the FID within each (Miyato & Koyama 2018, section 4), the FID of each class, and the number
    of samples of the rarest class."""
    assert evidence.fake.by_class is not None
    assert evidence.real.by_class is not None
    values, counts = {}, []
    for name, fake, real in zip(evidence.classes, evidence.fake.by_class, evidence.real.by_class, strict=True):
        values[name] = frechet_distance_of_features(fake, real)
        counts.append(len(fake))
    return {
        "intra_fid": sum(values.values()) / len(values),
        "intra_fid_by_class": values,
        "intra_fid_fewest_of_a_class": min(counts),
    }


def _gaussian(moments: Moments) -> tuple[Tensor, Tensor]:
    return moments.mean(), moments.covariance()


def _kid(evidence: Evidence) -> dict[str, Any]:
    """Binkowski et al. 2018."""
    settings = evidence.settings
    mean, deviation = kernel_distance(*evidence.stored, settings.kid_subsets, settings.kid_subset_size, settings.seed)
    return {"kid": mean, "kid_std": deviation}


def _inception_score(evidence: Evidence) -> dict[str, Any]:
    """Salimans et al. 2016."""
    assert evidence.fake.scores is not None
    mean, deviation = evidence.fake.scores.score()
    return {"inception_score": mean, "inception_score_std": deviation}


def _two_sample_test(evidence: Evidence) -> dict[str, Any]:
    """Lopez-Paz & Oquab 2017."""
    test = two_sample_test(*evidence.stored, evidence.settings.seed)
    return {"two_sample_accuracy": test.accuracy, "two_sample_p_value": test.p_value}


def _nearest_neighbours(evidence: Evidence) -> dict[str, Any]:
    nearest = [sample["nearest"][0]["distance"] for sample in evidence.neighbours]
    return {"nearest_neighbour_distance": sum(nearest) / len(nearest), "nearest_neighbours": evidence.neighbours}


_STORED = frozenset[Need]({"features"})


def _neighbour_metric(name: NeighbourMetric) -> Metric:
    return Metric(lambda evidence: {name: evidence.neighbourhoods[name]}, _STORED, _STORED)


METRICS: dict[SampleMetricName, Metric] = {
    "fid": Metric(_fid, fake=frozenset({"moments"}), real=frozenset({"moments"})),
    "recall": _neighbour_metric("recall"),
    "class_accuracy": Metric(
        lambda evidence: {"class_accuracy": evidence.fake.recognised / evidence.samples},
        fake=frozenset({"evaluator", "labels"}),
    ),
    "real_fid": Metric(_real_fid, real=frozenset({"halves"})),
    "kid": Metric(_kid, _STORED, _STORED),
    "inception_score": Metric(_inception_score, fake=frozenset({"logits"})),
    "precision": _neighbour_metric("precision"),
    "density": _neighbour_metric("density"),
    "coverage": _neighbour_metric("coverage"),
    "intra_fid": Metric(_intra_fid, fake=frozenset({"classes", "labels"}), real=frozenset({"classes", "labels"})),
    "classification_accuracy_score": Metric(
        lambda evidence: {"classification_accuracy_score": evidence.classification_accuracy},
        fake=frozenset({"images", "labels"}),
    ),
    "two_sample_test": Metric(_two_sample_test, _STORED, _STORED),
    "nearest_neighbours": Metric(_nearest_neighbours, fake=frozenset({"neighbours"}), real=frozenset({"neighbours"})),
}
DEFAULT_METRICS: tuple[SampleMetricName, ...] = ("fid", "recall", "class_accuracy", "real_fid")
"""Default for a model that draws images."""
DEFAULT_METRICS_OF_IMAGES: tuple[SampleMetricName, ...] = ("fid", "kid", "precision", "recall", "density", "coverage")
"""Default for images without a model."""
