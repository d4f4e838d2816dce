"""Evaluation of a model by images: one distributed pass over its samples serves every metric.

The protocol goes with the number: a distance means nothing without the features, the number of samples, the reference
and the way the samples were drawn, so the result carries them, and two results compare when their protocols are equal.
Images are compared as the uint8 that a user would save, [-1, 1] rounded to 8 bits, at their own size.
"""

import logging
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.data.stream import dealt
from bigtrain.errors import UserMistake
from bigtrain.evaluation.classifier import Classifier, find_classifier, side_of
from bigtrain.evaluation.feature_networks import open_features
from bigtrain.evaluation.features import Features
from bigtrain.evaluation.metrics import METRICS, Evidence, EvidenceName, SampleMetricName
from bigtrain.evaluation.moments import Moments
from bigtrain.evaluation.ranks import Progress, Reading, Stopped, gather_by_number, on_main, stoppable, together
from bigtrain.evaluation.reference import check_finite, reference_features, reference_moments
from bigtrain.options import Options

LEAST_REFERENCE = 4
"""Images of the smallest reference: a covariance of each half needs two."""

MetricName = SampleMetricName | Literal["bits_per_dim", "reconstruction"]
HELD_OUT: Mapping[str, Literal["likelihood", "reconstruct"]] = {
    "bits_per_dim": "likelihood",
    "reconstruction": "reconstruct",
}
"""Metrics of real data, by what a family must be able to do for them; all others need its samples."""

log = logging.getLogger(__name__)


class EvaluationOptions(Options):
    """What is measured and against what. Larger `samples` lower the bias of a FID: compare only at equal `samples`."""

    metrics: tuple[MetricName, ...] | None = Field(default=None, min_length=1)
    """What to measure; null: fid, recall, real_fid and, where classes can be asked for, accuracy of a family that draws
    images, else what it can.

    fid: of the samples against the whole reference (Heusel et al. 2017). recall: share of the reference that the samples
    cover (Kynkäänniemi et al. 2019). accuracy: share of the samples in which an independent classifier sees the class
    that was asked for. real_fid: of real images against other real images, as many as samples: what a perfect model
    would score at this number (the scale of a fid in features of one's own). bits_per_dim: negative log-likelihood of
    `split` per dimension, or a bound of it. reconstruction: error of the images of `split` after encoding and decoding."""
    samples: int = Field(default=10_000, ge=2)
    """Images to generate."""
    features: str = "classifier"
    """`classifier`: a small network trained on the spot on the data's labels. `clean`, `legacy_tensorflow`,
    `legacy_pytorch`: FID's Inception as clean-fid's modes of these names. `timm:MODEL`: a model of timm, such as
    timm:vit_large_patch14_dinov2.lvd142m for the FD with DINOv2. Or the path of a TorchScript network with the calling
    convention of the public FID Inception, net(uint8 [n, 3, H, W], return_features=True) -> float [n, d]."""
    weights: str | None = None
    """Path of the weights of `clean`, `legacy_*` or `timm:MODEL`; null: from the cache, or fetched."""
    reference: Literal["train", "validation"] = "train"
    """Split that samples are compared with."""
    split: Literal["train", "validation"] = "validation"
    """Split that bits_per_dim and reconstruction are measured on."""
    split_samples: int | None = Field(default=None, gt=0)
    """Measure them on so many samples of the split, in a fair order; null: on all of it."""
    likelihood_evaluations: int | None = Field(default=None, ge=2)
    """Evaluations of the network for each sample's bits_per_dim, where that is a bound that fewer can estimate (diffusion:
    right in the mean, noisy for each sample); null: all that it takes."""
    batch_size: int = Field(default=100, gt=0)
    """Images at a time on each rank; does not change the result."""
    seed: int = Field(default=0, ge=0)
    """Keys the samples' noise and labels, whatever run.seed is."""
    candidates: int = Field(default=1, ge=1)
    """Rejection sampling: of so many candidates for each sample, the one whose class `classifier` is surest of; 1: none."""
    classifier: str = "classifier"
    """What selects among candidates: `classifier`, a network trained on the spot and used for nothing else; or the path of a
    TorchScript network from uint8 [n, 3, H, W] to logits [n, classes]."""
    recall_neighbours: int = Field(default=3, ge=1)
    """The k of recall's k-nearest-neighbour balls."""

    @model_validator(mode="after")
    def _enough_samples_for_neighbours(self) -> "EvaluationOptions":
        if "recall" in self.sample_metrics and self.samples <= self.recall_neighbours:
            raise ValueError(
                f"evaluation.samples: recall needs more samples than neighbours, not {self.samples} with "
                f"recall_neighbours={self.recall_neighbours}; raise it, or leave recall out of evaluation.metrics"
            )
        return self

    def chosen(self, capabilities: frozenset[str]) -> tuple[MetricName, ...]:
        """The metrics to measure of a family with these capabilities."""
        if self.metrics is not None:
            return self.metrics
        if "sample" in capabilities:
            return tuple(name for name in self.sample_metrics if name != "accuracy" or "by_class" in capabilities)
        return tuple(name for name, capability in HELD_OUT.items() if capability in capabilities)  # type: ignore[misc]

    @property
    def sample_metrics(self) -> tuple[SampleMetricName, ...]:
        """Those of `metrics` that look at samples; all there are if `metrics` is null."""
        return tuple(name for name in METRICS if self.metrics is None or name in self.metrics)

    def needs(self, evidence: EvidenceName) -> bool:
        """Whether some chosen metric looks at it."""
        return any(evidence in METRICS[metric].needs for metric in self.sample_metrics)

    @property
    def needs_features(self) -> bool:
        """Whether some chosen metric looks at images through the feature network, not only through the judge."""
        return any(METRICS[metric].needs - {"recognised"} for metric in self.sample_metrics)


Draw = Callable[[np.ndarray, Tensor], Tensor]
"""Samples of a model: (indices int64 [n], labels int64 [n]) to uint8 [n, 3, H, W], a function of each index and label
alone (and of options.seed, which the caller keys its noise by), never of the batch or the rank."""


def evaluate(
    draw: Draw,
    label_of: Callable[[np.ndarray], Tensor],
    train: Index,
    validation: Index | None,
    options: EvaluationOptions,
    device: torch.device,
    workers: int,
    protocol: Mapping[str, Any],
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """Measures `options.sample_metrics`; every rank calls it, and every rank gets the same result.

    `label_of` gives the class asked for by sample index, int64 [n]; `workers` is the number of reading processes per
    rank; `protocol` holds what the caller knows of how the samples are drawn (JSON values). The result is a JSON dict:
    each metric by name and, under "protocol", all that the numbers depend on, the number of ranks not being among it.

    None if `should_stop` (asked at every call of a network, on every rank) said so on any rank. Raises UserMistake, on all
    ranks alike. Networks, generators and precision settings of the run are left as they were.
    """
    reading = Reading(options.batch_size, workers, should_stop)
    reference = _reference_split(train, validation, options)
    try:
        features = _find_features(train, validation, options, reading, device) if options.needs_features else None
        judge = find_classifier(train, validation, "judge", reading, device) if options.needs("recognised") else None
        real_moments, real_features = None, None
        if features is not None:
            _warn_of_few_samples(options, reference, features)
            if options.needs("real_moments"):
                real_moments = reference_moments(reference, features, reading)
            if options.needs("real_features"):
                # Twice the samples, so that real_fid can compare as many real images with as many others.
                real_features = reference_features(reference, features, 2 * options.samples, reading)
        samples = _Samples(options, features, judge, side_of(reference), device)
        together(lambda: samples.draw(draw, label_of, reading))
    except Stopped:
        return None
    samples.gather()

    def measure() -> dict[str, Any]:
        evidence = samples.evidence(real_moments, real_features)
        result: dict[str, Any] = {metric: METRICS[metric].value(evidence) for metric in options.sample_metrics}
        result["protocol"] = _protocol(options, reference, features, judge, protocol)
        return result

    return on_main(measure)


class _Samples:
    """One pass over this rank's samples, and what the metrics need of it."""

    def __init__(
        self,
        options: EvaluationOptions,
        features: Features | None,
        judge: Classifier | None,
        side: int,
        device: torch.device,
    ) -> None:
        self._options, self._features, self._judge = options, features, judge
        self._side, self._device = side, device
        self._indices = dealt(np.arange(options.samples), world.rank(), world.size())
        self._recognised = torch.zeros((), dtype=torch.float64, device=device)
        dimensions = features.dimensions if features is not None else 0
        self._moments = Moments(dimensions, device)
        kept = len(self._indices) if options.needs("fake_features") else 0
        self._kept = torch.empty(kept, dimensions, device=device, dtype=torch.float32)
        self._gathered: Tensor | None = None

    def draw(self, draw: Draw, label_of: Callable[[np.ndarray], Tensor], reading: Reading) -> None:
        """Draws and looks at them, without a collective or a wait for the device."""
        with Progress(self._options.samples, "samples") as progress, stoppable(reading.should_stop):
            for start in range(0, len(self._indices), reading.batch):
                reading.check_stop()
                indices = self._indices[start : start + reading.batch]
                labels = label_of(indices).to(self._device)
                self._look(start, draw(indices, labels).to(self._device), labels)
                progress.add(len(indices))

    def _look(self, start: int, images: Tensor, labels: Tensor) -> None:
        assert images.shape == (len(labels), 3, self._side, self._side), (images.shape, len(labels), self._side)
        if self._features is not None:
            values = self._features(images).features
            self._moments.add(values)
            if self._options.needs("fake_features"):
                self._kept[start : start + len(values)] = values
        if self._judge is not None:
            self._recognised += (self._judge.predict(images) == labels).sum()

    def gather(self) -> None:
        """Adds up over ranks. Raises UserMistake, on every rank, if features were not finite."""
        world.sum_over_ranks(self._recognised)
        if self._features is not None:
            self._moments.reduce()
            assert self._moments.count == self._options.samples, (self._moments.count, self._options.samples)
            check_finite(self._moments, self._features, "the samples")
        if self._options.needs("fake_features"):
            self._gathered = gather_by_number(self._indices, self._kept)

    def evidence(self, real_moments: Moments | None, real_features: Tensor | None) -> Evidence:
        """On rank 0, once gathered."""
        return Evidence(
            neighbours=self._options.recall_neighbours,
            samples=self._options.samples,
            fake_moments=self._moments if self._features is not None else None,
            fake_features=self._gathered,
            recognised=float(self._recognised) / self._options.samples if self._judge is not None else None,
            real_moments=real_moments,
            real_features=real_features,
        )


def _reference_split(train: Index, validation: Index | None, options: EvaluationOptions) -> Index:
    reference = train if options.reference == "train" else validation
    if reference is None:
        raise UserMistake(
            "evaluation.reference: validation, but data.validation names no split; give one, or set "
            "evaluation.reference=train"
        )
    if validation is not None and train.classes != validation.classes:
        raise UserMistake(f"{validation.path} (data.validation) does not have the classes of {train.path} (data.train)")
    if reference.samples < LEAST_REFERENCE:
        raise UserMistake(
            f"{reference.path}: {reference.samples} images are too few for a reference; {LEAST_REFERENCE} are the least"
        )
    return reference


def _find_features(
    train: Index, validation: Index | None, options: EvaluationOptions, reading: Reading, device: torch.device
) -> Features:
    if options.features == "classifier":
        return find_classifier(train, validation, "features", reading, device)
    features = together(lambda: open_features(options.features, options.weights, side_of(train), device))
    if len(set(world.gather_objects(features.fingerprint))) > 1:
        raise UserMistake(f"evaluation.features: {options.features} is not the same network on all machines")
    return features


def _warn_of_few_samples(options: EvaluationOptions, reference: Index, features: Features) -> None:
    fewest = min(options.samples, reference.samples)
    distances = {"fid", "real_fid"}.intersection(options.sample_metrics)
    if world.is_main() and distances and fewest <= features.dimensions:
        log.warning(
            "evaluation.samples: a distance from %d images in %d feature dimensions has a singular covariance and a "
            "large bias; compare it only with others of this very protocol, or take more samples than dimensions",
            fewest,
            features.dimensions,
        )


def _protocol(
    options: EvaluationOptions,
    reference: Index,
    features: Features | None,
    judge: Classifier | None,
    drawing: Mapping[str, Any],
) -> dict[str, Any]:
    """Everything that the numbers depend on, and nothing that they do not."""
    facts: dict[str, Any] = {
        "samples": options.samples,
        "seed": options.seed,
        "resize": f"none: networks take uint8 images of {side_of(reference)} pixels a side",
        "quantisation": "round",
        "versions": {name: version(name) for name in ("torch", "timm")},
    }
    if features is not None:
        facts["features"] = features.protocol()
        facts["reference"] = {
            "split": options.reference,
            "samples": reference.samples,
            "fingerprint": reference.fingerprint,
        }
        if reference.view:
            facts["reference"]["view"] = dict(reference.view)
    if judge is not None:
        facts["judge"] = judge.protocol()
    if "recall" in options.sample_metrics:
        facts["recall"] = {
            "neighbours": options.recall_neighbours,
            "real": min(options.samples, reference.samples),
            "fake": options.samples,
        }
    if "real_fid" in options.sample_metrics:
        facts["real_fid"] = {"images_a_side": min(options.samples, reference.samples // 2)}
    clash = facts.keys() & drawing.keys()
    assert not clash, f"the caller's protocol has keys of the evaluation's: {sorted(clash)}"
    return {**drawing, **facts}
