"""The protocol of metrics. Each is one file of this package, named as the metric; `registry.py` lists them.

A metric of samples asks a comparison's two sides to accumulate what it needs (features, moments, images, ...), and computes
its numbers after the passes. One of held-out data is shown every batch itself (`update`), and adds up over ranks (`reduce`).
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor

from bigtrain.data.fields.pictures import ImageField
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.registry import MetricName, title
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.features.network import Features

MeasuredOn = Literal["samples", "likelihood", "classification", "reconstructions", "pairs", "points"]
"""samples: images that a model draws, or that lie in files, against a reference; likelihood: held-out samples that the model
gives a probability; classification: held-out samples whose class it tells; reconstructions: held-out images that the model
encodes and decodes; pairs: its outputs for held-out samples beside their targets, which are reconstructions or samples given a
picture; points: points that a model draws, against those of a split."""
Need = Literal["features", "evaluator", "labels", "images"]


class Metric(ABC):
    """One metric, made anew for each evaluation. `class FD(SampleMetric, name="fd")` is what recipes call `fd`."""

    name: ClassVar[MetricName]
    measured_on: ClassVar[MeasuredOn] = "samples"
    lower_is_better: ClassVar[tuple[str, ...]] = ()
    higher_is_better: ClassVar[tuple[str, ...]] = ()
    """Its numbers by which checkpoints can be compared, without their features."""
    split_key: ClassVar[Literal["split", "reference"]] = "split"
    """The option of an evaluation that names the split, where it is measured on one."""
    sees_pairs: ClassVar[bool] = False
    """Whether its `update` is given a model's outputs and their targets."""
    shares: ClassVar[tuple[str, ...]] = ()
    """Its numbers that are a share of the samples, and so have a known error."""

    def __init_subclass__(cls, name: MetricName | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if name is not None:
            cls.name = name
            _METRICS[name] = cls

    def reduce(self) -> None:  # noqa: B027, most have nothing to add up themselves
        """After all images have been seen, every rank calls it; then rank 0 computes. Raises UserError and Stopped."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """Its numbers by name, as JSON; rank 0 calls it."""

    def facts(self) -> Mapping[str, Any]:
        """For the protocol: what the numbers depend on that only this metric knows; rank 0 calls it after the passes."""
        return {}


class SampleMetric(Metric):
    """Compares samples with a reference."""

    needs: ClassVar[frozenset[Need]] = frozenset({"features"})
    """features: the feature network; evaluator: the classifier that says which class a sample shows; labels: the classes that
    the samples were conditioned on; images: the images themselves, of one size."""
    fewest: ClassVar[int] = 1
    """Images of each side."""
    estimates_covariance: ClassVar[bool] = False
    """Whether it needs about as many images as features."""
    needs_reference: ClassVar[bool] = True
    """Whether it compares samples with what evaluation.reference names."""
    of_real_images_only: ClassVar[bool] = False
    """Whether it does not depend on how samples are drawn."""
    picture: Image.Image | None = None
    """After `reduce`, on rank 0: what it has to show."""

    def __init__(self, comparison: Comparison) -> None:
        """Asks for what it needs. Raises UserError if that cannot be had."""
        self.comparison, self.options = comparison, comparison.options
        self.title = title(self.name, comparison.label)
        """The name of its number, which says the features."""

    def check(self) -> None:
        """Raises UserError for what it cannot be measured of, before an image is read."""

    def check_count(self, count: int, name: str) -> None:
        """Raises UserError if `count` images of a side, called `name`, are too few for a number."""
        key, available = self.limit(count)
        if available < self.fewest:
            raise UserError(
                f"evaluation.{key}: {self.name} needs {self.fewest} images of each side, not {available} ({name}); take "
                "more, or leave it out of evaluation.metrics"
            )

    def limit(self, count: int) -> tuple[str, int]:
        """(the option that limits them, how many) of `count` images that are kept in memory."""
        most = self.options.max_features
        return ("max_features", most) if most < count else ("samples", count)

    def check_features(self, features: Features) -> None:
        """Raises UserError if it cannot be measured in these features."""


@dataclass(frozen=True)
class Split:
    """Held-out data: `samples` of an index, all or a fixed random subset. `target`: the field that outputs are compared with,
    for pairs and for points, of which `samples` are drawn; `dimensions`: of one sample, for likelihoods."""

    index: Index
    samples: int
    options: EvaluationOptions
    device: torch.device
    target: str = ""
    dimensions: int = 0

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the targets."""
        field = self.index.fields[self.target]
        assert isinstance(field, ImageField), f"{self.target} is no image"
        return (field.channels, *field.sized)


class HeldOutMetric(Metric):
    """Measured on a split, of which each rank sees its share."""

    def __init__(self, split: Split) -> None:
        """Raises UserError if it cannot be measured of such data."""
        self.split = split

    @abstractmethod
    def update(self, seen: Any) -> None:
        """Adds a batch: the terms of a likelihood by name, or a `Pair`."""


class PairMetric(HeldOutMetric):
    """Compares a model's outputs with their targets."""

    measured_on: ClassVar[MeasuredOn] = "pairs"
    sees_pairs = True

    @abstractmethod
    def update(self, seen: "Pair") -> None: ...


class PointMetric(HeldOutMetric):
    """Compares points that a model draws with all of a split."""

    measured_on: ClassVar[MeasuredOn] = "points"
    split_key = "reference"

    @abstractmethod
    def update_reference(self, points: Tensor, labels: Tensor) -> None:
        """Adds points of the split [n, numbers], and their classes, int64 [n]; before the first that is drawn."""

    @abstractmethod
    def update(self, seen: Tensor) -> None:
        """Adds points that the model has drawn, [n, numbers]."""


def standard_error(count: int, mean: float, mean_square: float) -> float | None:
    """The standard error of the mean of `count` values, from their mean and the mean of their squares; None of one value."""
    return None if count < 2 else math.sqrt(max(mean_square - mean**2, 0.0) / (count - 1))


@dataclass(frozen=True)
class Pair:
    """A model's outputs and their targets, uint8 [n, C, H, W] on the device."""

    outputs: Tensor
    targets: Tensor


_METRICS: dict[str, type[Metric]] = {}


def find_metric(name: MetricName) -> type[Metric]:
    """The class of a metric; imports only its file."""
    if name not in _METRICS:
        importlib.import_module(f"bigtrain.evaluation.metrics.{name}")
    return _METRICS[name]


def find_sample_metric(name: MetricName) -> type[SampleMetric]:
    """The class of a metric that is measured on samples."""
    found = find_metric(name)
    assert issubclass(found, SampleMetric), f"{name} is measured on {found.measured_on}"
    return found


def find_point_metric(name: MetricName) -> type[PointMetric]:
    """The class of a metric of points."""
    found = find_metric(name)
    assert issubclass(found, PointMetric), f"{name} is measured on {found.measured_on}"
    return found


def find_held_out_metric(name: MetricName) -> type[HeldOutMetric]:
    """The class of a metric that sees the batches of a split."""
    found = find_metric(name)
    assert issubclass(found, HeldOutMetric), f"{name} is measured on {found.measured_on}"
    return found
