"""What draws the panels of a family during training, and at its end all of them as a moving picture."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.data.index import Index
from bigtrain.data.read.batch import on_device
from bigtrain.data.read.stream import SplitLoader
from bigtrain.families.abilities import Panels
from bigtrain.inference.panel_picture import moving_picture, panel_picture
from bigtrain.pictures import save_bytes, save_png
from bigtrain.randomness import Draws
from bigtrain.recipe import Recipe
from bigtrain.runs.folder import RunFolder
from bigtrain.untrusted import open_plain, parse_json

SHOWN = 500
"""Samples of the data that are shown, a fixed random subset."""
LONGEST_COURSE = 2000
"""Values of a course that are drawn, at most."""


class PanelObserver:
    """Draws on the main rank, of the averaged weights and what metrics.jsonl says; always with the same noise and data."""

    def __init__(
        self, family: Panels, folder: RunFolder, recipe: Recipe, split: Index | None, device: torch.device
    ) -> None:
        """`split`: what has the family's `shown_field`, None where it has none."""
        self.family, self.folder, self.split, self.device = family, folder, split, device
        self.seed, self.last_step = recipe.run.seed, recipe.train.steps

    def has(self, step: int) -> bool:
        return self.folder.samples(step).exists() and (step < self.last_step or self.folder.moving_picture.exists())

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        if world.is_main():
            with beats.work("draws panels"):
                course = course_of(self.folder.metrics, self.family.charted, step)
                panels = self.family.panels(networks, self._shown, course, Draws(self.seed, device=self.device))
                picture = self.folder.samples(step)
                self.folder.make_room(picture)
                save_png(picture, panel_picture(panels, f"step {step:,}"))
                if step == self.last_step:
                    self._write_moving_picture(step)
        return {}

    @cached_property
    def _shown(self) -> Tensor | None:
        if self.split is None or self.family.shown_field is None:
            return None
        name = self.family.shown_field
        loader = SplitLoader(self.split, rank=0, world=1, batch=SHOWN, workers=0, limit=SHOWN, fields=[name])
        return torch.cat([on_device(batch, self.split.fields, self.device)[name] for _, batch in loader])

    def _write_moving_picture(self, step: int) -> None:
        target = self.folder.moving_picture
        self.folder.make_room(target)
        frames = [path for path in target.parent.glob("step_*.png") if path <= self.folder.samples(step)]
        save_bytes(target, moving_picture(frames))


def course_of(metrics: Path, names: Sequence[str], step: int) -> dict[str, list[float]]:
    """The values of `names`, and of `step`, in the rows of metrics.jsonl up to a step that have them all; evenly thinned."""
    if not names:
        return {}
    with open_plain(metrics) as file:
        rows = [parse_json(line) for line in file]
    whole = [row for row in rows if row["step"] <= step and all(name in row for name in names)]
    thinned = whole[:: max(1, -(-len(whole) // LONGEST_COURSE))]
    return {name: [row[name] for row in thinned] for name in ("step", *names)}
