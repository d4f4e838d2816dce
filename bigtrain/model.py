"""A trained model as the doors see it: opened from a run or from an export, it draws samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.data.stream import DataOptions, find_index
from bigtrain.errors import UserMistake
from bigtrain.families.family import Family, Networks, Problem, build_network, find_family
from bigtrain.pictures import to_uint8
from bigtrain.randomness import Draws
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs import checkpoint


@dataclass(frozen=True)
class Model:
    """A family with weights. `provenance`: step, weights ("ema" or "raw"), data, as JSON."""

    family: Family
    weights: Networks
    recipe: Recipe
    provenance: Mapping[str, Any]
    device: torch.device

    def check_data(self, index: Index, key: str) -> None:
        """Raises UserMistake if the model cannot be held against this split: other classes, or another size."""
        data = self.provenance["data"]
        if (index.image_size, list(index.classes)) != (data["image_size"], data["classes"]):
            raise UserMistake(
                f"{key}: {index.path} has {len(index.classes)} classes at {index.image_size} pixels, and not the classes and "
                f"size of the model's own data ({len(data['classes'])} at {data['image_size']}); give a split of that data"
            )

    def sampler(self, seed: int, sampling: Any = None) -> "Sampler":
        """Ready to draw under `sampling` (the recipe's own options if None)."""
        options = self.family.sampling if sampling is None else sampling
        return Sampler(
            self.family, self.family.prepare_sampling(self.weights, options, seed), seed, options, self.device
        )


@dataclass(frozen=True)
class Sampler:
    """Draws samples by index: sample i is the same whatever else is drawn with it, and on whichever rank."""

    family: Family
    networks: Networks
    seed: int
    sampling: Any
    device: torch.device

    def draw(self, indices: Sequence[int] | np.ndarray, labels: Tensor) -> Tensor:
        """Images uint8 [n, 3, H, W] on the device, of the classes `labels` (int64 [n]).

        Raises FloatingPointError if the weights draw something that is not finite, which 8 bits would hide.
        """
        places = [int(index) for index in indices]
        images = self.family.sample(self.networks, labels.to(self.device), places, self.seed, self.sampling)
        if not torch.isfinite(images).all():
            raise FloatingPointError("the model draws images that are not finite: its weights have diverged")
        return to_uint8(images)

    def draw_all(self, labels: Sequence[int], batch_size: int) -> Tensor:
        """Samples 0 .. n - 1 of the classes `labels`, batch by batch with a progress bar; uint8 [n, 3, H, W] on the CPU."""
        batches = []
        for first in tqdm(range(0, len(labels), batch_size), desc="sampling", unit="batch", leave=False):
            part = torch.tensor(labels[first : first + batch_size])
            batches.append(self.draw(range(first, first + len(part)), part).cpu())
        return torch.cat(batches)

    def labels_of(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The classes that an evaluation asks samples `indices` for, in the data's own frequencies; int64 [n]."""
        return self.family.problem.draw_labels(Draws(self.seed), "evaluate/labels", [int(index) for index in indices])

    def protocol(self) -> dict[str, Any]:
        """What of a sample's making belongs beside a number measured on it."""
        return {"sampling": self.sampling.model_dump(mode="json")}


def find_splits(data: DataOptions) -> tuple[Index, Index | None]:
    """The indices of data.train and data.validation; the main rank first, which may have to make them.

    Raises UserMistake if one is missing, or if they do not have the same classes.
    """
    train = world.main_first(lambda: find_index(data.train, "train", data.image_size))
    where = data.validation
    if where is None:
        return train, None
    validation = world.main_first(lambda: find_index(where, "validation", data.image_size))
    if validation.classes != train.classes:
        raise UserMistake(f"data.validation: {where} has other classes than data.train; give splits of the same data")
    return train, validation


def open_model(path: Path, device: torch.device, *, weights: str | None = None, overrides: Sequence[str] = ()) -> Model:
    """Opens a run folder (its newest whole checkpoint) or an export; every rank calls it and opens the same.

    `weights`: "ema" or "raw"; None: a run's averaged ones, or those that an export holds. Raises UserMistake if the
    folder is neither, or has no checkpoint yet.
    """
    if not (path / "recipe.yaml").is_file():
        raise UserMistake(f"{path}: is neither a run folder nor an export (it has no recipe.yaml)")
    recipe = load_recipe(path / "recipe.yaml", overrides)
    if (path / "model_index.json").is_file():
        return _open_export(path, recipe, device, weights)
    return _open_run(path, recipe, device, weights or "ema")


def _open_run(path: Path, recipe: Recipe, device: torch.device, weights: str) -> Model:
    newest = world.on_main(lambda: checkpoint.newest_whole_path(path / "checkpoints"))
    if newest is None:
        raise UserMistake(f"{path}: has no checkpoint yet; train further, or lower train.save_every")
    saved = checkpoint.opened(newest)
    family = find_family(recipe.family.kind)(recipe.family, Problem.of(saved.state["data"]))
    networks: dict[str, nn.Module] = {}
    for name in family.sampled_players:
        tensors = saved.tensors(name)
        network = build_network(family, name, recipe.run.seed)
        network.load_state_dict(tensors["average" if weights == "ema" and "average" in tensors else "weights"])
        networks[name] = ready(network, device)
    provenance = {"step": saved.step, "weights": weights, "data": saved.state["data"]}
    return Model(family, networks, recipe, provenance, device)


def _open_export(path: Path, recipe: Recipe, device: torch.device, weights: str | None) -> Model:
    from diffusers.utils import logging  # heavy, and only exports need it

    from bigtrain.pipelines.pipeline import FamilyPipeline

    logging.disable_progress_bar()
    try:
        provenance = json.loads((path / "provenance.json").read_text(encoding="utf-8"))
        pipeline = FamilyPipeline.from_pretrained(str(path))
    except (OSError, json.JSONDecodeError) as error:
        raise UserMistake(f"{path}: the export is incomplete or damaged ({error}); export the run again") from error
    if weights not in (None, provenance["weights"]):
        raise UserMistake(
            f"{path}: this export holds {provenance['weights']} weights, not {weights} ones; leave out --weights, or export "
            "the run again"
        )
    family = find_family(recipe.family.kind)(recipe.family, Problem.of(provenance["data"]))
    networks = {name: ready(network, device) for name, network in pipeline.networks.items()}
    return Model(family, networks, recipe, provenance, device)


def ready(network: nn.Module, device: torch.device) -> nn.Module:
    """In eval mode on the device, in the layout of training: another one would move samples by a rounding."""
    return network.requires_grad_(False).to(device).to(memory_format=torch.channels_last).eval()
