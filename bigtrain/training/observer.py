"""What the trainer calls at intervals; inference/observers.py has those that draw pictures and evaluate."""

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import nn


class Observer(Protocol):
    """What the doors have done at intervals with the averaged weights: pictures, evaluations."""

    def has(self, step: int) -> bool:
        """Whether what it makes at `step` is there already; asked on the main rank of a resumed run."""
        ...

    def observe(
        self, step: int, networks: Mapping[str, nn.Module], should_stop: Callable[[], bool]
    ) -> Mapping[str, float]:
        """Called on every rank. The averaged networks are in eval mode; all must be left as they are.

        Gives up soon after `should_stop` says so on any rank. Returns values to be shown.
        """
        ...
