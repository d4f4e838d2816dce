"""A family of two components on 16x16 images that trains in milliseconds: the proof that the trainer knows phases only.

It has what a family can have: batch statistics, power iteration, two phases of different frequency, a weight penalty, a
phase that reads no data, class labels.
"""

import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.families.abilities import Samples
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.layers.normalisation import SNLinear, SyncedBatchNorm
from bigtrain.options import Options

LATENT = 4


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
        self.hidden = SNLinear(channels * 8 * 8, 8)
        self.out = nn.Linear(8, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden(F.avg_pool2d(images, 2).flatten(1)))).squeeze(1)


class ToySamplingOptions(Options):
    scale: float = 1.0


class ToyOptions(Options):
    kind: Literal["toy"]
    optimizer: OptimizerOptions = OptimizerOptions(lr=0.01)
    explode_at: int | None = None
    """Step at which the critic's loss becomes NaN, for the tests of what happens then."""
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
        }
        self.phases = [
            Phase("critic", "critic", self.critic_loss, repeats=2),
            Phase(
                "maker", "maker", self.maker_loss, every=2, batch="none",
                weight_penalty=self.penalty if options.penalty else None,
            ),
        ]  # fmt: skip

    def critic_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        with torch.no_grad():
            fake = self._make(networks, batch, "critic")
        real, made = networks["critic"](torch.cat([batch["image"], fake])).split(len(fake))
        loss = F.softplus(-real).mean() + F.softplus(made).mean()
        if world.rank() == self.options.dawdling_rank:
            time.sleep(0.05)
        if world.rank() == self.options.failing_rank and batch.draws.step == 3:
            raise RuntimeError("this rank fails on purpose")
        if batch.draws.step == self.options.explode_at and batch.draws.repeat == 1:
            loss = loss * float("nan")
        return Losses(loss, {"real": real.mean()})

    def maker_loss(self, networks: Networks, batch: Microbatch) -> Losses:
        return Losses(F.softplus(-networks["critic"](self._make(networks, batch, "maker"))).mean(), {})

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
