"""What is measured of a model on held-out data: its likelihood, its reconstructions, its outputs beside their targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from bigtrain.cluster.passes import Reading
from bigtrain.data.index import Index
from bigtrain.data.read.stream import Data
from bigtrain.evaluation.held_out import Measured, measure_pairs, measure_rfd, measure_split
from bigtrain.evaluation.images import Outputs
from bigtrain.evaluation.metrics.metric import Split, find_held_out_metric, find_metric
from bigtrain.evaluation.metrics.registry import MetricName
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.families.abilities import Classifies, Effort, Likelihood, Reconstructs, Samples
from bigtrain.families.family import Family
from bigtrain.features.classifier import check_classes
from bigtrain.features.opening import open_features
from bigtrain.inference.metric_choice import ability_for, samples_given_pictures
from bigtrain.inference.model import LABEL, Model
from bigtrain.inference.outputs import named_by_sampling, reconstructions_of, samples_of
from bigtrain.inference.splits import images_behind, one_index

RECONSTRUCTED = "image"
"""The field that reconstructions are of."""


@dataclass(frozen=True)
class RunData:
    """The data of a run; None: there are none, or nothing looks at them (`needed_splits`)."""

    train: Data | None
    validation: Data | None

    @cached_property
    def images(self) -> tuple[Index | None, Index | None]:
        """(train, validation): of codes, the images that these were made from."""
        train, validation = (None if data is None else images_behind(data) for data in (self.train, self.validation))
        return train, validation

    @property
    def for_classifiers(self) -> tuple[Index, Index | None]:
        """The images that classifiers are trained on, and those that were held out."""
        train, validation = self.images
        assert train is not None, "needed_splits says what is looked at"
        return train, validation

    def split(self, options: EvaluationOptions) -> Index:
        """The one that evaluation.split names."""
        named = self.train if options.split == "train" else self.validation
        assert named is not None, "check_metrics has checked that"
        return one_index(named)


def check_held_out(
    family: Family, chosen: Sequence[MetricName], data: RunData, options: EvaluationOptions, device: torch.device
) -> None:
    """Raises UserError for whatever would make the first evaluation fail."""
    if "bits_per_dim" in chosen:
        family.require(Likelihood, "evaluation.metrics: bits_per_dim").check_effort(_effort(options))
    if "held_out_accuracy" in chosen:
        classifies = family.require(Classifies, "evaluation.metrics: held_out_accuracy")
        classifies.classification_protocol(_effort(options), options.seed)
    for name in _of_pairs(chosen):
        find_held_out_metric(name)(_split(family, name, data.split(options), options, device))
    if "rfd" in chosen and options.features == "classifier":
        check_classes(data.for_classifiers[0], "features")
    elif "rfd" in chosen:
        size, (train, validation) = family.spec.size, data.images
        reading = Reading(options.batch_size, 0)
        open_features(options.features, options.weights, size, reading, device, train=train, validation=validation)


def measure_held_out(model: Model, chosen: Sequence[MetricName], data: RunData, reading: Reading) -> Measured:
    """(numbers, protocol by metric) of those of the chosen metrics that are measured on held-out data.

    Every rank calls it. Raises UserError and Stopped.
    """
    values: dict[str, Any] = {}
    protocol: dict[str, Any] = {}
    parts = [_likelihood(model, data, reading)] if "bits_per_dim" in chosen else []
    parts += [_classification(model, data, reading)] if "held_out_accuracy" in chosen else []
    pairs = _of_pairs(chosen)
    of_samples = [name for name in pairs if ability_for(model.family, name) is Samples]
    of_reconstructions = [name for name in pairs if name not in of_samples]
    if of_reconstructions:
        parts.append(_reconstructions(model, of_reconstructions, data, reading))
    if "rfd" in chosen:
        parts.append(_rfd(model, data, reading))
    if of_samples:
        parts.append(_outputs(model, of_samples, data, reading))
    for numbers, facts in parts:
        values, protocol = values | numbers, protocol | facts
    return values, protocol


def _of_pairs(chosen: Sequence[MetricName]) -> list[MetricName]:
    """The metrics that see outputs beside their targets."""
    return [name for name in chosen if find_metric(name).sees_pairs]


def _effort(options: EvaluationOptions) -> Effort:
    return Effort(options.likelihood_evaluations, options.likelihood_samples)


def _samples_of(index: Index, options: EvaluationOptions) -> int:
    return min(options.split_samples or index.samples, index.samples)


def _split(family: Family, metric: MetricName, index: Index, options: EvaluationOptions, device: torch.device) -> Split:
    """What a metric is measured on."""
    samples = _samples_of(index, options)
    given, target, dimensions = samples_given_pictures(family), "", 0
    if metric == "bits_per_dim":
        dimensions = family.require(Likelihood, "evaluation.metrics: bits_per_dim").dimensions
    else:
        use_samples = given is not None and ability_for(family, metric) is Samples
        target = given.sampled_field if given is not None and use_samples else RECONSTRUCTED
    return Split(index, samples, options, device, target, dimensions)


def _likelihood(model: Model, data: RunData, reading: Reading) -> Measured:
    name: MetricName = "bits_per_dim"
    options = model.recipe.evaluation
    family, effort = model.family.require(Likelihood, f"evaluation.metrics: {name}"), _effort(options)
    family.check_effort(effort)
    split = _split(model.family, name, data.split(options), options, model.device)
    terms_of = model.likelihood(split.index, options.seed, effort)
    metric = find_held_out_metric(name)(split)
    values, facts = measure_split([metric], terms_of, split, reading, model.family.reads, "likelihood")
    return values, {name: {**facts[name], **family.likelihood_protocol(effort, options.seed)}}


def _classification(model: Model, data: RunData, reading: Reading) -> Measured:
    name: MetricName = "held_out_accuracy"
    options = model.recipe.evaluation
    family, effort = model.family.require(Classifies, f"evaluation.metrics: {name}"), _effort(options)
    protocol = family.classification_protocol(effort, options.seed)
    split = Split(data.split(options), _samples_of(data.split(options), options), options, model.device)
    scores_of = model.class_scores(split.index, options.seed, effort)
    fields = [*family.classified_given, LABEL]
    values, facts = measure_split(
        [find_held_out_metric(name)(split)], scores_of, split, reading, fields, "classification"
    )
    return values, {name: {**facts[name], **protocol}}


def _reconstructions(model: Model, names: Sequence[MetricName], data: RunData, reading: Reading) -> Measured:
    options = model.recipe.evaluation
    split = _split(model.family, names[0], data.split(options), options, model.device)
    metrics = [find_held_out_metric(name)(split) for name in names]
    outputs_of = reconstructions_of(model, split.index, options.seed)
    values, facts = measure_pairs(metrics, outputs_of, split, reading, model.family.reads, "reconstruction")
    return values, {name: {**said, **_seed_of(model)} for name, said in facts.items()}


def _seed_of(model: Model) -> dict[str, Any]:
    """What the protocol says of the draws of a reconstruction, where there are any."""
    draws = model.family.require(Reconstructs, "evaluation.metrics").draws_in_reconstruction
    return {"seed": model.recipe.evaluation.seed} if draws else {}


def _rfd(model: Model, data: RunData, reading: Reading) -> Measured:
    options = model.recipe.evaluation
    split = _split(model.family, "rfd", data.split(options), options, model.device)
    outputs = Outputs(
        split.index,
        options.split,
        "reconstructions",
        split.target,
        reconstructions_of(model, split.index, options.seed),
        model.family.reads,
        options.split_samples,
    )
    values, facts = measure_rfd(outputs, *data.images, options, model.device, reading)
    return values, {name: {**said, **_seed_of(model)} for name, said in facts.items()}


def _outputs(model: Model, names: Sequence[MetricName], data: RunData, reading: Reading) -> Measured:
    """Of samples that are drawn given those of the split, under names that say how they were drawn."""
    options = model.recipe.evaluation
    sampler = model.sampler(options.seed)
    split = _split(model.family, names[0], data.split(options), options, model.device)
    metrics = [find_held_out_metric(name)(split) for name in names]
    given = model.family.require(Samples, "evaluation.metrics").conditions
    outputs_of = samples_of(sampler, split.index)
    values, facts = measure_pairs(metrics, outputs_of, split, reading, given, "output")
    drawn = {"given": list(given), **sampler.protocol(), "seed": options.seed}
    return named_by_sampling(values, sampler), {name: {**own, **drawn} for name, own in facts.items()}
