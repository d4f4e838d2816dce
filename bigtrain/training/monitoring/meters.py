"""Interval averages that stay on the device between two rows of metrics.jsonl, and are saved in checkpoints."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.families.phases import Losses
from bigtrain.randomness import to_device


class PhaseMeter:
    """Averages of one phase's losses and gradient norms over the updates since the last row, and its skipped updates.

    Values are averaged over ranks at every update (one small collective), so the state is always the same on all ranks: a
    checkpoint in the middle of an interval, or another world size, changes no logged number.
    """

    def __init__(self, phase: str, trained: Sequence[str], device: torch.device) -> None:
        """`trained`: the components that get gradients."""
        self.phase = phase
        several = len(trained) > 1
        self._left_out = f"skipped_updates/{phase}"
        self._norms = [f"gradient_norm/{phase}" + (f"/{component}" if several else "") for component in trained]
        self.skipped = 0
        """Updates that were not finite and so were skipped, in the whole run; as of the last `fetch` or `state`."""
        self.first_skipped = -1
        """The step of the first of them, or -1."""
        self._names: list[str] = []
        self._reported: list[str] = []
        self._counted: list[str] = []
        self._pieces: list[Tensor] = []
        self._current = torch.zeros(0)
        self._sums: Tensor | None = None
        self._updates = torch.zeros((), dtype=torch.float64, device=device)
        self._skips = torch.tensor([0, -1], device=device)
        self._saved: Mapping[str, float] = {}
        self._flags = {
            flag: torch.full((1,), float(flag), dtype=torch.float64, device=device) for flag in (False, True)
        }

    def record(self, losses: Losses) -> None:
        """Records the losses of one microbatch."""
        self._names = [f"loss/{self.phase}", *(f"loss/{self.phase}/{term}" for term in losses.terms)]
        values = [losses.total, *losses.terms.values()]
        self._pieces.append(torch.stack([value.detach().double() for value in values]))

    def average_over_ranks(self, accumulate: int, reached: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Averages the update's losses over microbatches and ranks. `reached`: of each trained component, whether a gradient
        has reached it on this rank.

        Returns (whether all losses are finite, of each component whether a gradient has reached it on any rank): bools on
        the device, of shape [] and [components].
        """
        mean = torch.stack(self._pieces).sum(0) / (accumulate * world.size())
        self._pieces.clear()
        summed = world.sum_over_ranks(torch.cat([mean, *(self._flags[flag] for flag in reached)]))
        self._current, ranks = summed.split([len(mean), len(reached)])
        return torch.isfinite(self._current).all(), ranks > 0

    def add_update(
        self,
        finite: Tensor,
        norms: Sequence[Tensor],
        reports: Mapping[str, Tensor],
        step: int,
        too_large: Tensor | None = None,
    ) -> None:
        """Adds the update to the averages if it was finite, else counts it as skipped.

        `norms`: of the gradient of each trained component; `reports`: the phase's reports after it (Phase.reports), equal on
        all ranks. `too_large`: whether it was left out for its norm, in a phase where that may be: such updates are among the
        averages, and counted beside them.
        """
        self._reported = [f"{self.phase}/{name}" for name in reports]
        self._counted = [] if too_large is None else [self._left_out]
        counted = [] if too_large is None else [too_large]
        scalars = [value.detach().double().reshape(()) for value in (*norms, *reports.values(), *counted)]
        values = torch.cat([self._current, torch.stack(scalars)])
        if self._sums is None:
            kept = [self._saved.get(name, 0.0) for name in self._all_names()]
            self._sums = to_device(torch.tensor(kept, dtype=torch.float64), values.device)
        self._sums += torch.where(finite, values, torch.zeros_like(values))
        self._updates += finite
        count, first = self._skips
        self._skips = torch.stack([count + ~finite, torch.where(finite | (first >= 0), first, step)])

    def fetch(self, reset: bool) -> dict[str, float]:
        """The averages since the last reset, by name, and the number of updates that were left out for their norm; waits for
        the device."""
        state = self.state()
        if reset:
            self._sums = None
            self._saved = {}
            self._updates.zero_()
        updates = state["updates"]
        if not updates:
            return {}
        return {name: total / (1 if name == self._left_out else updates) for name, total in state["sums"].items()}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps; also reads `skipped` and `first_skipped` from the device."""
        self.skipped, self.first_skipped = self._skips.tolist()
        sums = dict(self._saved)
        if self._sums is not None:
            sums = dict(zip(self._all_names(), self._sums.tolist(), strict=True))
        return {"sums": sums, "updates": float(self._updates), "skips": [self.skipped, self.first_skipped]}

    def _all_names(self) -> list[str]:
        return [*self._names, *self._norms, *self._reported, *self._counted]

    def load(self, state: Mapping[str, Any]) -> None:
        self._saved = state["sums"]
        self._updates.fill_(state["updates"])
        self._skips = torch.tensor(state["skips"], device=self._updates.device)


class Interval:
    """Wall time between rows, without pauses (pictures, evaluations)."""

    def __init__(self, step: int) -> None:
        self._begin, self._step = time.perf_counter(), step

    @property
    def seconds(self) -> float:
        """Seconds since the last `read`."""
        return time.perf_counter() - self._begin

    def pause(self, seconds: float) -> None:
        """Leaves `seconds` out of the interval."""
        self._begin += seconds

    def read(self, step: int) -> tuple[float, int]:
        """(seconds, steps) since the last call."""
        now = time.perf_counter()
        seconds, steps = now - self._begin, step - self._step
        self._begin, self._step = now, step
        return seconds, steps
