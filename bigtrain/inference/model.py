"""A trained model as the commands use it: opened from a run or an export, it samples and gives likelihoods."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading
from bigtrain.data.fields.label import KnownLabelField
from bigtrain.data.index import Index
from bigtrain.data.options import shown
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.data.read.stream import Data
from bigtrain.data.splits import describe
from bigtrain.errors import UserError
from bigtrain.families.abilities import Ability, Classifies, Effort, Likelihood, Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Dependency, Family, LoadedModel, build_network, find_family, without_weights
from bigtrain.families.phases import Networks
from bigtrain.features.cache import fingerprint
from bigtrain.features.network import full_float32
from bigtrain.formats import checked_format
from bigtrain.inference.candidate_selection import Selection, find_selection
from bigtrain.inference.dependencies import data_located, find_weights, group_of, located
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.inference.posthoc import FACTS, Snapshots, named_width, weights_name
from bigtrain.inference.sampler import Sampler
from bigtrain.inference.splits import find_splits, images_behind
from bigtrain.randomness import Draws, to_device
from bigtrain.recipe import Recipe, differences, load_recipe, with_values
from bigtrain.runs import checkpoint
from bigtrain.runs.nearby import is_run_or_export, why_neither
from bigtrain.sizes import size_text
from bigtrain.training.averaging import MUCH_INITIAL, EmaOptions
from bigtrain.untrusted import read_json
from bigtrain.wrong_values import did_you_mean

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A family with weights. `provenance`: step, weights ("ema", "raw" or the name of an extra average), data, as JSON."""

    family: Family
    weights: Networks
    recipe: Recipe
    provenance: Mapping[str, Any]
    device: torch.device

    @property
    def fingerprint(self) -> str:
        """A hash of the weights as float32: the same on every device, and for a run and its export."""
        return fingerprint(
            {
                f"{component}/{name}": value.float() if value.is_floating_point() else value
                for component, network in self.weights.items()
                for name, value in network.state_dict().items()
            }
        )

    def check_data(self, index: Data, key: str) -> None:
        """Raises UserError if the model was not trained on data like this split: other classes, size or codes."""
        data = self.provenance["data"]
        given, own = DataSpec.from_json(describe(index)), DataSpec.from_json(data)
        if (given.size, given.channels, given.classes) != (own.size, own.channels, own.classes):
            raise UserError(
                f"{key}: {index.where} has {_in_words(given)}, but the model's own data have other classes or another size "
                f"({_in_words(own)}); give a split of those"
            )
        own_tokenizer = data["codes"]["tokenizer"] if data.get("codes") else None
        if (index.codes.tokenizer if index.codes else None) != own_tokenizer:
            raise UserError(
                f"{key}: {index.where} does not hold what the model was trained on ("
                f"{'codes of another tokenizer, or images' if own_tokenizer else 'codes, where the model takes images'}); give "
                "a split of that data"
            )

    def with_sampling(self, sampling: Any) -> "Model":
        """The same model with other sampling options, of which may depend what it samples given, and by the help of which other
        models."""
        if sampling == self.family.require(Samples, "sampling").sampling:
            return self
        family = type(self.family)(self.family.options.model_copy(update={"sampling": sampling}), self.family.spec)
        kept = {
            role: trained
            for role, trained in self.family.attached.items()
            if family.dependencies.get(role) == self.family.dependencies[role]
        }
        family.attach(kept)
        return replace(self, family=family, recipe=with_values(self.recipe, {"family.sampling": sampling}))

    def with_overrides(self, path: Path, overrides: Sequence[str]) -> "Model":
        """The same weights with other overrides of the recipe of their run, whose checkpoint may be deleted by now."""
        recipe = located(_recipe_of(path, overrides), path / "recipe.yaml")
        return replace(self, family=make_family(recipe, self.family.spec), recipe=recipe)

    def sampler(self, seed: int, sampling: Any = None, selection: Selection | None = None) -> Sampler:
        """A sampler with the options `sampling` (the recipe's own if None); opens the models that this one depends on."""
        model = self if sampling is None else self.with_sampling(sampling)
        attach_dependencies(model.family, self.device)
        family = model.family.require(Samples, "sampling")
        prepared = family.prepare_sampling(self.weights, family.sampling, seed)
        return Sampler(model.family, prepared, seed, family.sampling, self.device, selection)

    def selection(
        self, candidates: int, classifier: str, should_stop: Callable[[], bool] = lambda: False
    ) -> Selection | None:
        """The selection among `candidates` for each sample; None if there is only one. `classifier`: as evaluation.classifier.

        Raises Stopped if `should_stop` becomes true while a classifier is trained.
        """
        if candidates == 1:
            return None
        reading = Reading(self.recipe.evaluation.batch_size, self.recipe.data.workers, should_stop)
        return find_selection(candidates, classifier, self.family.spec, self._images, reading, self.device)

    def _images(self) -> tuple[Index, Index | None]:
        train, validation = find_splits(self.recipe.data)
        self.check_data(train, "data.train")
        return images_behind(train), images_behind(validation) if validation is not None else None

    def likelihood(
        self, index: Index, seed: int, effort: Effort
    ) -> Callable[[np.ndarray, Batch], Mapping[str, Tensor]]:
        """The function from batches of a split to the terms of their likelihood. `seed` keys the draws of families whose bound
        needs any."""
        family = self.family.require(Likelihood, "evaluation.metrics: bits_per_dim")

        def measure(numbers: np.ndarray, batch: Batch) -> Mapping[str, Tensor]:
            sample_ids = to_device(torch.from_numpy(numbers), self.device)
            fields = on_device(batch, index.fields, self.device)
            with full_float32(self.device):
                asked = microbatch_of(fields, sample_ids, Draws(seed, device=self.device))
                return family.likelihood(self.weights, asked, effort)

        return measure

    def class_scores(
        self, index: Index, seed: int, effort: Effort
    ) -> Callable[[np.ndarray, Batch], Mapping[str, Tensor]]:
        """The function from batches of a split to "scores", how likely each class is of each sample, and "label", its own."""
        family = self.family.require(Classifies, "evaluation.metrics: held_out_accuracy")

        def measure(numbers: np.ndarray, batch: Batch) -> Mapping[str, Tensor]:
            sample_ids = to_device(torch.from_numpy(numbers), self.device)
            fields = dict(on_device(batch, index.fields, self.device))
            label = fields.pop(LABEL)
            with full_float32(self.device):
                asked = microbatch_of(fields, sample_ids, Draws(seed, device=self.device))
                return {"scores": family.class_scores(self.weights, asked, effort), LABEL: label}

        return measure


LABEL = "label"
"""The field that holds a sample's class."""


def require_label(family: Ability, what: object) -> None:
    """Raises UserError, beginning with `what`, for a model that does not sample by class."""
    if not isinstance(family, Samples) or "label" not in family.conditions:
        raise UserError(
            f"{what}: this {family.kind} cannot draw samples of a given class, as it was trained without classes"
        )


def _in_words(spec: DataSpec) -> str:
    return f"{len(spec.classes)} classes of {'grey' if spec.channels == 1 else 'RGB'} images of {size_text(spec.size)} pixels"


def open_model(
    path: Path,
    device: torch.device,
    *,
    weights: str | None = None,
    which: str = "newest",
    overrides: Sequence[str] = (),
) -> Model:
    """Opens a run folder or an export; every rank calls it and opens the same.

    `weights`: "ema", "raw", the name of an extra average, or sigma_rel=X for one that is made of snapshots; None: a run's main
    average, or the weights of an export.
    `which`: a run's checkpoint: "newest" (the newest complete one), "best" (train.keep_best) or a step. Raises UserError if
    the folder is neither, or has no such checkpoint.
    """
    recipe = _recipe_of(path, overrides)
    if (path / "model_index.json").is_file():
        if which != "newest":
            raise UserError(f"--checkpoint: {path} is an export, which has no checkpoints")
        return _open_export(path, recipe, device, weights)
    return _open_run(path, located(recipe, path / "recipe.yaml"), device, weights or "ema", which)


def _recipe_of(path: Path, overrides: Sequence[str]) -> Recipe:
    if not is_run_or_export(path):
        raise UserError(why_neither(path))
    file = path / "recipe.yaml"
    return data_located(load_recipe(file, overrides, of_model=True), file, overrides)


def hang_timeout_s(path: Path) -> float | None:
    """The engine.hang_timeout_s of a run folder or an export. Raises UserError if the folder is neither."""
    return _recipe_of(path, ()).engine.hang_timeout_s


def make_family(recipe: Recipe, spec: DataSpec) -> Family:
    """The recipe's family for such data. Raises UserError if its options do not fit the data."""
    kind = find_family(recipe.family.kind)
    for name, wanted in kind.needs.items():
        _check_field(name, wanted, spec, kind.kind, recipe.data.train)
    try:
        family = kind(recipe.family, spec)
    except ValueError as error:
        raise UserError(str(error)) from None
    for name in family.reads:
        if name not in spec.fields:
            _check_field(name, name, spec, kind.kind, recipe.data.train)
    return family


def _check_field(name: str, wanted: str, spec: DataSpec, family: str, train: str | dict[str, str]) -> None:
    """Raises UserError if the data have no field `name` of the kind `wanted`."""
    found = spec.fields.get(name)
    if found is not None and found["kind"] == wanted:
        return
    where = shown(train)
    if wanted == "image" and spec.codes is not None:
        raise UserError(f"data.train: {where} holds codes, but a {family} learns images; give their index")
    has = ", ".join(f"{other} ({facts['kind']})" for other, facts in spec.fields.items())
    missing = f"no field {name}" if found is None else f"a field {name} that is no {wanted}"
    remedy = f"rename one with data.rename.{name}=FIELD, or derive one by data.derive.{name}"
    if wanted == KnownLabelField.kind:
        remedy = "set data.known_labels.per_class"
    elif not isinstance(train, str):  # a name in data.train comes before what its index is renamed to
        named = f"give one of the indexes the name {name} in data.train, or " if wanted != "label" else ""
        remedy = f"{named}train on one index"
    raise UserError(
        f"data.train: {where} has {missing}, and a {family} needs a field {name} of the kind {wanted}; it has {has}: {remedy}"
    )


def attach_dependencies(family: Family, device: torch.device, roles: Sequence[str] | None = None) -> None:
    """Opens the models that the family depends on (those of `roles`, or all), unless they are attached already."""
    missing = {
        role: other
        for role, other in family.dependencies.items()
        if role not in family.attached and (roles is None or role in roles)
    }
    trained = {}
    for role, other in missing.items():
        try:
            model = _open_dependency(other, device, family.spec.tokenizer if other.makes_codes else None)
        except UserError as error:
            raise UserError(f"family.{role}: {error}") from None
        attach_dependencies(model.family, device, other.roles)
        trained[role] = LoadedModel(model.family, model.weights, model.fingerprint)
    family.attach(trained)


def _open_dependency(other: Dependency, device: torch.device, wanted: str | None) -> Model:
    """A model that another depends on. `wanted`: the fingerprint of its weights, for which the checkpoints of a run that was
    trained further are searched; where no kept one has it, the newest is opened."""
    path = Path(other.path)
    model = open_model(path, device, weights=other.weights, which=other.checkpoint)
    if wanted in (None, model.fingerprint) or (path / "model_index.json").is_file():
        return model
    components, averages = model.family.sampled_components, list(model.recipe.ema.extra)
    found = world.on_main(partial(find_weights, path, components, averages, str(wanted)))
    return model if found is None else _open_run(path, model.recipe, device, *found)


def warn_of_initial_weights(family: Family, ema: EmaOptions, weights: str, step: int) -> None:
    """Warns if an average (`ema`, or an extra one's name) is to a good part the weights that training began with."""
    averaged = any(family.components[name].averaged for name in family.sampled_components)
    known = averaged and weights in ("ema", *ema.extra)  # and not "raw", or what an export by others says
    share = ema.initial_share(weights, max(step, 0)) if known else 0.0
    if share > MUCH_INITIAL and world.is_main():
        log.warning(
            "the averaged weights (%s) of step %d are to %.0f %% those that training began with, and show their noise: use "
            "those of training itself (--weights raw), train for longer, or in a new run set ema.warmup=true or a lower ema.%s",
            weights,
            step,
            100 * share,
            "decay" if weights == "ema" else f"extra.{weights}.decay",
        )


def opened_run(path: Path, which: str) -> tuple[Recipe, checkpoint.Checkpoint]:
    """The recipe of a run and one of its checkpoints, which `which` says as for `open_model`. Every rank calls it. Raises
    UserError."""
    recipe = located(_recipe_of(path, ()), path / "recipe.yaml")
    saved = checkpoint.opened(world.on_main(lambda: checkpoint.chosen_path(path / "checkpoints", which)))
    _check_recipe_of(saved, path)
    return recipe, saved


def _open_run(path: Path, recipe: Recipe, device: torch.device, weights: str, which: str) -> Model:
    width = named_width(weights)
    if width is None and weights not in ("ema", "raw", *recipe.ema.extra):
        available = ["ema", "raw", *recipe.ema.extra]
        meant = did_you_mean([weights], available)
        raise UserError(f"--weights: {path} has no average {weights!r}{meant} (there are: {', '.join(available)})")

    kept = [] if recipe.ema.posthoc is None else list(recipe.ema.posthoc.by_name())

    def check(saved: checkpoint.Checkpoint) -> None:
        _check_recipe_of(saved, path)
        family = make_family(recipe, _described(saved))
        for name in family.sampled_components:
            shapes = without_weights(family, name).state_dict()
            group = _group(family, name, weights)
            for each in [group] if width is None or group == "weights" else kept:
                checkpoint.check_tensors(f"{name}.{each}", saved.tensors(name).get(each), shapes)

    saved = checkpoint.opened(world.on_main(lambda: checkpoint.chosen_path(path / "checkpoints", which, check)))
    family = make_family(recipe, _described(saved))
    networks = {name: build_network(family, name, recipe.run.seed) for name in family.sampled_components}
    provenance = {"step": saved.step, "weights": weights, "data": saved.state["data"]}
    if width is None:
        for name, network in networks.items():
            network.load_state_dict(saved.tensors(name)[_group(family, name, weights)])
    else:
        provenance |= _load_made(path, recipe, saved, family, networks, width)
    warn_of_initial_weights(family, recipe.ema, weights, saved.step)
    ready_networks = {name: ready(network, device) for name, network in networks.items()}
    return Model(family, ready_networks, recipe, provenance, device)


def _load_made(
    run: Path, recipe: Recipe, saved: checkpoint.Checkpoint, family: Family, networks: Networks, width: float
) -> dict[str, Any]:
    """Puts the average of this width, made of the run's snapshots, into the networks, and a component's own weights into one
    that has no averages; returns what the provenance says of it. Raises UserError."""
    averaged = [name for name in networks if _group(family, name, "ema") == "average"]
    made, facts = made_of_snapshots(run, recipe, saved, family, averaged, width)
    for name, network in networks.items():
        network.load_state_dict(made[name] if name in made else saved.tensors(name)["weights"])
    return facts


def made_of_snapshots(
    run: Path, recipe: Recipe, saved: checkpoint.Checkpoint, family: Family, averaged: Sequence[str], width: float
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """The average of this width, of the components that have averages, by component and tensor; and what the provenance says of
    it. Every rank calls it. Raises UserError."""
    if not averaged:
        raise UserError(f"--weights: a {family.kind} keeps no averages; leave {weights_name(width)} out")
    networks = {name: without_weights(family, name) for name in averaged}
    snapshots = Snapshots.open(run, recipe.ema.posthoc, saved, networks)
    fit = snapshots.fit(width)
    tensors = {name: snapshots.tensors(name, network, fit) for name, network in networks.items()}
    return tensors, {"weights": weights_name(width), FACTS: snapshots.facts(width, fit)}


def _described(saved: checkpoint.Checkpoint) -> DataSpec:
    """The data that a checkpoint was trained on. Raises ValueError if it does not say them."""
    try:
        return DataSpec.from_json(saved.state.get("data", {}))
    except UserError as error:
        raise ValueError(str(error)) from None


def _group(family: Family, name: str, weights: str) -> str:
    """The group of a component's tensors that such weights are: those of training itself where it has no averages."""
    component = family.components[name]
    return group_of(weights) if component.averaged and component.optimizer is not None else "weights"


def _check_recipe_of(saved: checkpoint.Checkpoint, run: Path) -> None:
    """Raises UserError if a checkpoint was trained with another recipe than the one that lies in its run folder now."""
    recipe = checkpoint.recipe_of(saved.path)
    changed = differences(load_recipe(recipe), load_recipe(run / "recipe.yaml")) if recipe is not None else []
    if changed:
        raise UserError(
            f"{run / 'recipe.yaml'}: is not the recipe that {saved.path.name} was trained with ({'; '.join(changed)}); restore "
            f"it from {recipe}"
        )


def _open_export(path: Path, recipe: Recipe, device: torch.device, weights: str | None) -> Model:
    import bigtrain.pipelines.pipeline  # noqa: F401  # older exports name it, and diffusers takes only what is imported
    from bigtrain.exchange.export import opened  # heavy, and only exports need it

    try:
        provenance = read_json(path / "provenance.json")
        checked_format(provenance, str(path / "provenance.json"))
        stored_weights, stored_step = str(provenance["weights"]), int(provenance["step"])
        family = make_family(recipe, DataSpec.from_json(provenance["data"]))
        networks, attached = opened(path, family)
    except UserError:
        raise
    except Exception as error:  # diffusers may raise anything for a folder that somebody else has made
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: the export is incomplete or damaged ({reason}); export the run again") from error
    width = None if weights is None else named_width(weights)
    if weights not in (None, stored_weights) and (width is None or weights_name(width) != stored_weights):
        raise UserError(
            f"{path}: this export holds {stored_weights} weights, not {weights} ones; leave out --weights, or export "
            "the run again"
        )
    if "converted" not in provenance:  # whose recipe says nothing of how its average was made
        warn_of_initial_weights(family, recipe.ema, stored_weights, stored_step)
    family.attach({role: _ready_dependency(trained, device) for role, trained in attached.items()})
    return Model(
        family, {name: ready(network, device) for name, network in networks.items()}, recipe, provenance, device
    )


def _ready_dependency(trained: LoadedModel, device: torch.device) -> LoadedModel:
    """A dependency from an export, and its own dependencies, on the device and in eval mode."""
    trained.family.attach({role: _ready_dependency(other, device) for role, other in trained.family.attached.items()})
    networks = {name: ready(network, device) for name, network in trained.networks.items()}
    return LoadedModel(trained.family, networks, trained.fingerprint)


def ready(network: nn.Module, device: torch.device) -> nn.Module:
    """In eval mode on the device, in channels_last as in training: another memory format would change rounding."""
    return network.requires_grad_(False).to(device).to(memory_format=torch.channels_last).eval()
