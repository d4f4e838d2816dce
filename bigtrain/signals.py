"""The signals by which schedulers, launchers and closing terminals end a command."""

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Besides SIGINT, by which a person does."""


def heeded() -> tuple[signal.Signals, ...]:
    """Those of ENDING that end this process: not SIGHUP where it is ignored from the start, as under nohup."""
    return tuple(
        number for number in ENDING if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    )


@contextmanager
def held_back() -> Iterator[None]:
    """Within it no signal's handler is run by the main thread; at the end those are whose signals have come.

    For libraries that take what a handler raises within them for a mistake of their own. Torch does so while safetensors makes
    a tensor of a storage: a sound file is called damaged, and the signal is lost.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    try:
        for number in ours:  # the handler of the next one may still raise
            signal.signal(number, lambda *arrival: came.append(arrival))
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for arrived, frame in came:
            ours[signal.Signals(arrived)](arrived, frame)


def let_go_of_terminal() -> None:
    """Sends what is printed from now on nowhere if the terminal that it went to has been closed: printing would fail."""
    for descriptor in (1, 2):
        poll = select.poll()
        poll.register(descriptor, 0)
        if any(event & select.POLLHUP for _, event in poll.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
