"""A thread in every rank that notices when the job hangs, says which rank hangs where, and ends its process.

The work only assigns to attributes: `enter` (a phase of a step), `mark` (the current activity), and the signs of life of
bigtrain/beats.py. Every few seconds the thread publishes them as this rank's beat in the job's key-value store. A rank is at
fault that

- is silent: its neighbour has seen no new beat for the limit, whatever it was doing;
- works on its own (`beats.work`) and takes too long for the next piece;
- is behind the others in marks, and longer than its limit without a sign of life. As long as it is within its limit, the
  others go on waiting.

The first to find it makes it the verdict. One rank of each node prints that, before and after the stacks of those at fault; all
processes end by `os._exit`, and the same command resumes. A rank that fails says so before the others lose their connections to
it; they then end without a word.
"""

import contextlib
import faulthandler
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

import torch.distributed as dist

from bigtrain import beats
from bigtrain.cluster import world
from bigtrain.cluster.diagnosis import diagnose, find_alone, find_dead, find_silent
from bigtrain.cluster.meeting import TIMEOUT_S
from bigtrain.cluster.peers import ENDED, LEAVES, Beat, Diagnosis, Peers, Unreachable, peers_of_world
from bigtrain.errors import OtherRankFailed, RankError, TrainingDiverged, UserError, known_failure
from bigtrain.untrusted import one_line

START_S = 1800.0
"""The limit for what may take long: a phase's first update in a process (compilation, the first data, the start of many
nodes), and activities marked `patient` (checkpoints, pictures, evaluations) outside of work that has given signs of life."""
BEAT_S = 3.0
"""Seconds between two beats; with a limit of less than thirty seconds, a tenth of it."""
SILENCE_S = 20.0
"""A rank without a new beat for so long gives no sign of life to those that wait for it: a busy machine delays beats by less.
With a limit of less than fifty seconds, two fifths of it."""
SPEAKER_FIRST_S = 10.0
"""One rank of each node prints the verdict. The others wait this long for it; the process ends after twice this at most."""
STACKS_S = 1.0
"""How long it waits for the stacks of the ranks at fault, before it prints the verdict again."""
_INNERMOST = 5  # calls: a collective of torch.distributed has some of its own
_LOST = tuple(getattr(dist, name) for name in ("DistBackendError", "DistNetworkError", "DistStoreError"))


_ENDING = threading.Event()


def is_ending() -> bool:
    """Whether this process ends already, for a failure that is being told: a launcher then sends signals to the ranks that are
    left, which must not make them say anything else."""
    return _ENDING.is_set()


class _Activity(NamedTuple):
    step: int | None
    phase: str | None
    activity: str
    patient: bool

    def __str__(self) -> str:
        if self.step is None:
            return self.activity
        phase = f", phase {self.phase}" if self.phase is not None else ""
        return f"step {self.step}{phase}: {self.activity}"


class Watchdog:
    """Watches the thread that enters its `with` block, until the block's end.

    `enter` and `mark`, which the training loop calls, cost an assignment: no lock, no clock, no synchronisation.
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
        self._silence_s = min(SILENCE_S, (limit_s or 0.0) * 0.4)
        self._activity = _Activity(None, None, "starts", patient=True)
        self._proven: set[str | None] = set()
        self._marks = self._numbered = 0
        self._beats, self._thread_watched = beats.own(), threading.get_ident()
        self._before: tuple[float, list[Beat | None]] | None = None
        self._neighbour = (-1, 0.0)
        self._answered = 0.0
        self._failure: BaseException | None = None
        self._speaks_of_failure = True
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    # -- called by the work -----------------------------------------------------------------------------------------

    def enter(self, step: int, phase: str | None) -> None:
        """A phase of a step begins, or the time between phases (None). The first time of each phase has the long limit."""
        self._proven.add(self._activity.phase)
        self._activity = _Activity(step, phase, "begins", patient=False)
        self._marks += 1

    def mark(self, activity: str, patient: bool = False) -> None:
        """Sets the current activity; every rank makes the same calls in the same order. `patient`: it may take long."""
        self._activity = _Activity(self._activity.step, self._activity.phase, activity, patient)
        self._marks += 1

    def wait_for_all(self) -> None:
        """Returns when every rank calls it: then none has failed in what it did before."""
        self.mark("waits until the other ranks are done", patient=True)
        world.gather_objects(None)

    def failed(self, error: BaseException) -> None:
        """Says where this rank was when it failed, in a note of the error and to the other ranks. To be called before whatever
        is done on the way out, which sets other marks; the end of the block calls it too."""
        if self._failure is error:
            return
        self._failure, at = error, self._activity
        error.add_note(f"rank {world.rank()} was at {at}")
        if self._peers is None or isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit):
            return
        _ENDING.set()
        if _is_lost_connection(error):
            return
        if isinstance(error, UserError | TrainingDiverged) and not isinstance(error, RankError):
            if self._peers.rank == 0:  # as a rule all raise it, and this one says it, also to a rank that does not
                self._peers.claim_failure(SPEAKER_FIRST_S)
            return
        self._speaks_of_failure = self._peers.claim_failure(SPEAKER_FIRST_S)
        if self._speaks_of_failure and not isinstance(error, RankError) and known_failure(error) is None:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            _write(f"\nerror: {self._own_beat(0.0).name} has failed, at {at}: {what}\n")

    # -- its own thread ---------------------------------------------------------------------------------------------

    def __enter__(self) -> "Watchdog":
        self._beats, self._thread_watched = beats.own(), threading.get_ident()
        if self._limit_s is not None:
            if self._peers is not None:
                self._peers.publish(self._own_beat(0.0))  # so that a rank which stops at once can be named
            self._answered = time.monotonic()
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops watching. Raises OtherRankFailed in place of an error that another rank is the reason of and speaks of, and
        RankError in place of a UserError that the main rank has not met."""
        other, alone = False, None
        if error is None:
            self.mark(LEAVES)
        else:
            self.failed(error)
            self.mark(f"{ENDED}{type(error).__name__}")
            other, alone = self._other_rank_failed(error), self._met_alone(error)
        if self._thread.is_alive():
            self._closing.set()
            self._thread.join(2 * SPEAKER_FIRST_S + STACKS_S)
            faulthandler.cancel_dump_traceback_later()
        if self._peers is not None:
            self._peers.close()
        if other:
            raise OtherRankFailed from error
        if alone is not None:
            raise alone from error
        if error is not None and _is_lost_connection(error):
            error.add_note("a connection was lost: the rank at its other end ended first, see its messages")

    def _watch(self) -> None:
        seen, since = (-1, -1), time.monotonic()
        looked = since
        while not self._closing.wait(self._beat_s):
            now, moved = time.monotonic(), (self._marks, self._beats.count)
            stopped = now - looked > self._silence_s  # this process was suspended, and perhaps others: start again
            if moved != seen or stopped:
                seen, since = moved, now
            if stopped:
                self._before, self._neighbour, self._answered = None, (-1, now), now
            self._guard()
            own = self._own_beat(now - since)
            if self._peers is not None:
                self._peers.publish(own)
            diagnosis = self._found(own)
            if diagnosis is not None:
                self._bring_down(diagnosis, own)
                return
            looked = time.monotonic()
        if self._peers is not None:
            with contextlib.suppress(Exception):  # it does not matter if it is lost
                self._peers.publish(self._own_beat(0.0)).result(self._beat_s)
                self._peers.publish(self._own_beat(0.0)).result(self._beat_s)

    def _own_beat(self, idle_s: float) -> Beat:
        self._numbered += 1
        activity, work = self._activity, self._beats.at_work
        short_s = self._limit_s if self._limit_s is not None else self._start_s
        limit_s = self._start_s if activity.patient or activity.phase not in self._proven else short_s
        if work is not None:
            limit_s = min(self._start_s, max(short_s, work.limit_s))
        words = f"{activity} ({work.kind})" if work is not None else str(activity)
        rank = self._peers.rank if self._peers is not None else 0
        return Beat(
            rank,
            socket.gethostname(),
            os.getpid(),
            self._numbered,
            self._marks,
            words,
            round(idle_s, 1),
            limit_s,
            waits=_is_in(dist, self._thread_watched),
            alone=work is not None,
        )

    def _guard(self) -> None:
        """Ends the process even if this thread never runs again, because other code holds the interpreter lock.

        Other ranks detect such a rank much sooner, as one without a sign of life; this is for the case that all ranks are so.
        The timer cannot distinguish it from a pause of the whole job (SIGSTOP, docker pause). So it is as long as the timeout
        of a collective, after which a paused job would fail anyway. Not for a single rank, for which no other waits.
        """
        if self._peers is not None:
            faulthandler.dump_traceback_later(TIMEOUT_S, exit=True)

    def _found(self, own: Beat) -> Diagnosis | None:
        """The verdict of this rank or of another; None as long as there is none."""
        if self._peers is None:
            return diagnose([None], [own], 0.0)
        try:
            news = self._peers.news(max(self._silence_s, self._beat_s))
            if news.verdict is not None:
                return news.verdict
            found = find_alone([own]) or self._diagnosis(self._peers, own, self._missed_s(news.neighbour))
            self._answered = time.monotonic()
        except Unreachable as error:
            assert self._limit_s is not None, "the watchdog runs only with a limit"
            if not own.overdue and time.monotonic() - self._answered < self._limit_s:
                return None
            return _without_store(own, error)
        return self._peers.agree(found, SPEAKER_FIRST_S) if found is not None else None

    def _missed_s(self, neighbour: Beat | None) -> float:
        """Seconds for which the rank that this one watches has given no sign of life."""
        now = time.monotonic()
        if neighbour is None or neighbour.left or neighbour.number != self._neighbour[0]:
            self._neighbour = (neighbour.number if neighbour is not None else -1, now)
        return now - self._neighbour[1]

    def _diagnosis(self, peers: Peers, own: Beat, missed_s: float) -> Diagnosis | None:
        """Reads all beats as soon as a limit is near, and again when it is reached."""
        assert self._limit_s is not None, "the watchdog runs only with a limit"
        due_s = max(own.idle_s - own.limit_s, missed_s - self._limit_s)
        if due_s < -self._silence_s:
            self._before = None
        if due_s < 0 and (due_s < -self._silence_s or self._before is not None):
            return None
        now, read = time.monotonic(), peers.read(max(self._silence_s, SPEAKER_FIRST_S))
        if self._before is None:
            self._before = now, read
        at, before = self._before
        apart_s = now - at
        if due_s < 0 or apart_s < self._silence_s - self._beat_s:
            return None
        found = diagnose(before, read, apart_s) if own.overdue else find_silent(before, read, apart_s)
        if apart_s > 2 * self._silence_s:
            self._before = now, read
        return found

    def _bring_down(self, diagnosis: Diagnosis, own: Beat) -> None:
        """Prints the diagnosis, once per node, and the stack of every rank that hangs, and ends this process."""
        _ENDING.set()
        last = threading.Timer(2 * SPEAKER_FIRST_S, self._leave, (1,))  # if stderr is a pipe that nobody reads
        last.daemon = True
        last.start()
        speaks = self._peers is None or not diagnosis.ranks or self._peers.claim_output(SPEAKER_FIRST_S)
        verdict = f"error: the job hangs, and is ended: {diagnosis.text}\n"
        if speaks:
            _write(
                f"\n{verdict}  (limit: {own.limit_s:g} s; engine.hang_timeout_s is {self._limit_s:g} s.) What is written is "
                "whole: the same command resumes\n"
            )
        if own.rank in diagnosis.ranks or not diagnosis.ranks or self._peers is None:
            _write(f"{own.name} is at {own.activity}; the stack of its main thread:\n{self._stacks()}")
        if speaks and self._peers is not None:
            time.sleep(max(STACKS_S, 2 * self._beat_s))  # until all ranks know, so that none is surprised by the end
            _write(verdict)
        if not speaks:
            time.sleep(SPEAKER_FIRST_S)
        last.cancel()
        self._leave(1)

    def _stacks(self) -> str:
        """The stack of the main thread, and of the thread that it waits for, if that works for it."""
        main, work = threading.main_thread().ident, self._beats.at_work
        stacks = _stack(main)
        if work is not None and work.thread not in (main, threading.get_ident()):
            stacks += f"the stack of the thread that {work.kind}:\n{_stack(work.thread)}"
        return stacks

    # -- the failures of other ranks --------------------------------------------------------------------------------

    def _other_rank_failed(self, error: BaseException) -> bool:
        """Whether another rank is the reason of this error and its failure is reported: by that rank or, if it has died, by the
        first that notices, which may be this one."""
        if self._peers is None or self._limit_s is None:
            return False
        if not self._speaks_of_failure:
            return True
        lost = _is_lost_connection(error)
        if not lost and not isinstance(error, KeyboardInterrupt):
            return False
        try:
            return self._is_reported(self._peers, wait=lost)
        except Unreachable:
            return False

    def _met_alone(self, error: BaseException) -> RankError | None:
        """The error of this rank for a UserError that was taken for one of all ranks, of which the main one speaks, and that
        the main one does not meet within the time that the others leave it."""
        shared = isinstance(error, UserError) and not isinstance(error, RankError)
        if self._peers is None or self._limit_s is None or self._peers.rank == 0 or not shared:
            return None
        begin = time.monotonic()
        try:
            while not _has_said_its_end(self._peers.read(SPEAKER_FIRST_S)[0]):
                if time.monotonic() - begin > SPEAKER_FIRST_S:
                    self._peers.claim_failure(SPEAKER_FIRST_S)
                    return RankError(f"rank {self._peers.rank}: {error}")
                time.sleep(self._beat_s / 10)
        except Unreachable:  # the main rank, which holds the store, has ended
            pass
        return None

    def _is_reported(self, peers: Peers, wait: bool) -> bool:
        """Waits, if `wait`, as long as a rank on another host may take to be missed."""
        begin, before = time.monotonic(), peers.read(SPEAKER_FIRST_S)
        while True:
            if peers.has_failed(SPEAKER_FIRST_S):
                return True
            waited_s = time.monotonic() - begin
            after = peers.read(SPEAKER_FIRST_S)
            dead = find_dead(before, after, silent=waited_s > self._silence_s)
            # A launcher that is stopped ends its ranks by the same signal: one that has ended by it is no failure.
            if dead is not None and (wait or not any(_has_said_its_end(after[rank]) for rank in dead.ranks)):
                if peers.claim_failure(SPEAKER_FIRST_S):
                    _write(f"\nerror: {dead.text}\n")
                return True
            if not wait or waited_s > self._silence_s + self._beat_s:
                return False
            time.sleep(self._beat_s / 10)


def _has_said_its_end(beat: Beat | None) -> bool:
    return beat is not None and ENDED in beat.activity


def _is_lost_connection(error: BaseException) -> bool:
    words = ("connection", "gloo", "nccl")
    return isinstance(error, _LOST) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def _without_store(own: Beat, error: Unreachable) -> Diagnosis:
    where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
    why = f" ({error})" if str(error) else ""
    return Diagnosis(
        f"the job's key-value store at {where} on the main rank's host does not answer{why}: that host or its launcher "
        f"is gone, or the network to it is cut. {own.name} has been at {own.activity} for {own.idle_s:.0f} s",
        frozenset(),
    )


def _is_in(package: ModuleType, thread: int) -> bool:
    """Whether one of the innermost calls of the thread is of this package."""
    frame, folder = sys._current_frames().get(thread), str(Path(package.__file__ or "").parent)
    for _ in range(_INNERMOST):
        if frame is None:
            return False
        if frame.f_code.co_filename.startswith(folder):
            return True
        frame = frame.f_back
    return False


def _stack(thread: int | None) -> str:
    frame = sys._current_frames().get(thread or 0)
    return "".join(traceback.format_stack(frame)) if frame is not None else "  (it has ended)\n"


def _write(text: str) -> None:
    lines = [one_line(line) for line in text.split("\n")]
    os.write(2, "\n".join(lines).encode())  # not sys.stderr, whose lock the main thread may hold


@contextlib.contextmanager
def watching(limit_s: float | None, start_s: float = float("inf")) -> Iterator[Watchdog]:
    """Watches a command from its start until all ranks are done: no rank leaves before, so that none hangs unwatched."""
    with Watchdog(limit_s, peers_of_world(), start_s=start_s) as watchdog:
        yield watchdog
        watchdog.wait_for_all()
