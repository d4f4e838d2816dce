"""A thread in every rank that notices when the job hangs, says which rank hangs where, and ends its process.

The training loop only assigns to attributes: `enter` (a phase of a step), `mark` (the current activity), `pulse` (a sign of
life within a long activity). Every few seconds the thread reads them and publishes them as this rank's beat in the job's
key-value store. A rank that has made no progress for longer than its limit reads all ranks' beats. The rank that hangs is the
one without a sign of life, or the one with the least progress. As long as that one is within its own limit, the others go on
waiting. Then the process ends by `os._exit`, its launcher ends the others, and the same command resumes.
"""

import contextlib
import faulthandler
import json
import os
import queue
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, NamedTuple, Protocol, TypeVar

import torch.distributed as dist

from bigtrain.cluster import world
from bigtrain.cluster.launch import TIMEOUT_S

T = TypeVar("T")
START_S = 1800.0
"""The limit for what may take long: a phase's first update in a process (compilation, the first data, the start of many
nodes), and activities marked `patient` (checkpoints, pictures, evaluations)."""
BEAT_S = 5.0
"""Seconds between two beats; with a limit of less than fifty seconds, a tenth of it."""
SPEAKER_FIRST_S = 10.0
"""One rank of each node prints the diagnosis. The others wait this long for it; the process ends after twice this at most."""
_NAMED = 8  # ranks that a message lists at most


class Store(Protocol):
    """The methods of torch.distributed's key-value stores that are used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def add(self, key: str, amount: int) -> int: ...


@dataclass(frozen=True)
class Beat:
    """A rank's last report."""

    rank: int
    host: str
    process: int
    number: int
    """Number of its beats so far; if it no longer grows, the rank is dead, stopped or cut off."""
    marks: int
    """Its progress, in marks; all ranks set the same marks in the same order."""
    activity: str
    idle_s: float
    """Seconds since its last progress or pulse."""
    limit_s: float
    """How long its current activity may last without progress."""

    @property
    def name(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"


class Diagnosis(NamedTuple):
    """The ranks that hang, and a text that says so."""

    text: str
    ranks: frozenset[int]


def diagnose(before: Sequence[Beat | None], after: Sequence[Beat | None], apart_s: float) -> Diagnosis | None:
    """The diagnosis from two readings of all ranks' beats, `apart_s` seconds apart; None while a rank that is behind the
    others is within its own limit. A rank without a beat (None) has not reached the training loop."""
    missing = [rank for rank, beat in enumerate(after) if beat is None]
    silent = [a for b, a in zip(before, after, strict=True) if b and a and a.number == b.number]
    if missing or silent:
        words = [f"rank {rank} has not reached the training loop" for rank in missing]
        words += [
            f"{beat.name} has given no sign of life for at least {apart_s:.0f} s: its process is dead or stopped, or the "
            f"network to it is cut; it was last heard of at {beat.activity}"
            for beat in silent
        ]
        return Diagnosis(_listed(words), frozenset([*missing, *(beat.rank for beat in silent)]))
    beats = [beat for beat in after if beat is not None]
    least = min(beat.marks for beat in beats)
    behind = [beat for beat in beats if beat.marks == least]
    if any(beat.idle_s < beat.limit_s for beat in behind):
        return None
    return Diagnosis(_describe(behind, beats), frozenset(beat.rank for beat in behind))


def _describe(behind: Sequence[Beat], beats: Sequence[Beat]) -> str:
    first = behind[0]
    if len(beats) == 1:
        return f"it has been at {first.activity} for {first.idle_s:.0f} s"
    if len(behind) == len(beats):
        first, last = max(beats, key=lambda beat: beat.idle_s), min(beats, key=lambda beat: beat.idle_s)
        apart_s = first.idle_s - last.idle_s
        sooner = (
            f". {first.name} stood still first, {apart_s:.0f} s before the last" if apart_s > first.limit_s / 10 else ""
        )
        return (
            f"all {len(beats)} ranks have been at the same point for {last.idle_s:.0f} s ({first.activity}): none is behind "
            f"the others, so the network between them, a device or a file system hangs; the stacks tell more{sooner}"
        )
    furthest = max(beats, key=lambda beat: beat.marks)
    words = [
        f"{beat.name} is behind the others: it has been at {beat.activity} for {beat.idle_s:.0f} s" for beat in behind
    ]
    return f"{_listed(words)}\n  {furthest.name} waits at {furthest.activity}"


def _listed(words: Sequence[str]) -> str:
    more = [f"and {len(words) - _NAMED} more"] if len(words) > _NAMED else []
    return "\n  ".join([*words[:_NAMED], *more])


class Unreachable(Exception):
    """The key-value store does not answer."""


class Peers:
    """The beats of all ranks, over a store connection that nothing else uses.

    Calls run on their own thread, because a call over a network that has been cut never returns.
    """

    def __init__(self, store: Store, rank: int, size: int, node: str = "0") -> None:
        self.rank, self.size = rank, size
        self._store, self._node = store, node
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._published: Future[None] | None = None
        threading.Thread(target=self._serve, name="watchdog's peers", daemon=True).start()

    def _serve(self) -> None:
        while (call := self._calls.get()) is not None:
            call()

    def _submit(self, call: Callable[[], T]) -> "Future[T]":
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(call())
            except Exception as error:  # whatever a broken connection raises
                future.set_exception(error)

        self._calls.put(run)
        return future

    def close(self) -> None:
        """Ends the thread, after the calls that are under way."""
        self._calls.put(None)

    def publish(self, beat: Beat) -> "Future[None]":
        """Sends this rank's beat, unless the one before it is still on its way."""
        if self._published is None or self._published.done():
            text = json.dumps(asdict(beat))
            self._published = self._submit(lambda: self._store.set(f"watchdog/beat/{self.rank}", text))
        return self._published

    def read(self, timeout_s: float) -> list[Beat | None]:
        """All ranks' beats, by rank; None for one that has published none. Raises Unreachable."""
        return self._result(lambda: [self._beat(rank) for rank in range(self.size)], timeout_s)

    def _beat(self, rank: int) -> Beat | None:
        key = f"watchdog/beat/{rank}"
        return Beat(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def claim(self, timeout_s: float) -> bool:
        """Whether this rank prints the diagnosis for its node; True if the store does not answer."""
        try:
            return self._result(lambda: self._store.add(f"watchdog/speaker/{self._node}", 1) == 1, timeout_s)
        except Unreachable:
            return True

    def _result(self, call: Callable[[], T], timeout_s: float) -> T:
        try:
            return self._submit(call).result(timeout_s)
        except Exception as error:
            raise Unreachable(str(error)) from error


def peers_of_world() -> Peers | None:
    """This job's ranks, or None for a single rank."""
    if world.size() == 1:
        return None
    store = dist.distributed_c10d._get_default_store().clone()  # its own connection: the other one may be blocked
    store.set_timeout(timedelta(seconds=START_S))
    return Peers(store, world.rank(), world.size(), os.environ.get("GROUP_RANK", "0"))


class _Activity(NamedTuple):
    step: int
    phase: str | None
    activity: str
    patient: bool

    def __str__(self) -> str:
        phase = f", phase {self.phase}" if self.phase is not None else ""
        return f"step {self.step}{phase}: {self.activity}"


class Watchdog:
    """Watches this process during its `with` block.

    `enter`, `mark` and `pulse`, which the training loop calls, cost an assignment: no lock, no clock, no synchronisation.
    """

    def __init__(
        self,
        limit_s: float | None,
        peers: Peers | None = None,
        *,
        start_s: float = START_S,
        leave: Callable[[int], Any] = os._exit,
    ) -> None:
        """`limit_s`: seconds without progress before the process ends, None for never; `start_s`: the limit for what may take
        long, at least `limit_s`; `leave`: called with the exit code 1."""
        self._limit_s, self._start_s = limit_s, max(start_s, limit_s or 0.0)
        self._peers, self._leave = peers, leave
        self._beat_s = min(BEAT_S, (limit_s or 0.0) / 10)
        self._activity = _Activity(0, None, "starts", patient=False)
        self._proven: set[str | None] = set()
        self._marks = self._pulses = self._beats = 0
        self._before: tuple[float, list[Beat | None]] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    # -- called by the training loop --------------------------------------------------------------------------------

    def enter(self, step: int, phase: str | None) -> None:
        """A phase of a step begins, or the time between phases (None). The first time of each phase has the long limit."""
        self._proven.add(self._activity.phase)
        self._activity = _Activity(step, phase, "begins", patient=False)
        self._marks += 1

    def mark(self, activity: str, patient: bool = False) -> None:
        """Sets the current activity; every rank makes the same calls in the same order. `patient`: it may take long."""
        self._activity = _Activity(self._activity.step, self._activity.phase, activity, patient)
        self._marks += 1

    def pulse(self) -> None:
        """A sign of life within an activity; their number may differ between ranks."""
        self._pulses += 1

    def polled(self, question: Callable[[], T]) -> Callable[[], T]:
        """The same function, each call of which is also a sign of life."""

        def ask() -> T:
            self.pulse()
            return question()

        return ask

    # -- its own thread ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "Watchdog":
        if self._limit_s is not None:
            if self._peers is not None:
                self._peers.publish(self._own_beat(0.0))  # so that a rank which stops at once can be named
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops watching; adds a note to an error that says what this rank was doing."""
        activity = self._activity
        self.mark("leaves the loop" if error is None else f"ended with {type(error).__name__}")
        if error is not None:
            error.add_note(f"rank {world.rank()} was at {activity}")
            if "connection" in str(error).lower():
                error.add_note("if a connection was lost, the rank at its other end ended first: see its messages")
        if self._thread.is_alive():
            self._closing.set()
            self._thread.join(2 * SPEAKER_FIRST_S)
            faulthandler.cancel_dump_traceback_later()
        if self._peers is not None:
            self._peers.close()

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        looked = since
        while not self._closing.wait(self._beat_s):
            now, moved = time.monotonic(), self._marks + self._pulses
            stopped = now - looked > self._silence_s  # this process was suspended, and perhaps others: start again
            if moved != seen or stopped:
                seen, since = moved, now
            self._guard()
            own = self._own_beat(now - since)
            if self._peers is not None:
                self._peers.publish(own)
            diagnosis = self._diagnosis(own) if own.idle_s >= own.limit_s else None
            if own.idle_s < own.limit_s:
                self._before = None
            if diagnosis is not None:
                self._bring_down(diagnosis, own)
                return
            looked = time.monotonic()
        if self._peers is not None:
            with contextlib.suppress(Exception):  # it does not matter if it is lost
                self._peers.publish(self._own_beat(0.0)).result(self._beat_s)

    @property
    def _silence_s(self) -> float:
        """A rank without a new beat for this long gives no sign of life; a busy machine delays beats by less."""
        return 4 * self._beat_s

    def _own_beat(self, idle_s: float) -> Beat:
        self._beats += 1
        activity = self._activity
        assert self._limit_s is not None, "the watchdog runs only with a limit"
        limit_s = self._start_s if activity.patient or activity.phase not in self._proven else self._limit_s
        rank = self._peers.rank if self._peers is not None else 0
        return Beat(
            rank, socket.gethostname(), os.getpid(), self._beats, self._marks, str(activity), round(idle_s, 1), limit_s
        )

    def _guard(self) -> None:
        """Ends the process even if this thread never runs again, because other code holds the interpreter lock.

        Other ranks detect such a rank much sooner, as one without a sign of life; this is for the case that all ranks are so.
        The timer cannot distinguish it from a pause of the whole job (SIGSTOP, docker pause). So it is as long as the timeout
        of a collective, after which a paused job would fail anyway. Not for a single rank, for which no other waits.
        """
        if self._peers is not None:
            faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)

    def _diagnosis(self, own: Beat) -> Diagnosis | None:
        """Reads all beats twice, several beats apart; None while there is no diagnosis yet."""
        if self._peers is None:
            return diagnose([None], [own], 0.0)
        try:
            beats = self._peers.read(max(self._silence_s, SPEAKER_FIRST_S))
        except Unreachable as error:
            where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
            why = f" ({error})" if str(error) else ""
            return Diagnosis(
                f"the job's key-value store at {where} on the main rank's host does not answer{why}: that host or its launcher "
                f"is gone, or the network to it is cut. {own.name} has been at {own.activity} for {own.idle_s:.0f} s",
                frozenset(),
            )
        now = time.monotonic()
        if self._before is None:
            self._before = now, beats
        at, before = self._before
        if now - at < self._silence_s:
            return None
        self._before = now, beats
        return diagnose(before, beats, now - at)

    def _bring_down(self, diagnosis: Diagnosis, own: Beat) -> None:
        """Prints the diagnosis, once per node, and the stack of every rank that hangs, and ends this process."""
        last = threading.Timer(2 * SPEAKER_FIRST_S, self._leave, (1,))  # if stderr is a pipe that nobody reads
        last.daemon = True
        last.start()
        speaks = self._peers is None or not diagnosis.ranks or self._peers.claim(SPEAKER_FIRST_S)
        if speaks:
            _write(
                f"\nerror: the job hangs, and is ended: {diagnosis.text}\n"
                f"  (limit: {own.limit_s:g} s; engine.hang_timeout_s is {self._limit_s:g} s.) The checkpoints are whole: "
                "the same command resumes\n"
            )
        if speaks or own.rank in diagnosis.ranks:
            _write(f"{own.name} is at {own.activity}; the stack of its main thread:\n{_stack_of_main_thread()}")
        if not speaks:
            self._closing.wait(SPEAKER_FIRST_S)
        last.cancel()
        self._leave(1)


def _stack_of_main_thread() -> str:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "  (it has ended)\n"


def _write(text: str) -> None:
    os.write(2, text.encode())  # not sys.stderr, whose lock the main thread may hold
