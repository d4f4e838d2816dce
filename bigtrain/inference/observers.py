"""Observers, which the trainer calls at intervals with the averaged weights: they draw pictures and evaluate."""

from collections.abc import Callable, Mapping

import torch
from torch import nn

from bigtrain.cluster import world
from bigtrain.cluster.passes import Stopped, gather_rows, stoppable, together
from bigtrain.data.fields.pictures import to_images
from bigtrain.data.index import Index
from bigtrain.data.read.stream import Data, SplitLoader
from bigtrain.errors import UserError
from bigtrain.evaluation.options import HELD_OUT
from bigtrain.families.family import Family
from bigtrain.inference.checkpoint_selection import in_training
from bigtrain.inference.evaluation import check_early, check_metrics, evaluate_model, write_evaluation
from bigtrain.inference.model import Model, Sampler, attach_dependencies
from bigtrain.inference.splits import one_index
from bigtrain.pictures import save_grid, to_uint8
from bigtrain.recipe import Recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.observer import Observer

GRID_CLASSES = 10
"""Rows of a picture during training: the first classes, one a row."""
GRID_PER_CLASS = 10
"""Images of a row."""


class SampleObserver:
    """Draws a grid, one class a row, on all ranks; always with the same noise, so that pictures show progress."""

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
                return torch.empty(0, spec.channels, *spec.size, dtype=torch.uint8, device=self.device)
            return sampler.draw(share, labels[share.start : share.stop])

        try:
            with stoppable(should_stop):
                images = together(draw)
        except Stopped:
            return {}  # the resumed run draws it
        drawn = gather_rows(images)
        if drawn is not None:
            save_grid(self.folder.samples(step), drawn, GRID_PER_CLASS)
        return {}


class ReconstructionObserver:
    """Draws rows of real images above their reconstructions, on the main rank; always of the same images."""

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
    """A fixed random subset of `count` images, uint8 [n, C, H, W]: a row of GRID_PER_CLASS originals, then the row of their
    reconstructions, and so on; the last row is filled up with white."""
    rows = []
    image, _ = images.labelled_image
    sweep = SplitLoader(images, rank=0, world=1, batch=GRID_PER_CLASS, workers=0, limit=count, fields=[image])
    for _, batch in sweep:
        real = to_images(batch[image], batch.flips, device)
        for row in (to_uint8(real), to_uint8(reconstruct(real).clamp(-1, 1))):
            missing = row.new_full((GRID_PER_CLASS - len(row), *row.shape[1:]), 255)
            rows.append(torch.cat([row, missing]))
    return torch.cat(rows)


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
        provenance = {"step": step, "weights": "ema", "data": self.family.spec.to_json()}
        model = Model(self.family, networks, self.recipe, provenance, self.device)
        evaluated = evaluate_model(model, self.train, self.validation, should_stop)
        if evaluated is None:
            return {}
        write_evaluation(self.folder.path, step, evaluated)
        return {name: value for name, value in evaluated.result.items() if isinstance(value, float)}


def observers_of(
    family: Family,
    folder: RunFolder,
    recipe: Recipe,
    train: Data,
    validation: Data | None,
    device: torch.device,
) -> dict[str, Observer]:
    """The observers of a run: "sample" draws samples or reconstructions, whichever the family can; "evaluate" measures metrics.

    Opens the models that the family depends on if an observer needs them. Raises UserError for an interval
    (train.sample_every, train.evaluate_every) at which the family could do nothing.
    """
    attach_dependencies(family, device, [role for role, other in family.dependencies.items() if other.at_start])
    observers: dict[str, Observer] = {}
    samples_needed = False
    if recipe.train.evaluate_every is not None:
        check_metrics(family, recipe.evaluation, validation)
        check_early(family, in_training(recipe).evaluation, train, validation, device)
        samples_needed = any(metric not in HELD_OUT for metric in recipe.evaluation.chosen(family.capabilities))
        observers["evaluate"] = EvaluationObserver(family, folder, in_training(recipe), train, validation, device)
    if recipe.train.sample_every is not None:
        if "sample" in family.capabilities:
            samples_needed = True
            observers["sample"] = SampleObserver(family, folder, recipe.run.seed, device)
        elif "reconstruct" in family.capabilities:
            observers["sample"] = ReconstructionObserver(family, folder, one_index(validation or train), device)
        else:
            raise UserError(f"train.sample_every: {family.why_not('sample')}; leave it null")
    if samples_needed:
        attach_dependencies(family, device)
    return observers
