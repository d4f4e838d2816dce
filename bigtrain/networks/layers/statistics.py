"""Statistics that a forward pass computes and an explicit update applies.

Forward is pure: a module that keeps statistics (batch moments, power-iteration vectors, codebook counts) only notes
what it saw, and only while it is told to record. `commit` applies the notes once per phase. Activation checkpointing,
gradient accumulation, evaluation and a second forward therefore change nothing, and a frozen component learns nothing by
accident.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class StatisticsModule(nn.Module):
    """A module with statistics of its own. Its notes are non-persistent buffers: no checkpoint ever holds them."""

    copied_buffers: tuple[str, ...] = ()
    """Names of this module's buffers that an average of weights copies instead of averaging (a direction, a count)."""

    recording: bool = False
    """Whether a training forward takes notes; the trainer turns it on for the component of the current phase alone."""

    def commit(self, finite: Tensor) -> None:
        """Apply the notes and drop them. `finite`: bool scalar on the device; where False, nothing but the dropping."""
        raise NotImplementedError


def statistics_modules(network: nn.Module) -> Iterator[StatisticsModule]:
    return (module for module in network.modules() if isinstance(module, StatisticsModule))


def set_recording(network: nn.Module, on: bool) -> None:
    for module in statistics_modules(network):
        module.recording = on


@torch.no_grad()
def commit(network: nn.Module, finite: Tensor) -> None:
    """The explicit update, once per phase, after the optimizer's."""
    for module in statistics_modules(network):
        module.commit(finite)


def copied_buffer_names(network: nn.Module) -> set[str]:
    """Full names of the buffers that averaging copies."""
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in network.named_modules()
        if isinstance(module, StatisticsModule)
        for name in module.copied_buffers
    }


def recomputing() -> bool:
    """Whether this forward runs inside a backward: activation checkpointing computes again what has been noted already.

    torch.utils.checkpoint tells it in the same way. A compiled graph notes once in any case: it recomputes values only.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
