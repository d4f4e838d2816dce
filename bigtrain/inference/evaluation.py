"""Evaluation of a model: the metrics that its recipe names, as one result with its protocol."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, Stopped, together
from bigtrain.data.read.stream import Data
from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import check, evaluate
from bigtrain.evaluation.held_out import measure_likelihood, measure_reconstruction, measure_rfid
from bigtrain.evaluation.images import Drawn
from bigtrain.evaluation.metrics.definitions import METRICS
from bigtrain.evaluation.options import HELD_OUT, EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData
from bigtrain.evaluation.result import EvaluationResult, versions
from bigtrain.families.abilities import Effort, Likelihood, Samples
from bigtrain.families.family import Family
from bigtrain.features.classifier import check_classes
from bigtrain.features.opening import open_features
from bigtrain.inference.candidate_selection import find_selection
from bigtrain.inference.model import Model, Sampler, require_label
from bigtrain.inference.splits import images_behind, one_index
from bigtrain.runs.folder import RunFolder


def _samples(sampler: Sampler, options: EvaluationOptions) -> tuple[Drawn, Labels]:
    """The samples of an evaluation, and the classes that they are conditioned on."""
    spec, count = sampler.family.spec, options.samples
    images = Drawn(sampler.draw, sampler.labels_of, count, spec.classes, (spec.channels, *spec.size))
    return images, lambda: sampler.labels_of(range(count)).numpy()


def _effort(options: EvaluationOptions) -> Effort:
    return Effort(options.likelihood_evaluations)


def check_early(
    family: Family, options: EvaluationOptions, train: Data, validation: Data | None, device: torch.device
) -> None:
    """Raises UserError, before the first step, for whatever would make the first evaluation fail."""
    chosen = options.chosen(family)
    sample_metrics = [metric for metric in chosen if metric in METRICS]
    if "bits_per_dim" in chosen:
        family.require(Likelihood, "evaluation.metrics: bits_per_dim").check_effort(_effort(options))
    if not sample_metrics and "rfid" not in chosen:
        return
    real = images_behind(train), images_behind(validation) if validation is not None else None
    reading = Reading(options.batch_size, 0)
    if sample_metrics:
        sampling = family.require(Samples, "evaluation.metrics").sampling
        images, labels = _samples(Sampler(family, {}, options.seed, sampling, device), options)
        check(images, labels, together(lambda: RealData.of(options, *real)), sample_metrics, options, device)
        if options.candidates > 1 and options.classifier != "classifier":
            find_selection(options.candidates, options.classifier, family.spec, lambda: real, reading, device)
    if "rfid" in chosen and options.features == "classifier":
        check_classes(real[0], "features")
    elif "rfid" in chosen:
        size = family.spec.size
        open_features(options.features, options.weights, size, reading, device, train=real[0], validation=real[1])


def check_metrics(family: Family, options: EvaluationOptions, validation: Data | None) -> None:
    """Raises UserError for a metric that needs a capability that the family lacks, or a split that is not given."""
    for metric in options.chosen(family):
        able = family.require(HELD_OUT.get(metric, Samples), f"evaluation.metrics: {metric} cannot be measured")
        if metric in METRICS and "labels" in METRICS[metric].fake:
            require_label(able, f"evaluation.metrics: {metric} cannot be measured")
        if metric == "classification_accuracy_score" and validation is None:
            raise UserError(
                "evaluation.metrics: classification_accuracy_score is tested on held-out images, but data.validation names "
                "none; give one, or leave it out"
            )
        key = "split" if metric in HELD_OUT else "reference"
        if getattr(options, key) == "validation" and validation is None:
            raise UserError(
                f"evaluation.{key}: {metric} is measured on the validation split, but data.validation names none; give one, "
                f"or set evaluation.{key}=train"
            )


def evaluate_model(
    model: Model,
    train: Data,
    validation: Data | None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    keep_moments: bool = False,
) -> EvaluationResult | None:
    """Measures the recipe's metrics of a model; every rank calls it. None if stopped."""
    check_metrics(model.family, model.recipe.evaluation, validation)
    try:
        return _evaluated(model, train, validation, should_stop, keep_moments)
    except Stopped:
        return None


def _evaluated(
    model: Model, train: Data, validation: Data | None, should_stop: Callable[[], bool], keep_moments: bool
) -> EvaluationResult:
    """`evaluate_model`, but raises Stopped."""
    family, options = model.family, model.recipe.evaluation
    chosen = options.chosen(family)
    sample_metrics = [metric for metric in chosen if metric in METRICS]
    facts: dict[str, Any] = {"weights": model.provenance["weights"], "step": model.provenance["step"]}
    result: dict[str, Any] = {}
    picture, moments = None, None
    if sample_metrics or keep_moments:
        sampler = model.sampler(
            options.seed, selection=model.selection(options.candidates, options.classifier, should_stop)
        )
        images, labels = _samples(sampler, options)
        real = images_behind(train), images_behind(validation) if validation is not None else None
        measured = evaluate(
            images,
            together(lambda: RealData.of(options, *real)),
            sample_metrics,
            options,
            model.device,
            reading_workers(model),
            protocol=sampler.protocol() | facts,
            should_stop=should_stop,
            labels=labels,
            keep_moments=keep_moments,
        )
        if measured is None:
            raise Stopped
        facts, picture, moments = measured.result.pop("protocol"), measured.picture, measured.moments
        name = family.require(Samples, "evaluation.metrics").sampling_name(sampler.sampling)
        # real_fid is measured on real images only, so the sampler does not belong in its name.
        result = {
            f"{key}_{name}" if name and key != "real_fid" else key: value for key, value in measured.result.items()
        }
    for metric in chosen:
        if metric in HELD_OUT:
            values, protocol = _measure_held_out(metric, model, train, validation, should_stop)
            result |= values
            facts[metric] = protocol
    facts.setdefault("versions", versions())
    return EvaluationResult({"step": model.provenance["step"]} | result | {"protocol": facts}, picture, moments)


def reading_workers(model: Model) -> int:
    """Processes per rank that read images for an evaluation."""
    workers = model.recipe.evaluation.workers
    return model.recipe.data.workers if workers is None else workers


def _measure_held_out(
    metric: str, model: Model, train: Data, validation: Data | None, should_stop: Callable[[], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values, protocol) of one metric that is measured on real data."""
    options = model.recipe.evaluation
    measured_on = train if options.split == "train" else validation
    assert measured_on is not None, "check_metrics has checked that"
    split = one_index(measured_on)
    reading = Reading(options.batch_size, reading_workers(model), should_stop)
    samples = min(options.split_samples or split.samples, split.samples)
    protocol: dict[str, Any] = {"split": options.split, "samples": samples, "fingerprint": split.fingerprint}
    if metric == "rfid":
        real = images_behind(train), images_behind(validation) if validation is not None else None
        values, facts = measure_rfid(model.reconstruct, split, *real, options, model.device, reading)
        return values, protocol | facts
    if metric == "reconstruction":
        return measure_reconstruction(model.reconstruct, split, options.split_samples, model.device, reading), protocol
    family, effort = model.family.require(Likelihood, "evaluation.metrics: bits_per_dim"), _effort(options)
    protocol["dimensions"] = family.dimensions
    protocol |= family.likelihood_protocol(effort, options.seed)
    likelihood = model.likelihood(split, options.seed, effort)
    measured = measure_likelihood(
        likelihood,
        family.dimensions,
        split,
        options.split_samples,
        model.device,
        reading,
        model.family.reads,
    )
    return measured, protocol


def write_evaluation(folder: Path, step: int, evaluated: EvaluationResult) -> Path:
    """Writes FOLDER/evaluations/step_N.json on the main rank, and its picture beside it. If that file holds a result of another
    protocol or of other metrics, writes step_N_HASH.json instead.

    Raises UserError if the file cannot be written.
    """

    def write() -> Path:
        path = RunFolder(folder).evaluation(step)
        identity = _identity(evaluated.result)
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists() and _identity_of(path) != identity:
                path = path.with_stem(f"{path.stem}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
        except OSError as error:
            raise UserError(f"{path}: cannot write the evaluation ({error.strerror})") from error
        evaluated.write(path)
        return path

    return world.on_main(write)


def _identity(result: Mapping[str, Any]) -> str:
    """What was measured, and how: two results with the same identity repeat one measurement."""
    return json.dumps([sorted(result), result["protocol"]], sort_keys=True)


def _identity_of(path: Path) -> str | None:
    """The identity of the result in a file; None if the file holds no evaluation."""
    try:
        return _identity(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError):
        return None
