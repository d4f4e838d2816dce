"""Evaluation of a model: the metrics that its recipe asks for, as one result with the protocol in it."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, Stopped, together
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import check, evaluate
from bigtrain.evaluation.held_out import measure_likelihood, measure_reconstruction, measure_rfid
from bigtrain.evaluation.images import Drawn
from bigtrain.evaluation.metrics.definitions import METRICS
from bigtrain.evaluation.options import HELD_OUT, EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData
from bigtrain.evaluation.result import EvaluationResult, versions
from bigtrain.families.family import Capability, Family
from bigtrain.features.classifier import check_classes
from bigtrain.features.opening import open_features
from bigtrain.inference.candidate_selection import find_selection
from bigtrain.inference.model import Model, Sampler
from bigtrain.inference.splits import images_behind
from bigtrain.runs.folder import RunFolder


def _drawn(sampler: Sampler, options: EvaluationOptions) -> tuple[Drawn, Labels]:
    """The samples of an evaluation, and the classes that they are asked for."""
    spec, count = sampler.family.spec, options.samples
    images = Drawn(sampler.draw, sampler.labels_of, count, spec.classes, spec.image_size)
    return images, lambda: sampler.labels_of(range(count)).numpy()


def check_early(
    family: Family, options: EvaluationOptions, train: Index, validation: Index | None, device: torch.device
) -> None:
    """Raises UserError before the first step for what the first evaluation would refuse, or would not find."""
    chosen = options.chosen(family.capabilities)
    of_samples = [metric for metric in chosen if metric in METRICS]
    if "bits_per_dim" in chosen:
        family.likelihood_protocol(options.likelihood_evaluations, options.seed)
    if not of_samples and "rfid" not in chosen:
        return
    real = images_behind(train), images_behind(validation) if validation is not None else None
    reading = Reading(options.batch_size, 0)
    if of_samples:
        images, labels = _drawn(Sampler(family, {}, options.seed, family.sampling, device), options)
        check(images, labels, together(lambda: RealData.of(options, *real)), of_samples, options, device)
        if options.candidates > 1 and options.classifier != "classifier":
            find_selection(options.candidates, options.classifier, family.spec, lambda: real, reading, device)
    if "rfid" in chosen and options.features == "classifier":
        check_classes(real[0], "features")
    elif "rfid" in chosen:
        size = family.spec.image_size
        open_features(options.features, options.weights, size, reading, device, train=real[0], validation=real[1])


def check_metrics(family: Family, options: EvaluationOptions, validation: Index | None) -> None:
    """Raises UserError for a metric that needs what the family cannot do, or data that are not there."""
    for metric in options.chosen(family.capabilities):
        needed: list[Capability] = [HELD_OUT[metric]] if metric in HELD_OUT else ["sample"]
        needed += ["by_class"] if metric in METRICS and "labels" in METRICS[metric].fake else []
        for capability in needed:
            if capability not in family.capabilities:
                raise UserError(f"evaluation.metrics: {metric} cannot be measured: {family.why_not(capability)}")
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
    train: Index,
    validation: Index | None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    keep_moments: bool = False,
) -> EvaluationResult | None:
    """The recipe's metrics of a model, as JSON with the protocol in it; called on every rank. None if stopped."""
    check_metrics(model.family, model.recipe.evaluation, validation)
    try:
        return _evaluated(model, train, validation, should_stop, keep_moments)
    except Stopped:
        return None


def _evaluated(
    model: Model, train: Index, validation: Index | None, should_stop: Callable[[], bool], keep_moments: bool
) -> EvaluationResult:
    """`evaluate_model`, or Stopped."""
    family, options = model.family, model.recipe.evaluation
    chosen = options.chosen(family.capabilities)
    of_samples = [metric for metric in chosen if metric in METRICS]
    facts: dict[str, Any] = {"weights": model.provenance["weights"], "step": model.provenance["step"]}
    result: dict[str, Any] = {}
    picture, moments = None, None
    if of_samples or keep_moments:
        sampler = model.sampler(
            options.seed, selection=model.selection(options.candidates, options.classifier, should_stop)
        )
        images, labels = _drawn(sampler, options)
        real = images_behind(train), images_behind(validation) if validation is not None else None
        measured = evaluate(
            images,
            together(lambda: RealData.of(options, *real)),
            of_samples,
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
        name = family.sampling_name(sampler.sampling)
        # What is measured on real images alone has nothing to do with the way of sampling.
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
    asked = model.recipe.evaluation.workers
    return model.recipe.data.workers if asked is None else asked


def _measure_held_out(
    metric: str, model: Model, train: Index, validation: Index | None, should_stop: Callable[[], bool]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(values, protocol) of one metric of real data."""
    options = model.recipe.evaluation
    split = train if options.split == "train" else validation
    assert split is not None, "check_metrics has seen to it"
    reading = Reading(options.batch_size, reading_workers(model), should_stop)
    samples = min(options.split_samples or split.samples, split.samples)
    protocol: dict[str, Any] = {"split": options.split, "samples": samples, "fingerprint": split.fingerprint}
    if metric == "rfid":
        real = images_behind(train), images_behind(validation) if validation is not None else None
        values, facts = measure_rfid(model.reconstruct, split, *real, options, model.device, reading)
        return values, protocol | facts
    if metric == "reconstruction":
        return measure_reconstruction(model.reconstruct, split, options.split_samples, model.device, reading), protocol
    protocol["dimensions"] = model.family.dimensions
    protocol |= model.family.likelihood_protocol(options.likelihood_evaluations, options.seed)
    likelihood = model.likelihood(options.seed, options.likelihood_evaluations)
    return measure_likelihood(
        likelihood, model.family.dimensions, split, options.split_samples, model.device, reading
    ), protocol


def write_evaluation(folder: Path, step: int, measured: EvaluationResult) -> Path:
    """Writes FOLDER/evaluations/step_N.json on the main rank, or step_N_HASH.json where the result of another protocol or of
    other metrics stands, and its picture beside it.

    Raises UserError where the disk does not take it.
    """

    def write() -> Path:
        path = RunFolder(folder).evaluation(step)
        identity = _identity(measured.result)
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists() and _identity_of(path) != identity:
                path = path.with_stem(f"{path.stem}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
        except OSError as error:
            raise UserError(f"{path}: cannot write the evaluation ({error.strerror})") from error
        measured.write(path)
        return path

    return world.on_main(write)


def _identity(result: Mapping[str, Any]) -> str:
    """What was measured, and how: two results of which this is the same are one measurement, made twice."""
    return json.dumps([sorted(result), result["protocol"]], sort_keys=True)


def _identity_of(path: Path) -> str | None:
    """None of a file that holds no evaluation of ours."""
    try:
        return _identity(json.loads(path.read_bytes()))
    except (ValueError, TypeError, KeyError):
        return None
