"""What the train door hands to the trainer, to be called at intervals: pictures and evaluations of averaged weights."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.errors import UserMistake
from bigtrain.evaluation.evaluate import evaluate
from bigtrain.families.family import Family
from bigtrain.model import Sampler
from bigtrain.pictures import save_grid
from bigtrain.recipe import Recipe
from bigtrain.runs import atomic
from bigtrain.runs.folder import RunFolder

GRID_CLASSES = 10
"""Rows of a picture during training: the first classes, one a row."""
GRID_PER_CLASS = 10


class SampleObserver:
    """Draws a grid, one class a row, on the main rank. The same noise every time, so that pictures show the progress."""

    def __init__(self, family: Family, folder: RunFolder, seed: int, device: torch.device) -> None:
        self.family, self.folder, self.seed, self.device = family, folder, seed, device

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists()

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        if not world.is_main():
            return {}
        options = self.family.sampling
        prepared = self.family.prepare_sampling(networks, options, self.seed)
        sampler = Sampler(self.family, prepared, self.seed, options, self.device)
        rows = min(GRID_CLASSES, len(self.family.problem.classes))
        labels = torch.arange(rows).repeat_interleave(GRID_PER_CLASS)
        save_grid(self.folder.samples(step), sampler.draw(range(len(labels)), labels), GRID_PER_CLASS)
        return {}


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
        seed, sampling = self.recipe.evaluation.seed, self.family.sampling
        sampler = Sampler(
            self.family, self.family.prepare_sampling(networks, sampling, seed), seed, sampling, self.device
        )
        result = evaluate_sampler(sampler, self.recipe, self.train, self.validation, step, "ema", should_stop)
        if result is None:
            return {}
        write_evaluation(self.folder.path, step, result)
        return {name: value for name, value in result.items() if isinstance(value, float)}


def evaluate_sampler(
    sampler: Sampler,
    recipe: Recipe,
    train: Index,
    validation: Index | None,
    step: int,
    weights: str,
    should_stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any] | None:
    """The recipe's metrics of one model, as JSON with the protocol in it; called on every rank. None if stopped."""
    result = evaluate(
        sampler.draw,
        sampler.labels_of,
        train,
        validation,
        recipe.evaluation,
        device=sampler.device,
        workers=recipe.data.workers,
        protocol=sampler.protocol() | {"weights": weights, "step": step},
        should_stop=should_stop,
    )
    return None if result is None else {"step": step} | result


def write_evaluation(folder: Path, step: int, result: Mapping[str, Any]) -> Path:
    """Writes FOLDER/evaluations/step_N.json on the main rank, or step_N_HASH.json where another protocol's result stands.

    Raises UserMistake where the disk does not take it.
    """

    def write() -> Path:
        path = RunFolder(folder).evaluation(step)
        try:
            path.parent.mkdir(exist_ok=True)
            if path.exists() and json.loads(path.read_bytes())["protocol"] != result["protocol"]:
                protocol = json.dumps(result["protocol"], sort_keys=True)
                path = path.with_stem(f"{path.stem}_{hashlib.sha256(protocol.encode()).hexdigest()[:8]}")
            atomic.write_json(path, dict(result))
        except OSError as error:
            raise UserMistake(f"{path}: cannot write the evaluation ({error.strerror})") from error
        return path

    return world.on_main(write)
