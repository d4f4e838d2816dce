"""Evaluation of images: one distributed pass over them serves every metric.

A distance means nothing without the features, the number of samples, the reference and the way the samples were drawn. So
every result holds them as its protocol, and two results are comparable when their protocols are equal.
A model's images are compared as the uint8 that a user would save, [-1, 1] rounded to 8 bits, at their own size.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, Stopped, on_main
from bigtrain.evaluation.checks import check_before_networks, check_features, needs_evaluator, needs_features
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.images import ImageSet
from bigtrain.evaluation.metrics.metric import SampleMetric, find_sample_metric
from bigtrain.evaluation.metrics.registry import MetricName
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData
from bigtrain.evaluation.result import EvaluationResult, versions
from bigtrain.evaluation.statistics.moments import FeatureMoments


def evaluate(
    images: ImageSet,
    real: RealData,
    metrics: Sequence[MetricName],
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
        comparison = Comparison(images, labels, real, options, device, reading)
        measured = [find_sample_metric(name)(comparison) for name in metrics]
        moments = comparison.samples.accumulate(FeatureMoments()) if keep_moments else None
        check_before_networks(comparison, measured, keep_moments)
        if needs_features(measured, keep_moments):
            check_features(comparison, measured, comparison.open_features())
        if needs_evaluator(measured):
            comparison.find_evaluator()
        comparison.collect()
        for metric in measured:
            metric.reduce()
        result = on_main("computes the metrics of samples", lambda: _result(comparison, measured, protocol))
    except Stopped:
        return None
    pictures = [metric.picture for metric in measured if metric.picture is not None]
    kept = moments.moments if moments is not None and world.is_main() else None
    return EvaluationResult(result, next(iter(pictures), None), kept)


def check(
    images: ImageSet,
    labels: Labels,
    real: RealData,
    metrics: Sequence[MetricName],
    options: EvaluationOptions,
    device: torch.device,
) -> None:
    """Raises UserError, on all ranks, for what `evaluate` would refuse before it reads an image; every rank calls it.

    A classifier that gives the features is trained only if a file of moments must be checked against them.
    """
    comparison = Comparison(images, labels, real, options, device, Reading(options.batch_size, 0))
    measured = [find_sample_metric(name)(comparison) for name in metrics]
    check_before_networks(comparison, measured, keep_moments=False)
    cheap = options.features != "classifier" or (real.reference is not None and real.reference.moments is not None)
    if cheap and needs_features(measured, keep_moments=False):
        check_features(comparison, measured, comparison.open_features())


def _result(comparison: Comparison, metrics: Sequence[SampleMetric], drawing: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {}
    for metric in metrics:
        numbers |= metric.compute()
    return numbers | {"protocol": _protocol(comparison, metrics, drawing)}


def _protocol(comparison: Comparison, metrics: Sequence[SampleMetric], drawing: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that the numbers depend on, and nothing that they do not."""
    options, samples, real = comparison.options, comparison.samples, comparison.real
    facts: dict[str, Any] = {
        "samples": comparison.count,
        "seed": options.seed,
        "image_size": list(samples.images.size()) if not options.allow_mixed_sizes else None,
        "versions": versions(),
        "images": samples.images.describe(samples.digest),
    }
    if comparison.has_features:
        channels = {side.channels for side in (samples.images, real.images) if side is not None}
        facts["features"] = comparison.features.protocol(channels)
        if real.reference is not None and real.used_by:
            facts["reference"] = real.reference.describe(real.digest)
    if comparison.has_evaluator:
        facts["evaluator"] = comparison.evaluator.protocol([samples.images.channels])
    facts |= {metric.name: dict(own) for metric in metrics if (own := metric.facts())}
    clash = facts.keys() & drawing.keys()
    assert not clash, f"the caller's protocol has keys that the evaluation sets: {sorted(clash)}"
    return {**drawing, **facts}
