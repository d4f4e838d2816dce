"""The process of one tracker: reads the rows, pictures and evaluations of a run folder as they come, and hands them to it.

RUN/trackers/NAME.json says up to which step the tracker has them, so that each is handed over once however often the run is
killed and resumed, and what could not be handed over is when the run goes on. Started by separate.py.
"""

import fcntl
import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from bigtrain.recipe_yaml import MOST_BYTES, parse
from bigtrain.runs import atomic
from bigtrain.signals import ENDING
from bigtrain.training.monitoring.trackers.services import Service, service_of
from bigtrain.untrusted import read_json, read_plain

POLL_S, LONGEST_PAUSE_S = 1.0, 60.0
NICENESS = 10
"""At least: where training has it already, more would leave the tracker next to no time on a busy machine."""
HANG_S = 120.0
"""A call of the tracker's that takes longer is warned of."""
AFTER_DEATH_S = 60
"""How long it may go on when the process that trains has died."""
LAST_CALL_S = 3.0
"""How much longer the call that is under way then, so that it is recorded that the tracker has what it was given."""


@dataclass(frozen=True)
class Job:
    """What separate.py asks for. `parent`: the process that trains."""

    tracker: str
    folder: str
    run: str
    title: str
    parent: int


@dataclass(frozen=True)
class Sent:
    """The last step of which the tracker has the row, the picture and the evaluation; -1: none."""

    run: str
    row: int = -1
    picture: int = -1
    evaluation: int = -1

    def up_to(self, kind: str, step: int) -> "Sent":
        return Sent(**{**asdict(self), kind: step})

    @classmethod
    def read(cls, path: Path, run: str) -> "Sent":
        """Of another run than this one, or of a damaged file: nothing."""
        try:
            known = cls(**read_json(path))
        except (OSError, ValueError, TypeError):
            return cls(run)
        steps = (known.row, known.picture, known.evaluation)
        return known if known.run == run and all(type(step) is int for step in steps) else cls(run)


class Rows:
    """The whole lines of metrics.jsonl that are new; a resumed run writes the file anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._identity: tuple[int, int] | None = None
        self._offset = 0

    def new(self) -> Iterator[dict[str, Any]]:
        try:
            status = self._path.stat()
        except OSError:
            return
        if self._identity != (status.st_dev, status.st_ino):
            self._identity, self._offset = (status.st_dev, status.st_ino), 0
        with self._path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._offset += len(line)
                try:
                    row = json.loads(line)
                except ValueError:
                    continue
                if isinstance(row, dict) and type(row.get("step")) is int and "warning" not in row:
                    yield row


class Following:
    """Hands over what is new, in the order of steps."""

    def __init__(self, job: Job, service: Service, calls: "Calls") -> None:
        self._folder, self._service, self._calls = Path(job.folder), service, calls
        self._record = self._folder / "trackers" / f"{job.tracker}.json"
        self._sent = Sent.read(self._record, job.run)
        self._rows = Rows(self._folder / "metrics.jsonl")
        self._waiting: list[tuple[int, str, Any]] = []
        self._seen = self._sent

    def hand_over(self) -> None:
        """Raises what the tracker raises; what it did not take is handed over by the next call."""
        self._collect()
        while self._waiting:
            step, kind, content = self._waiting[0]
            with self._calls.call(f"the {kind} of step {step}"):
                self._give(step, kind, content)
                self._waiting.pop(0)
                self._sent = self._sent.up_to(kind, step)
                atomic.write_json(self._record, asdict(self._sent))

    def _give(self, step: int, kind: str, content: Any) -> None:
        if kind == "row":
            self._service.scalars(step, content)
        elif kind == "picture":
            self._service.picture(step, content)
        else:
            values = read_json(content)
            self._service.scalars(step, {f"evaluation/{name}": v for name, v in values.items() if isinstance(v, float)})

    def _collect(self) -> None:
        for row in self._rows.new():
            if row["step"] > self._seen.row:
                self._seen = self._seen.up_to("row", row["step"])
                scalars = {name: value for name, value in row.items() if "/" in name and _is_number(value)}
                self._waiting.append((row["step"], "row", scalars))
        # After the rows: what is older than a row that was read is in the folder by now.
        for kind, folder, ending in (("picture", "samples", "png"), ("evaluation", "evaluations", "json")):
            last = getattr(self._seen, kind)
            for path in sorted((self._folder / folder).glob(f"step_*.{ending}")):
                step = path.stem.removeprefix("step_")
                if step.isdecimal() and int(step) > last:
                    self._seen = self._seen.up_to(kind, int(step))
                    self._waiting.append((int(step), kind, path))
        self._waiting.sort(key=lambda event: (event[0], ("row", "picture", "evaluation").index(event[1])))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Calls:
    """Watches, in a thread, the calls of the tracker's and the process that trains; ends this process when its time is up."""

    def __init__(self, parent: int, messages: int) -> None:
        self._parent, self._messages = parent, messages
        self._call: tuple[str, float] | None = None
        self._under_way = threading.Lock()
        self.ended = threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def say(self, text: str) -> None:
        """A line for the run's warnings."""
        with suppress(OSError):  # the run may be gone
            os.write(self._messages, " ".join(text.split()).encode()[:400] + b"\n")

    @contextmanager
    def call(self, what: str) -> Iterator[None]:
        with self._under_way:
            self._call = (what, time.monotonic())
            try:
                yield
            finally:
                self._call = None

    def _watch(self) -> None:
        told, deadline, seconds = None, float("inf"), AFTER_DEATH_S
        while time.monotonic() < deadline:
            ready, _, _ = select.select([0] if deadline == float("inf") else [], [], [], 0.5)
            call = self._call
            if call is not None and call is not told and time.monotonic() - call[1] > HANG_S:
                told = call
                self.say(f"hangs in {call[0]}; the training goes on, and metrics.jsonl has everything")
            if deadline == float("inf") and (ready or os.getppid() != self._parent):
                told_seconds = os.read(0, 64).strip() if ready else b""  # nothing is read where its writer is gone
                seconds = int(told_seconds) if told_seconds.isdigit() else AFTER_DEATH_S
                deadline = time.monotonic() + seconds
                self.ended.set()
        self._under_way.acquire(timeout=LAST_CALL_S)
        self.say(f"has not taken everything within {seconds} s; it is given the rest when the same command runs again")
        os._exit(0)


def follow(job: Job, service: Service, calls: Calls) -> None:
    """Until the run has ended. What the tracker cannot do is tried again, ever less often."""
    pause, failing, opened = POLL_S, False, False
    following = Following(job, service, calls)
    while True:
        ending = calls.ended.is_set()
        try:
            if not opened:
                with calls.call("its start"):
                    service.open(_flat(_recipe(Path(job.folder))))
                opened = True
            following.hand_over()
            pause, failing = POLL_S, False
            if ending:
                with calls.call("its end"):
                    service.close()
                return
        except Exception as error:  # a tracker may raise anything, and must not end what others follow
            if not failing:
                calls.say(f"{type(error).__name__}: {error}; it is tried again, and metrics.jsonl has everything")
            failing, pause = True, min(2 * pause, LONGEST_PAUSE_S)
            if ending:
                return
        calls.ended.wait(pause)


def _recipe(folder: Path) -> Any:
    return parse(read_plain(folder / "recipe.yaml", MOST_BYTES).decode())


def _flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """By dotted key, as trackers take configurations."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str | int | float | None) else json.dumps(value)
    return flat


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    messages = os.dup(1)
    os.dup2(2, 1)  # what the tracker prints goes into its log
    os.setpriority(os.PRIO_PROCESS, 0, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
    PartialState(cpu=True)  # without it Accelerate's trackers raise when they log
    # They are meant for the run, which then says that it ends.
    for number in (signal.SIGINT, *ENDING):
        signal.signal(number, signal.SIG_IGN)
    calls = Calls(job.parent, messages)
    with (Path(job.folder) / "trackers" / f"{job.tracker}.lock").open("w") as lock:
        while not _locked(lock.fileno()):  # the process of a run that was killed hands over its last rows
            if calls.ended.wait(POLL_S):
                return
        follow(job, service_of(job.tracker, Path(job.folder), job.run, job.title), calls)
    os._exit(0)  # threads of the tracker's may go on for ever


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


if __name__ == "__main__":
    main()
