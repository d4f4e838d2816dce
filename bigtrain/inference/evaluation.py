"""Evaluation of a model: the metrics that its recipe names, as one result with its protocol."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, Stopped, together
from bigtrain.data.read.stream import Data
from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import check, evaluate
from bigtrain.evaluation.images import Drawn, ImageSet, Outputs
from bigtrain.evaluation.kept_pass import KeptPass
from bigtrain.evaluation.metrics.registry import MetricName, title
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData
from bigtrain.evaluation.result import EvaluationResult, versions
from bigtrain.families.abilities import Samples
from bigtrain.families.family import Family
from bigtrain.inference.candidate_selection import find_selection
from bigtrain.inference.drawn_points import check_points, measure_drawn_points
from bigtrain.inference.held_out import RunData, check_held_out, measure_held_out
from bigtrain.inference.metric_choice import (
    check_metrics,
    chosen_metrics,
    depends_on_sampling,
    of_samples,
    samples_given_pictures,
)
from bigtrain.inference.model import Model
from bigtrain.inference.outputs import named_by_sampling, samples_of
from bigtrain.inference.posthoc import FACTS
from bigtrain.inference.sampler import Sampler
from bigtrain.runs import atomic
from bigtrain.runs.folder import RunFolder
from bigtrain.untrusted import read_json


def _drawn(sampler: Sampler, data: RunData, options: EvaluationOptions) -> tuple[ImageSet, Labels]:
    """The samples of an evaluation, and the classes that they are conditioned on."""
    spec, given = sampler.family.spec, samples_given_pictures(sampler.family)
    if given is None:
        shape = (spec.channels, *spec.size)
        images = Drawn(sampler.draw, sampler.labels_of, options.samples, spec.classes, shape)
        return images, lambda: sampler.labels_of(range(options.samples)).numpy()
    split = data.split(options)
    outputs = samples_of(sampler, split)
    made = Outputs(split, options.split, "samples", given.sampled_field, outputs, given.conditions, options.samples)
    return made, lambda: made.labels


def check_early(
    family: Family, options: EvaluationOptions, train: Data, validation: Data | None, device: torch.device
) -> None:
    """Raises UserError, before the first step, for whatever would make the first evaluation fail."""
    chosen, data = chosen_metrics(family, options), RunData(train, validation)
    check_held_out(family, chosen, data, options, device)
    check_points(chosen, train, validation, options, device)
    sample_metrics, reading = of_samples(chosen), Reading(options.batch_size, 0)
    if sample_metrics:
        sampling = family.require(Samples, "evaluation.metrics").sampling
        images, labels = _drawn(Sampler(family, {}, options.seed, sampling, device), data, options)
        check(
            images,
            labels,
            together("opens the reference", lambda: RealData.of(options, *data.images)),
            sample_metrics,
            options,
            device,
        )
        if options.candidates > 1 and options.classifier != "classifier":
            find_selection(
                options.candidates, options.classifier, family.spec, lambda: data.for_classifiers, reading, device
            )


def evaluate_model(
    model: Model,
    train: Data | None,
    validation: Data | None,
    should_stop: Callable[[], bool] = lambda: False,
    *,
    keep_moments: bool = False,
    kept: Path | None = None,
) -> EvaluationResult | None:
    """Measures the recipe's metrics of a model; every rank calls it. None if stopped. `train` and `validation`: those of
    `needed_splits`; `kept`: a folder of this evaluation alone, in which what was measured of samples outlives a kill."""
    check_metrics(model.family, model.recipe.evaluation, validation)
    try:
        return _evaluated(model, RunData(train, validation), should_stop, keep_moments, kept)
    except Stopped:
        return None


def _evaluated(
    model: Model, data: RunData, should_stop: Callable[[], bool], keep_moments: bool, kept: Path | None
) -> EvaluationResult:
    """`evaluate_model`, but raises Stopped."""
    options = model.recipe.evaluation
    chosen = chosen_metrics(model.family, options)
    facts: dict[str, Any] = {
        key: model.provenance[key] for key in ("weights", "step", FACTS) if key in model.provenance
    }
    result: dict[str, Any] = {}
    picture, moments = None, None
    if of_samples(chosen) or keep_moments:
        measured = _measure_samples(model, data, of_samples(chosen), facts, should_stop, keep_moments, kept)
        result, picture, moments = dict(measured.result), measured.picture, measured.moments
        facts = result.pop("protocol")
    reading = Reading(options.batch_size, reading_workers(model), should_stop)
    for values, protocol in (
        measure_held_out(model, chosen, data, reading),
        measure_drawn_points(model, chosen, data.train, data.validation, reading),
    ):
        result, facts = result | values, facts | protocol
    facts.setdefault("versions", versions())
    return EvaluationResult({"step": model.provenance["step"]} | result | {"protocol": facts}, picture, moments)


def _measure_samples(
    model: Model,
    data: RunData,
    metrics: Sequence[MetricName],
    facts: dict[str, Any],
    should_stop: Callable[[], bool],
    keep_moments: bool,
    kept: Path | None,
) -> EvaluationResult:
    """What is measured on samples; `facts` are part of its protocol. Raises Stopped."""
    options = model.recipe.evaluation
    selection = model.selection(options.candidates, options.classifier, should_stop)
    sampler = model.sampler(options.seed, selection=selection)
    images, labels = _drawn(sampler, data, options)
    images.kept = None if kept is None else KeptPass(kept)
    measured = evaluate(
        images,
        together("opens the reference", lambda: RealData.of(options, *data.images)),
        metrics,
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
    unnamed = {title(name, options.features_label) for name in metrics if not depends_on_sampling(model.family, name)}
    result = named_by_sampling(measured.result, sampler, {*unnamed, "protocol"})
    return EvaluationResult(result, measured.picture, measured.moments)


def reading_workers(model: Model) -> int:
    """Processes per rank that read images for an evaluation."""
    workers = model.recipe.evaluation.workers
    return model.recipe.data.workers if workers is None else workers


def check_writable(folder: Path) -> None:
    """Raises UserError, before hours of sampling, if `write_evaluation` could not write into a run or an export."""
    evaluations = RunFolder(folder).evaluation(0).parent
    try:
        with tempfile.TemporaryFile(dir=evaluations if evaluations.exists() else folder):
            pass
    except OSError as error:
        raise UserError(
            f"{evaluations}: cannot be written ({error.strerror}), where the result of an evaluation is kept; name another "
            "place with --out FILE.json"
        ) from None


def check_file_writable(path: Path, flag: str) -> None:
    """Raises UserError, before hours of sampling, if a file could not be written where a flag says."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f"{flag}: {path}: cannot be written ({error.strerror}); name another place") from None


def write_evaluation(folder: Path, step: int, evaluated: EvaluationResult) -> Path:
    """Writes FOLDER/evaluations/step_N.json on the main rank, and its picture beside it. If that file holds a result of another
    protocol or of other metrics, writes step_N_HASH.json instead.

    Raises UserError if the file cannot be written.
    """

    def write() -> Path:
        path = RunFolder(folder).evaluation(step)
        identity = _identity(evaluated.result)
        try:
            atomic.make_folder(path.parent)
            if path.exists() and _identity_of(path) != identity:
                path = path.with_stem(f"{path.stem}_{hashlib.sha256(identity.encode()).hexdigest()[:8]}")
        except OSError as error:
            raise UserError(f"{path}: cannot write the evaluation ({error.strerror})") from error
        evaluated.write(path)
        return path

    return world.on_main(beats.as_work("writes the evaluation", write))


def _identity(result: Mapping[str, Any]) -> str:
    """What was measured, and how: two results with the same identity repeat one measurement."""
    return json.dumps([sorted(result), result["protocol"]], sort_keys=True)


def _identity_of(path: Path) -> str | None:
    """The identity of the result in a file; None if the file holds no evaluation."""
    try:
        return _identity(read_json(path))
    except (ValueError, TypeError, KeyError):
        return None
