"""A run goes on, and another begins from its weights, under another strategy and on another number of ranks than it had. (From
one process to every strategy: test_branch.py and test_initial_weights.py.)"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch

from tests.runs_of import (
    FAMILIES,
    Run,
    check,
    final_tensors,
    largest_difference,
    launch,
    optimizers_of,
    train,
    write_recipe,
)

# With momentum, which does not make sums in another order into other weights, as Adam's division does.
GAN = optimizers_of(FAMILIES["gan"], {"kind": "sgd", "lr": 0.02, "momentum": 0.9})
WORLDS = {"one": ("ddp", 1), "ddp": ("ddp", 2), "zero1": ("zero1", 2), "zero2": ("zero2", 2), "zero3": ("zero3", 2)}
WORLDS |= {"zero3 alone": ("zero3", 1)}
"""By name the strategy and the number of ranks."""
STEPS = 2


def trained(folder: Path, world: str, steps: int, *words: str) -> Path:
    strategy, ranks = WORLDS[world]
    recipe = write_recipe(folder, GAN, steps=steps)
    train(recipe, "family.penalties={}", f"engine.strategy={strategy}", *words, processes=ranks)
    return folder / "run"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A run of the first steps in a world, made once."""
    folder = tmp_path_factory.mktemp("sources")
    return cache(lambda world: trained(folder / world, world, STEPS))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of all steps in one process."""
    return trained(tmp_path_factory.mktemp("whole"), "one", 2 * STEPS)


@pytest.mark.slow
@pytest.mark.parametrize(("of", "to"), [("zero3", "ddp"), ("ddp", "zero2"), ("zero2", "one"), ("zero1", "zero3 alone")])
def test_a_run_goes_on_in_another_world_as_it_would_in_its_own(
    source: Callable[[str], Path], whole: Path, tmp_path: Path, of: str, to: str
) -> None:
    run = trained(tmp_path, to, 2 * STEPS, f"train.resume={{from: {source(of)}}}")
    assert largest_difference(final_tensors(run), final_tensors(whole)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("distance", [3])
def test_a_run_begins_from_the_weights_of_any_other_world(tmp_path: Path, distance: int) -> None:
    """Of the 64 pairs of strategies and ranks, those whose places in the list are this far apart, in a circle. (All eight
    distances were seen to pass.)"""
    every = [(strategy, ranks) for strategy in ("ddp", "zero1", "zero2", "zero3") for ranks in (1, 2)]
    sources = {world: tmp_path / "of-{}-{}".format(*world) for world in every}
    pairs = {world: every[(place + distance) % len(every)] for place, world in enumerate(every)}
    still = [f"family.{player}_optimizer.lr=1e-12" for player in ("generator", "discriminator")]
    for ranks in (1, 2):
        launch_all({folder: (world, STEPS, ()) for world, folder in sources.items() if world[1] == ranks}, ranks)
    begun = {of: tmp_path / "begun-{}-{}-{}-{}".format(*of, *to) for of, to in pairs.items()}
    for ranks in (1, 2):
        words = {
            begun[of]: (to, 1, (f"train.init={sources[of] / 'run'}", *still))
            for of, to in pairs.items()
            if to[1] == ranks
        }
        launch_all(words, ranks)
    for of in every:
        found, given = (final_tensors(folder / "run") for folder in (begun[of], sources[of]))
        for component, group in (("generator", "average"), ("discriminator", "weights")):
            own, prefix = f"{component}/weights/", f"{component}/{group}/"
            names = [name.removeprefix(own) for name in found if name.startswith(own) and name.endswith("weight")]
            assert names
            for name in names:
                torch.testing.assert_close(found[own + name], given[prefix + name], rtol=0, atol=1e-6)


def launch_all(runs: Mapping[Path, tuple[tuple[str, int], int, Sequence[str]]], ranks: int) -> None:
    """Runs by folder: (strategy and ranks, steps, more words), in one start of the ranks."""
    each = [
        Run(
            folder,
            (write_recipe(folder, GAN, steps=steps), "family.penalties={}", f"engine.strategy={strategy}", *words),
        )
        for folder, ((strategy, _), steps, words) in runs.items()
    ]
    launch(each, ranks)
    for one in each:
        check(one.folder)
