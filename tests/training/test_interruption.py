"""Signals during training."""

import os
import signal
from collections.abc import Iterator

import pytest

from bigtrain.training.interruption import SIGNALS, Interruption


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_handlers_are_given_back_where_no_signal_has_come() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    interruption = Interruption()
    assert interruption.agreed() is None
    interruption.close()
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_that_is_repeated_does_not_end_a_process_that_is_leaving(number: signal.Signals) -> None:
    """Slurm and the job script say it again and again, and the mark for the requeue is still to be written."""
    interruption = Interruption()
    os.kill(os.getpid(), number)
    assert interruption.requested()
    assert interruption.agreed() == number.name
    interruption.close()
    os.kill(os.getpid(), number)


def test_under_nohup_a_closing_terminal_is_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    interruption = Interruption()
    os.kill(os.getpid(), signal.SIGHUP)
    assert interruption.agreed() is None
    interruption.close()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
