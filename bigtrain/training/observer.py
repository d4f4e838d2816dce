"""What the trainer calls at intervals. The observers that draw pictures and evaluate are in inference/observers.py."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import nn


class Observer(Protocol):
    """Does something with the averaged weights at intervals: draws pictures, evaluates."""

    def has(self, step: int) -> bool:
        """Whether its output for `step` exists already; called on the main rank of a resumed run."""
        ...

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        """Called on every rank. The averaged networks are in eval mode and must not be changed.

        Stops soon after `should_stop` returns True on any rank. Returns values to print.
        """
        ...
