"""A run goes on, and another begins from its weights, under another strategy and on another number of ranks than it had. (From
one process to every strategy: test_branch.py.)"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch

from tests.runs_of import FAMILIES, Run, check, final_tensors, largest_difference, launch, optimizers_of, write_recipe

# With momentum, which does not make sums in another order into other weights, as Adam's division does.
GAN = optimizers_of(FAMILIES["gan"], {"kind": "sgd", "lr": 0.02, "momentum": 0.9})
STEPS = 2

World = tuple[str, int]
"""The strategy and the number of ranks."""
WORLDS: Sequence[World] = [(strategy, ranks) for strategy in ("ddp", "zero1", "zero2", "zero3") for ranks in (1, 2)]


def train_all(runs: Mapping[Path, tuple[World, int, Sequence[str]]]) -> None:
    """Runs by folder: world, steps, more words. Those of one number of ranks in one start."""
    for ranks in (1, 2):
        each = [
            Run(
                folder, (write_recipe(folder, GAN, steps=steps), "family.penalties={}", f"engine.strategy={of}", *words)
            )
            for folder, ((of, needs), steps, words) in runs.items()
            if needs == ranks
        ]
        launch(each, ranks)
        for one in each:
            check(one.folder)


@pytest.mark.slow
def test_a_run_goes_on_in_another_world_as_it_would_in_its_own(tmp_path: Path) -> None:
    pairs: Mapping[World, World] = {
        ("zero3", 2): ("ddp", 2),
        ("ddp", 2): ("zero2", 2),
        ("zero2", 2): ("ddp", 1),
        ("zero1", 2): ("zero3", 1),
    }
    whole = tmp_path / "whole"
    sources = {world: tmp_path / "of-{}-{}".format(*world) for world in pairs}
    train_all({whole: (("ddp", 1), 2 * STEPS, ()), **{sources[world]: (world, STEPS, ()) for world in pairs}})
    went_on = {world: tmp_path / "from-{}-{}".format(*world) for world in pairs}
    train_all(
        {went_on[of]: (to, 2 * STEPS, (f"train.resume={{from: {sources[of] / 'run'}}}",)) for of, to in pairs.items()}
    )
    for world, folder in went_on.items():
        assert largest_difference(final_tensors(folder / "run"), final_tensors(whole / "run")) < 1e-4, world


@pytest.mark.slow
@pytest.mark.parametrize("distance", [3])
def test_a_run_begins_from_the_weights_of_any_other_world(tmp_path: Path, distance: int) -> None:
    """Of the 64 pairs of worlds, those whose places in the list are this far apart, in a circle. (All eight distances were seen
    to pass.)"""
    pairs = {world: WORLDS[(place + distance) % len(WORLDS)] for place, world in enumerate(WORLDS)}
    sources = {world: tmp_path / "of-{}-{}".format(*world) for world in WORLDS}
    train_all({sources[world]: (world, STEPS, ()) for world in WORLDS})
    still = [f"family.{player}_optimizer.lr=1e-12" for player in ("generator", "discriminator")]
    begun = {world: tmp_path / "from-{}-{}".format(*world) for world in WORLDS}
    train_all({begun[of]: (to, 1, (f"train.init={sources[of] / 'run'}", *still)) for of, to in pairs.items()})
    for of in WORLDS:
        found, given = (final_tensors(folder / "run") for folder in (begun[of], sources[of]))
        for component, group in (("generator", "average"), ("discriminator", "weights")):
            own, prefix = f"{component}/weights/", f"{component}/{group}/"
            names = [name.removeprefix(own) for name in found if name.startswith(own) and name.endswith("weight")]
            assert names
            for name in names:
                torch.testing.assert_close(found[own + name], given[prefix + name], rtol=0, atol=1e-6)
