"""Statistics that a forward pass computes and an explicit update applies.

Forward is pure: a module that keeps statistics (batch moments, power-iteration vectors, codebook counts) only records what
a forward pass computed, and only while `recording` is on. `commit` applies what was recorded, once per phase. So activation
checkpointing, gradient accumulation, evaluation and a second forward change nothing, and the statistics of a frozen
component never move by accident.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class StatisticsModule(nn.Module):
    """A module with its own statistics. What it records is in non-persistent buffers, which are in no checkpoint."""

    copied_buffers: tuple[str, ...] = ()
    """Names of this module's buffers that an average of weights copies instead of averaging (a direction, a count)."""

    recording: bool = False
    """Whether a training forward records; the trainer turns it on only for the component of the current phase."""

    def commit(self, finite: Tensor) -> None:
        """Applies what was recorded and clears it. `finite`: bool scalar on the device; where False, it is only cleared."""
        raise NotImplementedError


def statistics_modules(network: nn.Module) -> Iterator[StatisticsModule]:
    return (module for module in network.modules() if isinstance(module, StatisticsModule))


def set_recording(network: nn.Module, on: bool) -> None:
    for module in statistics_modules(network):
        module.recording = on


@contextmanager
def nothing_recorded(network: nn.Module) -> Iterator[None]:
    """Forward passes within it record nothing."""
    recording = [module for module in statistics_modules(network) if module.recording]
    for module in recording:
        module.recording = False
    try:
        yield
    finally:
        for module in recording:
            module.recording = True


@torch.no_grad()
def commit(network: nn.Module, finite: Tensor) -> None:
    """Updates all statistics of the network from what was recorded; once per phase, after the optimizer's update."""
    for module in statistics_modules(network):
        module.commit(finite)


def copied_buffer_names(network: nn.Module) -> set[str]:
    """Full names of the buffers that an average of the weights copies."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, StatisticsModule)
        for name in module.copied_buffers
    }


def recomputing() -> bool:
    """Whether this forward runs inside a backward: then activation checkpointing repeats a forward that was recorded already.

    torch.utils.checkpoint detects it in the same way. A compiled graph records once in any case: it recomputes only values.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
