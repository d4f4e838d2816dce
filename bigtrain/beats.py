"""Signs of life of long work, set where the work is done: batches measured, networks called, bytes hashed, tensors written.

`with work("draws pictures"):` says what this thread does on its own, without waiting for another rank. Each `beat()` in it says
that another piece is done, and so does its end. Whoever watches the thread (cluster/watchdog.py) waits long for the first beat
of a kind of work, which may include a compilation, and for the next ones little longer than such pieces have taken. A beat
costs less than a microsecond, watched or not.
"""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar, NamedTuple, TypeVar

T = TypeVar("T")

SLOWEST = 2.0
"""A piece may take so many times as long as the longest one of its kind in this process."""


class Work(NamedTuple):
    """What a thread works at."""

    kind: str
    limit_s: float
    """How long the next piece may take; infinite before the first beat of this kind in this process."""
    thread: int
    """The identifier of the thread that does it."""


class Beats:
    """The signs of life of one thread, which others may read."""

    _longest_s: ClassVar[dict[str, float]] = {}
    """The longest piece of each kind of work so far, of all threads: each later entry is at least the one before it."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._count = 0
        self._kind: str | None = None
        self._last = time.monotonic()
        self._followed: Beats | None = None

    @property
    def count(self) -> int:
        """Grows with each sign of life, also of the thread that this one waits for."""
        return self._count + (self._followed.count if self._followed is not None else 0)

    @property
    def at_work(self) -> Work | None:
        """What the thread, or the one that it waits for, is at; None outside of `work`."""
        if self._followed is not None:
            return self._followed.at_work
        kind = self._kind
        if kind is None:
            return None
        longest_s = self._longest_s.get(kind)
        return Work(kind, math.inf if longest_s is None else SLOWEST * longest_s, self._thread)

    def beat(self) -> None:
        now = time.monotonic()
        if self._kind is not None:
            self._longest_s[self._kind] = max(self._longest_s.get(self._kind, 0.0), now - self._last)
        self._last = now
        self._count += 1

    @contextmanager
    def work(self, kind: str) -> Iterator[None]:
        """Within it each beat ends a piece of this kind of work, and so does the block's end."""
        outer = self._kind
        self._kind, self._last = kind, time.monotonic()
        self._count += 1
        try:
            yield
            self.beat()
        finally:
            self._kind, self._last = outer, time.monotonic()
            self._count += 1

    @contextmanager
    def following(self, other: "Beats") -> Iterator[None]:
        """Within it this thread waits for the other one, whose beats count as its own."""
        self._count += 1
        self._followed = other
        try:
            yield
        finally:
            self._count += other.count + 1  # so that the sum never repeats an earlier one
            self._followed = None


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.beats = Beats()


_OWN = _OfThread()


def own() -> Beats:
    """The beats of the thread that asks."""
    return _OWN.beats


def use(beats: Beats) -> None:
    """Makes these the beats of the thread that calls."""
    beats._thread, _OWN.beats = threading.get_ident(), beats


def beat() -> None:
    """This thread has done a piece of its work."""
    _OWN.beats.beat()


def work(kind: str) -> AbstractContextManager[None]:
    """This thread works on its own, without waiting for another rank, until the block's end."""
    return _OWN.beats.work(kind)


def as_work(kind: str, function: Callable[[], T]) -> Callable[[], T]:
    """The same function, which is such work."""

    def call() -> T:
        with work(kind):
            return function()

    return call
