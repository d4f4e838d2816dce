"""What the ranks of a job tell each other beside their work: beats, failures and the verdict on a hang, over a key-value store.

Beats are published every few seconds. Each rank watches the next one, the last one watches the first: so a thousand ranks are
watched at a cost that grows with their number only, and of the ranks that are silent at least one is missed by one that is not.
"""

import itertools
import json
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import NamedTuple, Protocol, TypeVar

import torch.distributed as dist

from bigtrain.cluster import world

T = TypeVar("T")
LEAVES = "leaves"
"""The last activity of a rank that ends as it should."""
ENDED = "ended with "
"""How the last activity of a rank begins that ends with an error."""
_CALL_S = 1800.0  # the store's own limit; whoever calls has a shorter one


class Store(Protocol):
    """The methods of torch.distributed's key-value stores that are used here."""

    def set(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def multi_get(self, keys: list[str]) -> list[bytes]: ...
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
    """Seconds since its last mark or other sign of life."""
    limit_s: float
    """How long its current activity may last without one."""
    waits: bool = False
    """Whether it is in a call of torch.distributed, and so waits for another."""
    alone: bool = False
    """Whether it works without waiting for any other rank: if it then takes too long, the fault is its own."""

    @property
    def name(self) -> str:
        return f"rank {self.rank} (process {self.process} on {self.host})"

    @property
    def left(self) -> bool:
        return self.activity.endswith(LEAVES)

    @property
    def overdue(self) -> bool:
        return self.idle_s >= self.limit_s


class Diagnosis(NamedTuple):
    """The ranks that hang, and a text that says so."""

    text: str
    ranks: frozenset[int]


class News(NamedTuple):
    """What a rank asks for with every beat."""

    verdict: Diagnosis | None
    """On which all ranks end."""
    neighbour: Beat | None
    """The beat of the rank that this one watches."""


class Unreachable(Exception):
    """The key-value store does not answer."""


class Peers:
    """The other ranks, over a store connection that nothing else uses.

    Calls run on their own thread, because a call over a network that has been cut never returns. All but `publish` raise
    Unreachable.
    """

    def __init__(self, store: Store, rank: int, size: int, node: str = "0", prefix: str = "watchdog") -> None:
        """`node`: whose ranks share an output; `prefix`: of the keys."""
        self.rank, self.size = rank, size
        self._store, self._node, self._prefix = store, node, prefix
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

    def _result(self, call: Callable[[], T], timeout_s: float) -> T:
        try:
            return self._submit(call).result(timeout_s)
        except Exception as error:
            raise Unreachable(str(error)) from error

    def _key(self, *words: object) -> str:
        return "/".join([self._prefix, *map(str, words)])

    def close(self) -> None:
        """Ends the thread, after the calls that are under way."""
        self._calls.put(None)

    def publish(self, beat: Beat) -> "Future[None]":
        """Sends this rank's beat, unless the one before it is still on its way."""
        if self._published is None or self._published.done():
            text = json.dumps(asdict(beat))
            self._published = self._submit(lambda: self._store.set(self._key("beat", self.rank), text))
        return self._published

    def read(self, timeout_s: float) -> list[Beat | None]:
        """All ranks' beats, by rank; None for one that has published none."""

        def beats() -> list[Beat | None]:
            keys = [self._key("beat", rank) for rank in range(self.size)]
            if self._store.check(keys):
                return [Beat(**json.loads(text)) for text in self._store.multi_get(keys)]
            return [self._beat(rank) for rank in range(self.size)]

        return self._result(beats, timeout_s)

    def _beat(self, rank: int) -> Beat | None:
        text = self._found("beat", rank)
        return Beat(**json.loads(text)) if text is not None else None

    def _found(self, *words: object) -> bytes | None:
        key = self._key(*words)
        return self._store.get(key) if self._store.check([key]) else None

    def news(self, timeout_s: float) -> News:
        """The verdict if there is one, and the beat of the rank that this one watches."""
        return self._result(lambda: News(self._verdict(), self._beat((self.rank + 1) % self.size)), timeout_s)

    def _verdict(self) -> Diagnosis | None:
        text = self._found("verdict")
        if text is None:
            return None
        verdict = json.loads(text)
        return Diagnosis(verdict["text"], frozenset(verdict["ranks"]))

    def agree(self, diagnosis: Diagnosis, timeout_s: float) -> Diagnosis:
        """Makes this the verdict, unless another rank's is it already; returns the verdict. (If the other one has died before
        it could say its own, this one's.)"""

        def post() -> bool:
            first = self._store.add(self._key("verdicts"), 1) == 1
            if first:
                text = json.dumps({"text": diagnosis.text, "ranks": sorted(diagnosis.ranks)})
                self._store.set(self._key("verdict"), text)
            return first

        try:
            if self._result(post, timeout_s):
                return diagnosis
            return self._result(self._verdict, timeout_s) or diagnosis
        except Unreachable:
            return diagnosis

    def claim_output(self, timeout_s: float) -> bool:
        """Whether this rank prints the verdict for its node; True if the store does not answer."""
        try:
            return self._result(lambda: self._store.add(self._key("speaker", self._node), 1) == 1, timeout_s)
        except Unreachable:
            return True

    def claim_failure(self, timeout_s: float) -> bool:
        """Whether this rank is the first to report a failure: its own, or the death of another; True if the store does not
        answer."""
        try:
            return self._result(lambda: self._store.add(self._key("failures"), 1) == 1, timeout_s)
        except Unreachable:
            return True

    def has_failed(self, timeout_s: float) -> bool:
        """Whether a rank has reported a failure, or a verdict is given: then somebody says why the job ends."""
        return self._result(
            lambda: any(self._store.check([self._key(word)]) for word in ("failures", "verdict")), timeout_s
        )


_NUMBERS = itertools.count()


def peers_of_world() -> Peers | None:
    """This job's ranks, or None for a single rank. All ranks call it equally often, since each call has keys of its own."""
    number = next(_NUMBERS)
    if world.size() == 1:
        return None
    store = dist.distributed_c10d._get_default_store().clone()  # its own connection: the other one may be blocked
    store.set_timeout(timedelta(seconds=_CALL_S))
    return Peers(store, world.rank(), world.size(), os.environ.get("GROUP_RANK", "0"), f"watchdog/{number}")
