"""A family on 16x16 images that trains in milliseconds: the proof that the trainer knows phases only.

It has what a family can have: batch statistics, power iteration, a frozen component with statistics, groups of parameters;
phases of different frequency, in a stage, with a number of updates that depends on the step, that read no data or the data of
the phase before, that train two components, one of which another phase trains as well and one of which no gradient reaches at
some steps; a weight penalty, a weight clip, a loss that couples samples, class labels.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.families.abilities import Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import (
    Component,
    Losses,
    Microbatch,
    Networks,
    OptimizerOptions,
    ParameterGroup,
    Phase,
)
from bigtrain.networks.layers.normalisation import SpectralNorm, SyncedBatchNorm
from bigtrain.networks.layers.statistics import StatisticsModule, recomputing
from bigtrain.options import Options

LATENT = 4
SLOW_BIASES = ParameterGroup(lambda name, parameter: parameter.dim() == 1, lr_scale=0.5, weight_decay=0.1)


class Maker(nn.Module):
    def __init__(self, classes: int, channels: int) -> None:
        super().__init__()
        self.classes = nn.Embedding(classes, LATENT)
        self.linear = nn.Linear(LATENT, channels * 4 * 4)
        self.norm = SyncedBatchNorm(channels)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        h = self.linear(z + self.classes(labels)).unflatten(1, (-1, 4, 4))
        return torch.tanh(F.interpolate(self.norm(h), scale_factor=4))


class Critic(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.hidden = SpectralNorm(nn.Linear(channels * 8 * 8, 8))
        self.out = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(F.avg_pool2d(images, 2).flatten(1)))).squeeze(1)


class Coder(nn.Module):
    """Latents of images, [n, C, 16, 16] -> [n, LATENT]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels * 4 * 4, LATENT)
        self.refined = nn.Linear(LATENT, LATENT)

    def forward(self, images: Tensor, refine: bool) -> Tensor:
        h = self.linear(F.avg_pool2d(images, 4).flatten(1))
        return self.refined(h) if refine else h


class Gauge(StatisticsModule):
    """Centres images by a moving average of the mean of all pixels. It has no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("level", torch.zeros(()))
        self.register_buffer("noted", torch.zeros(2), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if self.training and self.recording and not recomputing():
            self.noted.add_(torch.stack([images.detach().mean(), torch.ones_like(self.level)]))
        return images - self.level

    def commit(self, finite: Tensor) -> None:
        total, count = world.sum_over_ranks(self.noted.clone())
        moved = self.level.lerp(total / count.clamp_min(1), 0.1)
        self.level.copy_(torch.where(finite & (count > 0), moved, self.level))
        self.noted.zero_()


class ToySamplingOptions(Options):
    scale: float = 1.0


class ToyOptions(Options):
    kind: Literal["toy"]
    optimizer: OptimizerOptions = OptimizerOptions(lr=0.01)
    explode_at: int | None = None
    """Step at which the critic's loss becomes NaN, for the tests of what happens then."""
    explode_coder_at: int | None = None
    """Step at which a gradient of the coder becomes NaN, while the loss and the maker's gradient stay finite."""
    penalty: float = 1e-3
    """Weight of the maker's penalty on its weights; 0: it has none, and zero3 can train it."""
    dawdling_rank: int | None = None
    """A rank that sleeps for a twentieth of a second in each of the critic's losses, for the test that finds it."""
    failing_rank: int | None = None
    """A rank whose loss raises an error at step 3, for the test of what becomes of the other runs of its launch."""
    sampling: ToySamplingOptions = ToySamplingOptions()


class Toy(Family, Samples, kind="toy"):
    options_class = ToyOptions
    sampling_class = ToySamplingOptions
    sampled_components = ("maker",)

    def __init__(self, options: ToyOptions, spec: DataSpec) -> None:
        self.options, self.spec, self.sampling = options, spec, options.sampling
        self.components = {
            "maker": Component(lambda: Maker(len(spec.classes), spec.channels), options.optimizer, averaged=True),
            "critic": Component(lambda: Critic(spec.channels), options.optimizer),
            "coder": Component(lambda: Coder(spec.channels), options.optimizer, groups=[SLOW_BIASES]),
            "gauge": Component(Gauge, None),
        }
        self.phases = [
            Phase("critic", ("critic", "gauge"), self.critic_loss, repeats=2, reports=self.reports),
            Phase(
                "coder", ("coder", "maker"), self.coder_loss, repeats=lambda step: 1 + step // 3, first_step=1, last_step=5,
                batch="previous", weight_clip=0.9,
            ),
            Phase(
                "maker", "maker", self.maker_loss, every=2, batch="none",
                weight_penalty=self.penalty if options.penalty else None,
                needs_whole_weights=["penalty"] if options.penalty else (),
            ),
        ]  # fmt: skip

    def critic_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        with torch.no_grad():
            fake = self._make(networks, batch, "critic")
        images = networks["gauge"](torch.cat([batch["image"], fake]))
        real, made = networks["critic"](images).split(len(fake))
        loss = F.softplus(-real).mean() + F.softplus(made).mean()
        if world.rank() == self.options.dawdling_rank:
            time.sleep(0.05)
        if world.rank() == self.options.failing_rank and batch.draws.step == 3:
            raise RuntimeError("this rank fails on purpose")
        if batch.draws.step == self.options.explode_at and batch.draws.repeat == 1:
            loss = loss * float("nan")
        return Losses(loss, {"real": real.mean()})

    def coder_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """Images from their latents; at step 3 from draws, so that no gradient reaches the coder. Its second layer is used by
        earlier steps only."""
        images, step = batch["image"], batch.draws.step
        z = networks["coder"](images, refine=step < 3)
        spread = mean_over_ranks((z - mean_over_ranks(z.mean(0))).square().mean())
        if step == 3:
            z, spread = batch.draws.normal("coder/z", batch.indices, (LATENT,)), spread.detach()
        error = (networks["maker"](z, batch["label"]) - images).square().mean()
        loss = 5 * (error + (spread - 1).square())
        if step == self.options.explode_coder_at and batch.draws.repeat == 0:
            loss = loss + (0 * z).sum().sqrt()
        return Losses(loss, {"spread": spread})

    def maker_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        return Losses(F.softplus(-networks["critic"](self._make(networks, batch, "maker"))).mean(), {})

    def reports(self, networks: Networks) -> dict[str, Tensor]:
        return {"level": networks["gauge"].level}

    def penalty(self, networks: Networks) -> Tensor:
        return self.options.penalty * networks["maker"].linear.weight.square().sum()

    def _make(self, networks: Networks, batch: Microbatch, phase: str) -> Tensor:
        labels = self.spec.draw_labels(batch.draws, f"{phase}/labels", batch.indices)
        return networks["maker"](batch.draws.normal(f"{phase}/z", batch.indices, (LATENT,)), labels)

    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        return {"maker": networks["maker"].eval()}

    @property
    def conditions(self) -> Sequence[str]:
        return ("label",)

    @torch.no_grad()
    def sample(self, networks: Networks, batch: Microbatch, sampling: ToySamplingOptions) -> Tensor:
        z = batch.draws.normal("sample/z", batch.indices, (LATENT,)) * sampling.scale
        return networks["maker"](z, batch["label"])
