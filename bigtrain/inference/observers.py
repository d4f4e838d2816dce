"""What the train door hands to the trainer, to be called at intervals: pictures and evaluations of averaged weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, Stopped, gather_rows, stoppable, together
from bigtrain.data.index import Index
from bigtrain.data.read.batch import to_images
from bigtrain.data.read.stream import SplitLoader
from bigtrain.errors import UserError
from bigtrain.evaluation.evaluate import check, evaluate
from bigtrain.evaluation.finding import find_features
from bigtrain.evaluation.held_out import measure_likelihood, measure_reconstruction, measure_rfid
from bigtrain.evaluation.images import Drawn
from bigtrain.evaluation.metrics.definitions import METRICS
from bigtrain.evaluation.options import HELD_OUT, EvaluationOptions
from bigtrain.evaluation.reference import Labels, RealData
from bigtrain.evaluation.result import EvaluationResult, versions
from bigtrain.families.family import Capability, Family
from bigtrain.features.classifier import check_classes
from bigtrain.inference.candidate_selection import find_selection
from bigtrain.inference.checkpoint_selection import in_training
from bigtrain.inference.model import Model, Sampler, attach_dependencies, images_behind
from bigtrain.pictures import save_grid, to_uint8
from bigtrain.recipe import Recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.observer import Observer

GRID_CLASSES = 10
"""Rows of a picture during training: the first classes, one a row."""
GRID_PER_CLASS = 10


class SampleObserver:
    """Draws a grid, one class a row, on all ranks. The same noise every time, so that pictures show the progress."""

    def __init__(self, family: Family, folder: RunFolder, seed: int, device: torch.device) -> None:
        self.family, self.folder, self.seed, self.device = family, folder, seed, device

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        options, spec = self.family.sampling, self.family.spec
        prepared = self.family.prepare_sampling(networks, options, self.seed)
        sampler = Sampler(self.family, prepared, self.seed, options, self.device)
        rows = min(GRID_CLASSES, len(spec.classes)) if "by_class" in self.family.capabilities else GRID_CLASSES
        labels = torch.arange(rows).repeat_interleave(GRID_PER_CLASS) % len(spec.classes)
        share = range(len(labels) * world.rank() // world.size(), len(labels) * (world.rank() + 1) // world.size())

        def draw() -> torch.Tensor:
            if not share:
                return torch.empty(0, 3, spec.image_size, spec.image_size, dtype=torch.uint8, device=self.device)
            return sampler.draw(share, labels[share.start : share.stop])

        try:
            with stoppable(should_stop):
                images = together(draw)
        except Stopped:
            return {}  # the run that goes on makes up for it
        drawn = gather_rows(images)
        if drawn is not None:
            save_grid(self.folder.samples(step), drawn, GRID_PER_CLASS)
        return {}


class ReconstructionObserver:
    """Draws pairs on the main rank: a row of real images above their reconstructions, always of the same images."""

    def __init__(self, family: Family, folder: RunFolder, images: Index, device: torch.device) -> None:
        self.family, self.folder, self.images, self.device = family, folder, images, device

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        if world.is_main():
            count = GRID_CLASSES * GRID_PER_CLASS // 2
            pairs = reconstruction_pairs(
                lambda images: self.family.reconstruct(networks, images), self.images, count, self.device
            )
            save_grid(self.folder.samples(step), pairs, GRID_PER_CLASS)
        return {}


@torch.no_grad()
def reconstruction_pairs(
    reconstruct: Callable[[torch.Tensor], torch.Tensor], images: Index, count: int, device: torch.device
) -> torch.Tensor:
    """The first `count` images of a fair order of the split, uint8 [n, 3, H, W]: a row of GRID_PER_CLASS originals, then
    the row of their reconstructions, and so on; what the last row lacks is white."""
    rows = []
    for _, batch in SplitLoader(images, rank=0, world=1, batch=GRID_PER_CLASS, workers=0, limit=count):
        real = to_images(batch, device)
        for row in (to_uint8(real), to_uint8(reconstruct(real).clamp(-1, 1))):
            missing = row.new_full((GRID_PER_CLASS - len(row), *row.shape[1:]), 255)
            rows.append(torch.cat([row, missing]))
    return torch.cat(rows)


class EvaluationObserver:
    """Evaluates as the evaluate door does, on all ranks, and writes the same file."""

    def __init__(
        self,
        family: Family,
        folder: RunFolder,
        recipe: Recipe,
        train: Index,
        validation: Index | None,
        device: torch.device,
    ) -> None:
        self.family, self.folder, self.recipe, self.device = family, folder, recipe, device
        self.train, self.validation = train, validation

    def has(self, step: int) -> bool:
        return self.folder.evaluation(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        provenance = {"step": step, "weights": "ema", "data": self.family.spec.to_json()}
        model = Model(self.family, networks, self.recipe, provenance, self.device)
        measured = evaluate_model(model, self.train, self.validation, should_stop)
        if measured is None:
            return {}
        write_evaluation(self.folder.path, step, measured)
        return {name: value for name, value in measured.result.items() if isinstance(value, float)}


def observers_of(
    family: Family,
    folder: RunFolder,
    recipe: Recipe,
    train: Index,
    validation: Index | None,
    device: torch.device,
) -> dict[str, Observer]:
    """What the trainer is to call: under "sample" pictures of what the family can show, under "evaluate" its metrics.

    Opens the models that the family follows where these need them. Raises UserError for intervals at which nothing
    could be done.
    """
    attach_dependencies(family, device, [role for role, other in family.dependencies.items() if other.at_start])
    observers: dict[str, Observer] = {}
    samples = False
    if recipe.train.evaluate_every is not None:
        check_metrics(family, recipe.evaluation, validation)
        _check_early(family, in_training(recipe).evaluation, train, validation, device)
        samples = any(metric not in HELD_OUT for metric in recipe.evaluation.chosen(family.capabilities))
        observers["evaluate"] = EvaluationObserver(family, folder, in_training(recipe), train, validation, device)
    if recipe.train.sample_every is not None:
        if "sample" in family.capabilities:
            samples = True
            observers["sample"] = SampleObserver(family, folder, recipe.run.seed, device)
        elif "reconstruct" in family.capabilities:
            observers["sample"] = ReconstructionObserver(family, folder, validation or train, device)
        else:
            raise UserError(f"train.sample_every: {family.why_not('sample')}; leave it null")
    if samples:
        attach_dependencies(family, device)
    return observers


def _check_early(
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
        find_features(*real, options, family.spec.image_size, reading, device)


def _drawn(sampler: Sampler, options: EvaluationOptions) -> tuple[Drawn, Labels]:
    """The samples of an evaluation, and the classes that they are asked for."""
    spec, count = sampler.family.spec, options.samples
    images = Drawn(sampler.draw, sampler.labels_of, count, spec.classes, spec.image_size)
    return images, lambda: sampler.labels_of(range(count)).numpy()


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
