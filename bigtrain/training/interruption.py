"""Stopping on a signal: all ranks agree on the step, the trainer writes a checkpoint, the process ends."""

import signal
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from bigtrain.cluster import world
from bigtrain.cluster.meeting import TIMEOUT_S
from bigtrain.signals import ENDING, heeded, let_go_of_terminal

SIGNALS = (signal.SIGINT, *ENDING)


class Interruption:
    """Records SIGTERM, SIGINT, SIGUSR1 and, unless it is ignored (nohup), SIGHUP; a second SIGINT interrupts at once.

    `agreed` is called by every rank after every step. Its answer at step s is the maximum over ranks of the signals received
    by step s - 1: the exchange runs on the CPU during the step, so that no rank waits for the device or for another rank,
    and all ranks stop after the same step.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._previous = {number: signal.signal(number, self._record) for number in (signal.SIGINT, *heeded())}
        self._group: Any = None
        if world.size() > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=TIMEOUT_S))
        self._exchange: tuple[Any, torch.Tensor] | None = None

    def _record(self, number: int, frame: FrameType | None) -> None:
        if self._signal == number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            let_go_of_terminal()
        self._signal = number

    def requested(self) -> bool:
        """Whether this rank has received a signal; the others may not know yet."""
        return self._signal != 0

    def agreed(self) -> str | None:
        """The name of the signal on which all ranks stop now, or None."""
        if self._group is None:
            return signal.Signals(self._signal).name if self._signal else None
        number = self._finish_exchange()
        flag = torch.tensor(self._signal)
        self._exchange = dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group, async_op=True), flag
        return signal.Signals(number).name if number else None

    def _finish_exchange(self) -> int:
        if self._exchange is None:
            return 0
        work, flag = self._exchange
        self._exchange = None
        work.wait()
        return int(flag)

    def close(self) -> None:
        """Waits for the pending exchange, and restores the previous signal handlers.

        After a signal it does not restore them: Slurm repeats the signal, which must not end the process before the command
        has finished.
        """
        self._finish_exchange()
        if not self._signal:
            for number, handler in self._previous.items():
                signal.signal(number, handler)
