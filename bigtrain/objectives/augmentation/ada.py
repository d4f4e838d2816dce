"""Adaptive discriminator augmentation, ADA (Karras, Aittala, Hellsten, Laine, Lehtinen & Aila 2020, arXiv:2006.06676)."""

from typing import Literal, cast

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.networks.layers.statistics import StatisticsModule
from bigtrain.objectives.augmentation.ada_operations import PARTS, Operation, change
from bigtrain.objectives.augmentation.augmenter import Augmenter
from bigtrain.objectives.inputs import Draw
from bigtrain.options import Count

Pipeline = Literal["blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"]

_NAMED: dict[str, tuple[str, ...]] = {
    "blit": ("b",), "geom": ("g",), "color": ("c",), "filter": ("f",), "noise": ("n",), "cutout": ("o",), "bg": ("b", "g"),
    "bgc": ("b", "g", "c"), "bgcf": ("b", "g", "c", "f"), "bgcfn": ("b", "g", "c", "f", "n"),
    "bgcfnc": ("b", "g", "c", "f", "n", "o"),
}  # fmt: skip


class ADA(Augmenter):
    """Each operation is applied to an image with probability p, which follows how sure the discriminator is of real images.

    After every `every` updates of the discriminator p grows by images / (1000 kimg) if the mean sign of the logits of these
    real images is above the target, and falls by as much if it is below, but not under 0 (section 3.1). As in the authors'
    code it may pass 1, which does what 1 does.
    """

    kind: Literal["ada"] = "ada"
    pipeline: Pipeline = "bgc"
    """The operations, by the authors' names (appendix B): b(lit), g(eom), c(olor), f(ilter), n(oise), c(utout). They found that
    "bgc" helps most; images of one channel have no hue and no saturation."""
    leave_out: list[Operation] = Field(default_factory=list)
    """Operations of the pipeline that are not applied, such as rotate90 of digits."""
    target: float | None = Field(default=0.6, gt=0, lt=1)
    """The mean sign of the logits of real images that p is to bring about; null: p stays what it is."""
    p: float = Field(default=0.0, ge=0, le=1)
    """p at the beginning."""
    every: Count = 4
    """Updates of the discriminator between adjustments of p."""
    kimg: Count = 500
    """Thousands of real images in which p goes from 0 to 1 at the fastest; the authors' code has 500, and 100 where weights are
    transferred."""

    @model_validator(mode="after")
    def _something_is_applied(self) -> "ADA":
        if not self.operations:
            raise ValueError(
                f"leave_out: leaves nothing of the pipeline {self.pipeline}; set augmentation: null instead"
            )
        if foreign := {*self.leave_out} - self._of_pipeline:
            raise ValueError(f"leave_out: {', '.join(sorted(foreign))} is not in the pipeline {self.pipeline}")
        return self

    @model_validator(mode="after")
    def _p_can_change_anything(self) -> "ADA":
        if self.target is None and self.p == 0:
            raise ValueError(
                "p: of 0 that no target changes augments nothing; set p, or a target, or augmentation: null"
            )
        return self

    @property
    def operations(self) -> frozenset[str]:
        return self._of_pipeline.difference(self.leave_out)

    @property
    def _of_pipeline(self) -> frozenset[str]:
        return frozenset(operation for part in _NAMED[self.pipeline] for operation in PARTS[part])

    def check_game(self, kind: str, sign_tells_real: bool) -> None:
        if self.target is not None and not sign_tells_real:
            raise ValueError(
                f"augmentation: ada adjusts p by the sign of logits, which says nothing with objective: {kind}; set "
                "augmentation.target: null and a fixed augmentation.p, or take another objective"
            )

    def new_state(self) -> nn.Module:
        return Strength(self.p, self.target, self.every, self.kimg)

    def augment(self, images: Tensor, draw: Draw, state: nn.Module | None) -> Tensor:
        with without_autocast(images):
            images = images.to(statistics_dtype(images.dtype))
            return change(images, draw, cast(Strength, state).p, self.operations)

    def observe(self, state: nn.Module | None, logits: Tensor) -> dict[str, Tensor]:
        strength = cast(Strength, state)
        strength.record(logits)
        return {"ada_p": strength.p.clone()}


class Strength(StatisticsModule):
    """p, and what it is adjusted by. Its counts are whole numbers, so that p is the same at every number of ranks."""

    p: Tensor
    signs: Tensor
    """int64 [3]: since the last adjustment, the sum of the signs of real images' logits, the logits and the images."""
    updates: Tensor
    """int64 []: updates of the discriminator."""
    noted: Tensor

    def __init__(self, p: float, target: float | None, every: int, kimg: int) -> None:
        super().__init__()
        self.target, self.every, self.images = target, every, 1000 * kimg
        self.register_buffer("p", torch.tensor(p))
        self.register_buffer("signs", torch.zeros(3, dtype=torch.int64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("noted", torch.zeros(3, dtype=torch.int64), persistent=False)

    @torch.no_grad()
    def record(self, logits: Tensor) -> None:
        """Of real images, [n, ...]."""
        if self.training and self.recording and self.target is not None:
            here = torch.full((3,), logits.numel(), dtype=torch.int64, device=logits.device)
            here[0] = logits.sign().sum(dtype=torch.int64)
            here[2].fill_(len(logits))
            self.noted.add_(world.sum_over_ranks(here))

    def commit(self, finite: Tensor) -> None:
        allowed = finite & (self.noted[2] > 0)
        self.signs.add_(self.noted * allowed)
        self.updates.add_(allowed)
        self.noted.zero_()
        if self.target is not None:
            self._adjust(self.target, allowed & (self.updates % self.every == 0))

    def _adjust(self, target: float, now: Tensor) -> None:
        """Where `now` is true."""
        signs, logits, images = self.signs.unbind()
        above = (signs.to(torch.float64) - target * logits).sign()
        moved = (self.p + (above * images / self.images).to(self.p.dtype)).clamp_min(0)
        self.p.copy_(torch.where(now, moved, self.p))
        self.signs.mul_(~now)
