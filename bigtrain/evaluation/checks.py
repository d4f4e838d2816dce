"""What an evaluation of samples refuses before it reads an image, each in one sentence."""

from collections.abc import Sequence

from bigtrain.cluster import world
from bigtrain.data.splits import image_shape
from bigtrain.errors import UserError
from bigtrain.evaluation.comparison import Comparison
from bigtrain.evaluation.metrics.metric import SampleMetric
from bigtrain.evaluation.sample_counts import check_enough
from bigtrain.features.classifier import check_classes
from bigtrain.features.network import Features
from bigtrain.sizes import size_flag, size_text


def check_before_networks(comparison: Comparison, metrics: Sequence[SampleMetric], keep_moments: bool) -> None:
    """Raises UserError, on all ranks, for whatever can be told without a network; every rank calls it."""
    _check_sizes(comparison, metrics)
    _check_ranks_agree(comparison)
    _check_classifiers(comparison, metrics, keep_moments)
    for count, name in comparison.images_a_side:
        for metric in metrics:
            metric.check_count(count, name)
    samples = comparison.samples.images
    if keep_moments and samples.count < 2:
        raise UserError(f"--save-moments: a covariance needs 2 images, not {samples.count} ({samples.name})")
    for metric in metrics:
        metric.check()


def check_features(comparison: Comparison, metrics: Sequence[SampleMetric], features: Features) -> None:
    """Raises UserError if a metric cannot be measured in these features; warns of a distance that is nearly all bias."""
    for metric in metrics:
        metric.check_features(features)
    distances = [metric for metric in metrics if metric.estimates_covariance]
    if distances:
        count, name = min(comparison.images_a_side)
        check_enough(features, count, name, distances[0].name, "evaluation.samples")


def needs_features(metrics: Sequence[SampleMetric], keep_moments: bool) -> bool:
    return keep_moments or any("features" in metric.needs for metric in metrics)


def needs_evaluator(metrics: Sequence[SampleMetric]) -> bool:
    return any("evaluator" in metric.needs for metric in metrics)


def _check_sizes(comparison: Comparison, metrics: Sequence[SampleMetric]) -> None:
    images, real = comparison.samples.images, comparison.real.images
    size, reference_size = images.size(), None if real is None else real.size()
    if reference_size is not None and size != reference_size and not comparison.options.allow_mixed_sizes:
        raise UserError(
            f"evaluation.reference: {images.name} are {size[0]} x {size[1]}, the reference's {reference_size[0]} x "
            f"{reference_size[1]}; compare images of one size (python launch/shard.py SOURCE OUT --size "
            f"{size_flag(size)}), or let the feature network resize each with evaluation.allow_mixed_sizes=true"
        )
    of_one_size = [metric.name for metric in metrics if "images" in metric.needs]
    if comparison.options.allow_mixed_sizes and of_one_size:
        raise UserError(
            f"evaluation.allow_mixed_sizes: {' and '.join(of_one_size)} use the images themselves, which must be of one size; "
            "leave them out, or make the images one size"
        )


def _check_ranks_agree(comparison: Comparison) -> None:
    images, real = comparison.samples.images, comparison.real.images
    counts = world.gather_objects((images.count, 0 if real is None else real.count))
    if len(set(counts)) > 1:
        raise UserError(
            f"{images.name}, or the reference's, are not the same on all machines ({sorted(set(counts))} files); "
            "evaluate from a folder that all share"
        )


def _check_classifiers(comparison: Comparison, metrics: Sequence[SampleMetric], keep_moments: bool) -> None:
    """Raises UserError if data that a classifier is trained or tested on is missing, before one is trained."""
    train = comparison.data.train
    if needs_features(metrics, keep_moments) and comparison.options.features == "classifier" and train is not None:
        check_classes(train, "features")
    if not needs_evaluator(metrics):
        return
    if train is None:
        raise UserError(
            "evaluation.metrics: class_accuracy and classification_accuracy_score need labelled real images; give the "
            "index of shards as evaluation.reference, or leave them out"
        )
    check_classes(train, "evaluator")
    size = image_shape(train)[1:]
    if comparison.samples.images.size() != size:
        raise UserError(
            f"evaluation.metrics: class_accuracy and classification_accuracy_score need images of the size of {train.path} "
            f"({size_text(size)} pixels); leave them out"
        )
