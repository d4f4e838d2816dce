"""Evaluation of images without a model: a folder, an archive, an npz or shards. There is no recipe."""

from typing import Any

import torch

from bigtrain.cluster.passes import together
from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import evaluate
from bigtrain.evaluation.images import ImageSet, Shards
from bigtrain.evaluation.metrics.metric import find_metric
from bigtrain.evaluation.metrics.registry import DEFAULT_METRICS_OF_IMAGES, MetricName
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import RealData, Reference, open_images, open_reference
from bigtrain.evaluation.result import EvaluationResult

MODEL_OPTIONS = (
    "samples",
    "split",
    "split_samples",
    "likelihood_evaluations",
    "likelihood_samples",
    "pairs_channel",
    "pairs_border",
    "candidates",
    "classifier",
)
"""Options that say how a model is evaluated; an error where there is no model."""
WORKERS = 2
"""Processes per rank that read images, by default."""


def evaluate_images(
    where: str, options: EvaluationOptions, device: torch.device, *, keep_moments: bool = False
) -> EvaluationResult:
    """Evaluates every image at `where` (a path, or the URL of an index) against `options.reference`; every rank calls it.

    Without a reference only inception_score can be measured, and moments kept. Raises UserError.
    """
    for key in MODEL_OPTIONS:
        if key in options.model_fields_set:
            raise UserError(
                f"evaluation.{key}: says how a model is evaluated, and {where} is neither a run nor an export: all its images "
                "are evaluated as they are; leave it out"
            )
    # Together, since a folder may be missing on one machine only.
    opened = together("opens the images", lambda: open_images(where))
    what = "opens the reference"
    reference = (
        together(what, lambda: open_reference(options.reference)) if "reference" in options.model_fields_set else None
    )
    metrics = _metrics(options, reference, keep_moments)
    real = _real(reference)
    workers = WORKERS if options.workers is None else options.workers
    assert opened.images is not None
    result = evaluate(
        opened.images, real, metrics, options, device, workers, {}, labels=opened.labels, keep_moments=keep_moments
    )
    assert result is not None, "an evaluation that nothing stops has a result"
    return result


def _metrics(options: EvaluationOptions, reference: Reference | None, keep_moments: bool) -> tuple[MetricName, ...]:
    asked = options.named_metrics
    if asked is not None:
        for name in asked:
            if find_metric(name).measured_on != "samples":
                raise UserError(f"evaluation.metrics: {name} needs a model, and these are images; leave it out")
        return asked
    if reference is not None:
        return DEFAULT_METRICS_OF_IMAGES if reference.images is not None else ("fd",)
    if not keep_moments:
        raise UserError(
            "evaluation.reference: say what the images are compared with: an index of shards, a folder, a tar or zip, an npz "
            "of samples or of moments"
        )
    return ()


def _real(reference: Reference | None) -> RealData:
    images: ImageSet | None = None if reference is None else reference.images
    index: Any = images.index if isinstance(images, Shards) else None
    return RealData(reference, train=index, validation=None, test=index)
