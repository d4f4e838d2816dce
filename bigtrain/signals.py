"""The signals by which schedulers, launchers and closing terminals end a command."""

import os
import select
import signal

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Besides SIGINT, by which a person does."""


def heeded() -> tuple[signal.Signals, ...]:
    """Those of ENDING that end this process: not SIGHUP where it is ignored from the start, as under nohup."""
    return tuple(
        number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    )


def let_go_of_terminal() -> None:
    """Sends what is printed from now on nowhere if the terminal that it went to has been closed: printing would fail."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
