"""Observers, which the trainer calls at intervals with the averaged weights: they draw pictures and evaluate."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.cluster.passes import Stopped, gather_rows, stoppable, together
from bigtrain.data.index import Index
from bigtrain.data.read.stream import Data
from bigtrain.errors import UserError
from bigtrain.families.abilities import Density, Panels, Reconstructs, Samples
from bigtrain.families.family import Family
from bigtrain.families.phases import Networks
from bigtrain.inference.checkpoint_selection import in_training
from bigtrain.inference.density import DENSITY_SIDE, density_picture
from bigtrain.inference.evaluation import check_early, evaluate_model, write_evaluation
from bigtrain.inference.metric_choice import ability_for, check_metrics, chosen_metrics
from bigtrain.inference.model import Model, attach_dependencies, warn_of_initial_weights
from bigtrain.inference.panel_observer import PanelObserver
from bigtrain.inference.rows import COLUMNS, output_rows, reconstruction_rows
from bigtrain.inference.sampler import Sampler
from bigtrain.inference.splits import one_index
from bigtrain.pictures import save_grid
from bigtrain.recipe import Recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.observer import Observer

GRID_CLASSES = 10
"""Rows of a picture during training: the first classes, one a row."""
GRID_PER_CLASS = 10
"""Images of a row."""
SHOWN = 50
"""Samples of a split of which rows are drawn."""


class SampleObserver:
    """Draws a grid, one class a row, on all ranks; always with the same noise, so that pictures show progress."""

    def __init__(self, family: Family, folder: RunFolder, seed: int, device: torch.device) -> None:
        self.family, self.folder, self.seed, self.device = family, folder, seed, device

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        family, spec = self.family.require(Samples, "train.sample_every"), self.family.spec
        prepared = family.prepare_sampling(networks, family.sampling, self.seed)
        sampler = Sampler(self.family, prepared, self.seed, family.sampling, self.device)
        rows = min(GRID_CLASSES, len(spec.classes)) if "label" in family.conditions else GRID_CLASSES
        labels = torch.arange(rows).repeat_interleave(GRID_PER_CLASS) % len(spec.classes)
        share = range(len(labels) * world.rank() // world.size(), len(labels) * (world.rank() + 1) // world.size())

        def draw() -> torch.Tensor:
            if not share:
                return torch.empty(0, spec.channels, *spec.size, dtype=torch.uint8, device=self.device)
            return sampler.draw(share, labels[share.start : share.stop])

        try:
            with stoppable(should_stop):
                images = together("draws samples", draw)
        except Stopped:
            return {}  # the resumed run draws it
        drawn = gather_rows(images)
        if drawn is not None:
            with beats.work("writes a picture"):
                self.folder.make_room(self.folder.samples(step))
                save_grid(self.folder.samples(step), drawn, GRID_PER_CLASS)
        return {}


class RowsObserver:
    """Draws rows of data and of what the model makes of them, on the main rank; always of the same samples."""

    def __init__(self, family: Family, folder: RunFolder, recipe: Recipe, split: Index, device: torch.device) -> None:
        self.family, self.folder, self.recipe, self.split, self.device = family, folder, recipe, split, device

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        if world.is_main():
            model, seed = model_in_training(self.family, networks, self.recipe, step, self.device), self.recipe.run.seed
            try:
                with beats.work("draws rows"), stoppable(should_stop):
                    if self.family.ability(Samples) is not None:
                        picture = output_rows(model.sampler(seed), self.split, SHOWN)
                    else:
                        picture = reconstruction_rows(model, self.split, SHOWN, seed)
            except Stopped:
                return {}  # the resumed run draws it
            with beats.work("writes a picture"):
                self.folder.make_room(self.folder.samples(step))
                save_grid(self.folder.samples(step), picture, COLUMNS)
        return {}


class DensityObserver:
    """Draws the density in a plane, on the main rank."""

    def __init__(self, family: Density, folder: RunFolder, device: torch.device) -> None:
        self.family, self.folder, self.device = family, folder, device

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        if world.is_main():
            with beats.work("draws the density"):
                picture = density_picture(self.family, networks, DENSITY_SIDE, self.device)
                self.folder.make_room(self.folder.samples(step))
                save_grid(self.folder.samples(step), picture, 1)
        return {}


class EvaluationObserver:
    """Evaluates as launch/evaluate.py does, on all ranks, and writes the same file."""

    def __init__(
        self,
        family: Family,
        folder: RunFolder,
        recipe: Recipe,
        train: Data,
        validation: Data | None,
        device: torch.device,
    ) -> None:
        self.family, self.folder, self.recipe, self.device = family, folder, recipe, device
        self.train, self.validation = train, validation

    def has(self, step: int) -> bool:
        return self.folder.evaluation(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        model = model_in_training(self.family, networks, self.recipe, step, self.device)
        evaluated = evaluate_model(model, self.train, self.validation, should_stop)
        if evaluated is None:
            return {}
        world.on_main(self.folder.check)
        write_evaluation(self.folder.path, step, evaluated)
        return {name: value for name, value in evaluated.result.items() if isinstance(value, float)}


def model_in_training(family: Family, networks: Networks, recipe: Recipe, step: int, device: torch.device) -> Model:
    """The model that a run has at a step; `networks` are averages."""
    return Model(family, networks, recipe, {"step": step, "weights": "ema", "data": family.spec.to_json()}, device)


def observers_of(
    family: Family,
    folder: RunFolder,
    recipe: Recipe,
    train: Data,
    validation: Data | None,
    device: torch.device,
) -> dict[str, Observer]:
    """The observers of a run: "sample" draws pictures; "evaluate" measures metrics.

    Opens the models that the family depends on if an observer needs them. Raises UserError for an interval
    (train.sample_every, train.evaluate_every) at which the family could do nothing.
    """
    attach_dependencies(family, device, [role for role, other in family.dependencies.items() if other.at_start])
    _warn_of_initial_weights(family, recipe)
    observers: dict[str, Observer] = {}
    samples_needed = False
    if recipe.train.evaluate_every is not None:
        check_metrics(family, recipe.evaluation, validation)
        check_early(family, in_training(recipe).evaluation, train, validation, device)
        chosen = chosen_metrics(family, recipe.evaluation)
        samples_needed = any(ability_for(family, metric) is Samples for metric in chosen)
        observers["evaluate"] = EvaluationObserver(family, folder, in_training(recipe), train, validation, device)
    if recipe.train.sample_every is not None:
        observers["sample"] = _picture_observer(family, folder, recipe, train, validation, device)
        samples_needed |= family.ability(Samples) is not None
    if samples_needed:
        attach_dependencies(family, device)
    return observers


def _warn_of_initial_weights(family: Family, recipe: Recipe) -> None:
    """Warns if the first picture or evaluation will show the weights that training began with."""
    every = [step for step in (recipe.train.sample_every, recipe.train.evaluate_every) if step is not None]
    if every:
        warn_of_initial_weights(family, recipe.ema, "ema", min(*every, recipe.train.steps))


def _picture_observer(
    family: Family, folder: RunFolder, recipe: Recipe, train: Data, validation: Data | None, device: torch.device
) -> Observer:
    """What draws the pictures of a run: panels, samples, outputs for inputs, or reconstructions, whichever the family can."""
    what = "train.sample_every"
    panels = family.ability(Panels)
    if panels is not None:
        split = None if panels.shown_field is None else one_index(train, what)
        return PanelObserver(panels, folder, recipe, split, device)
    samples = family.ability(Samples)
    if samples is not None and not samples.conditions_beside_label:
        return SampleObserver(family, folder, recipe.run.seed, device)
    density = family.ability(Density)
    if density is not None:
        return DensityObserver(density, folder, device)
    if samples is None and family.ability(Reconstructs) is None:
        raise UserError(f"{what}: {family.why_not(Samples)}; leave it null")
    return RowsObserver(family, folder, recipe, one_index(validation or train, what), device)
