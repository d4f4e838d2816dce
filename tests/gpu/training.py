"""A trainer in the test's own process, on any device."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.splits import describe
from bigtrain.families.data_spec import DataSpec
from bigtrain.inference.model import make_family
from bigtrain.inference.splits import find_splits
from bigtrain.recipe import load_recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.trainer import Trainer
from tests.runs_of import ended, write_recipe


def trainer_of(
    options: Mapping[str, Any], folder: Path, device: torch.device, *overrides: str, **train: Any
) -> Trainer:
    """A trainer of the family with these options on the digits, or on their codes; `overrides` and `train` as a recipe's."""
    recipe = load_recipe(write_recipe(folder, options, **train), overrides)
    images, _ = find_splits(recipe.data)
    family = make_family(recipe, DataSpec.from_json(describe(images)))
    run = RunFolder(recipe.folder)
    ended(run.path)
    run.claim(recipe.to_yaml().encode())
    return Trainer(
        family, images, run, seed=recipe.run.seed, data=recipe.data, train=recipe.train,
        ema=recipe.ema, engine=recipe.engine, device=device, watchdog=Watchdog(None), observers={},
    )  # fmt: skip


@contextmanager
def begun(trainer: Trainer) -> Iterator[Trainer]:
    """The trainer as it is before its first step; ends its reading."""
    trainer._begin()
    trainer.microbatches.open()
    try:
        yield trainer
    finally:
        trainer.microbatches.close()


def losses_of(trainer: Trainer) -> dict[str, float]:
    """The losses and norms of gradients of the steps since the last call, by name; waits for the device."""
    values: dict[str, float] = {}
    for meter in trainer.meters.values():
        values |= meter.fetch(reset=True)
    return {name: value for name, value in values.items() if name.startswith(("loss/", "gradient_norm/"))}


def losses_by_step(trainer: Trainer, steps: int) -> list[dict[str, float]]:
    """`losses_of` the first steps, one by one."""
    with begun(trainer):
        rows = []
        for _ in range(steps):
            trainer._take_step()
            rows.append(losses_of(trainer))
        return rows
