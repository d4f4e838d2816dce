"""LeCam regularisation (Tseng et al. 2021, arXiv:2104.03310): logits stay near moving averages of themselves."""

from typing import cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.networks.layers.statistics import StatisticsModule
from bigtrain.options import Count, Options, Weight


class LeCam(Options):
    """weight (E max(0, real - average of fake)^2 + E max(0, average of real - fake)^2) (eq. 6, as in the authors' code).

    The paper has no max(0, .), which leaves alone the logits that are beyond the average of the other side. The averages are of
    all updates before this one; the authors' code includes the microbatch itself.
    """

    weight: Weight = 0.3
    """Its strength."""
    decay: float = Field(default=0.99, ge=0, lt=1)
    """What is kept of the averages at each update of the discriminator."""
    start_step: Count = 1000
    """The first step of the penalty. Before it, the averages follow the logits."""

    def averages(self) -> nn.Module:
        return LogitAverages(self.decay)

    def value(self, step: int, averages: nn.Module, real: Tensor, fake: Tensor) -> Tensor:
        """For a weight of 1, a scalar; records the means of the logits. `averages`: a module that `averages` made."""
        averages = cast(LogitAverages, averages)
        averages.record(real, fake)
        if step < self.start_step:
            return real.new_zeros(())
        on_real, on_fake = averages.means.unbind()
        return F.relu(real - on_fake).square().mean() + F.relu(on_real - fake).square().mean()


class LogitAverages(StatisticsModule):
    """Moving averages of the mean logits of real and of fake images, over all ranks and microbatches of each update.

    They begin as the means of the first update.
    """

    means: Tensor
    """[2]: of real, of fake."""
    updates: Tensor
    """How many there have been."""
    noted_means: Tensor
    notes: Tensor

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("means", torch.zeros(2))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.register_buffer("noted_means", torch.zeros(2), persistent=False)
        self.register_buffer("notes", torch.zeros(()), persistent=False)

    @torch.no_grad()
    def record(self, real: Tensor, fake: Tensor) -> None:
        if self.training and self.recording:
            self.noted_means.add_(mean_over_ranks(torch.stack([real.mean(), fake.mean()])))
            self.notes.add_(1)

    def commit(self, finite: Tensor) -> None:
        allowed = finite & (self.notes > 0)
        kept = torch.where(self.updates > 0, self.decay, 0.0)
        moved = (self.noted_means / self.notes.clamp_min(1)).lerp(self.means, kept.to(self.means.dtype))
        self.means.copy_(torch.where(allowed, moved, self.means))
        self.updates.add_(allowed)
        self.noted_means.zero_()
        self.notes.zero_()
