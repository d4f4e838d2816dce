"""Updates that are left out because their gradient is too large, as in the training of very deep VAEs (Child 2021,
arXiv:2011.10650, section 3.3), where a clipped one would do harm.

Their code can stop training for ever, when the norm stays above the threshold; hence most_skips.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.families.family import Family
from bigtrain.families.phases import OptimizerOptions, Phase
from bigtrain.randomness import to_device
from bigtrain.training.phases import trained


class LargeGradients:
    """Decides which updates of one phase are skipped. All of it stays on the device, and is the same on every rank.

    The smallest most_skips of the phase's components counts: one of them is enough for the update of all to be skipped.
    """

    def __init__(self, optimizers: Sequence[OptimizerOptions], device: torch.device) -> None:
        """`optimizers`: of the phase's trained components; at least one has a skip_norm."""
        limits = [torch.inf if options.skip_norm is None else options.skip_norm for options in optimizers]
        self._limits = to_device(torch.tensor(limits, dtype=torch.float64), device)
        self._most = min(options.most_skips for options in optimizers if options.skip_norm is not None)
        self._in_a_row = torch.zeros((), dtype=torch.int64, device=device)

    def skips(self, norms: Sequence[Tensor], finite: Tensor) -> Tensor:
        """Whether an update whose gradients have these norms is skipped: a bool on the device. One that is not `finite` is left
        out anyway and does not count."""
        above = (torch.stack(list(norms)).double() >= self._limits).any().double()
        above = world.sum_over_ranks(above) > 0  # a kernel of another device may round a norm to the other side
        skipped = finite & above & (self._in_a_row < self._most)
        self._in_a_row = torch.where(finite, torch.where(skipped, self._in_a_row + 1, 0), self._in_a_row)
        return skipped

    def state(self) -> int:
        """How many updates have been skipped one after another, for a checkpoint; waits for the device."""
        return int(self._in_a_row)

    def load(self, state: int) -> None:
        self._in_a_row.fill_(state)


def large_gradients(family: Family, phase: Phase, device: torch.device) -> LargeGradients | None:
    """Of a phase; None if no update of it is ever skipped."""
    chosen = [family.components[name].optimizer for name in trained(family, phase)]
    optimizers = [options for options in chosen if options is not None]
    if all(options.skip_norm is None for options in optimizers):
        return None
    return LargeGradients(optimizers, device)
