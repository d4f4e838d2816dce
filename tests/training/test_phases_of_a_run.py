"""What the phases of a run read: promise 4 for stages, and for numbers of updates that depend on the step."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bigtrain.cluster.watchdog import Watchdog
from bigtrain.data.splits import describe, find_index
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import find_family
from bigtrain.families.phases import Losses, Microbatch, Networks, Phase
from bigtrain.recipe import load_recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.training.phases import check_phases
from bigtrain.training.trainer import Trainer
from tests.runs_of import FAMILIES, ended, write_recipe
from tests.training.small_steps import small_family

CPU = torch.device("cpu")
STEPS, BATCH, PIECES = 6, 8, 2
Seen = list[tuple[str, int, int, Tensor]]
"""(phase, step, repeat, images) of every microbatch."""


def phases_that_note(seen: Seen) -> Sequence[Phase]:
    """Nine updates read a batch of their own: three of every other step, and 1, 2 and 3 of the stage."""

    def loss_of(name: str):
        def loss(networks: Networks, batch: Microbatch) -> Losses:
            images = batch.get("image", torch.empty(0))
            seen.append((name, batch.draws.step, batch.draws.repeat, images.clone()))
            return Losses(networks["critic"](torch.zeros(1, 1, 16, 16)).square().mean(), {})

        return loss

    return [
        Phase("every other", "critic", loss_of("every other"), every=2),
        Phase("stage", "critic", loss_of("stage"), repeats=lambda step: step, first_step=1, last_step=4),
        Phase("blank", "critic", loss_of("blank"), batch="none"),
        Phase("again", "critic", loss_of("again"), first_step=1, last_step=5, repeats=2, batch="previous"),
    ]


def train(folder: Path, steps: int, seen: Seen) -> Trainer:
    keys = {"steps": steps, "batch_size": BATCH, "accumulate": PIECES, "save_every": 1}
    recipe = load_recipe(write_recipe(folder, FAMILIES["toy"], **keys))
    index = find_index("digits", "train", 16)
    family = find_family("toy")(recipe.family, DataSpec.from_json(describe(index)))
    family.phases = phases_that_note(seen)
    run = RunFolder(recipe.folder)
    run.claim(recipe.to_yaml().encode())
    trainer = Trainer(
        family, index, run, seed=0, data=recipe.data, train=recipe.train, ema=recipe.ema, engine=recipe.engine,
        device=CPU, watchdog=Watchdog(None), observers={},
    )  # fmt: skip
    trainer.run()
    ended(run.path)
    return trainer


def images_of(seen: Seen, *phases: str) -> Tensor:
    return torch.cat([images for phase, _, _, images in seen if phase in phases])


def stream_images(trainer: Trainer, count: int) -> Tensor:
    """The first images of the stream as a phase is handed them."""
    trainer.microbatches.position = 0
    read = trainer.microbatches.first(count)
    return torch.cat([batch["image"] for batch in read])


def test_each_sample_counts_once_whatever_runs_at_a_step(tmp_path: Path) -> None:
    seen: Seen = []
    trainer = train(tmp_path, STEPS, seen)
    updates = [(phase, step) for phase, step, _, _ in seen if phase in ("every other", "stage")][::PIECES]
    assert updates == [
        ("every other", 0), ("stage", 1), ("every other", 2), *[("stage", 2)] * 2, *[("stage", 3)] * 3, ("every other", 4),
    ]  # fmt: skip
    assert trainer.microbatches.position == len(updates) * BATCH
    read = images_of(seen, "every other", "stage")
    assert torch.equal(read, stream_images(trainer, len(updates) * BATCH))


def test_a_phase_is_given_the_samples_of_the_update_before_it(tmp_path: Path) -> None:
    seen: Seen = []
    train(tmp_path, STEPS, seen)
    for step in range(1, 5):
        of_step = [each for each in seen if each[1] == step]
        last_read = [images for phase, _, _, images in of_step if phase in ("every other", "stage")][-PIECES:]
        again = [images for phase, _, _, images in of_step if phase == "again"]
        assert len(again) == 2 * PIECES, "two updates"
        assert torch.equal(torch.cat(again), torch.cat(last_read * 2))
    assert not len(images_of(seen, "blank"))


def test_a_run_that_was_stopped_in_a_stage_goes_on_within_it(tmp_path: Path) -> None:
    whole: Seen = []
    train(tmp_path / "whole", STEPS, whole)
    parts: Seen = []
    for steps in (3, STEPS):
        train(tmp_path / "parts", steps, parts)
    assert [each[:3] for each in parts] == [each[:3] for each in whole]
    assert torch.equal(
        images_of(parts, "every other", "stage", "again"), images_of(whole, "every other", "stage", "again")
    )


def test_a_failure_says_what_was_done_then_and_not_what_was_done_on_the_way_out(tmp_path: Path) -> None:
    class Broken(list):
        def append(self, note: object) -> None:
            raise RuntimeError("a data worker was killed")

    with pytest.raises(RuntimeError, match="a data worker was killed") as caught:
        train(tmp_path, STEPS, Broken())
    assert caught.value.__notes__ == ["rank 0 was at step 0, phase every other: forward and backward"]


def test_a_phase_without_a_batch_before_it_is_a_mistake_of_the_family() -> None:
    family = small_family("toy")
    phases = list(family.phases)
    family.phases = [Phase("again", "critic", phases[0].loss, batch="previous"), *phases]
    with pytest.raises(AssertionError, match="phase again: no phase before it reads a batch"):
        check_phases(family)
    family.phases = [Phase("still", "gauge", phases[0].loss)]
    with pytest.raises(AssertionError, match="phase still trains no component that has an optimizer"):
        check_phases(family)
    family.phases = [Phase("lost", "nobody", phases[0].loss)]
    with pytest.raises(AssertionError, match="phase lost trains"):
        check_phases(family)
