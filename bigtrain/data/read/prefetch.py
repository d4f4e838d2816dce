"""Fetching shards before they are needed: the order is a pure function, so what comes next is known."""

import contextlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from bigtrain.data.index import Index
from bigtrain.data.read.shard_cache import ShardCache

Order = Callable[[int], np.ndarray]
"""The sample numbers of an epoch in the order of their use, int64 [n]."""


class Prefetch:
    """Keeps the next data.remote.prefetch_shards shards coming, as the reader goes on. Does nothing for shards here.

    `epochs`: whether another epoch follows the first. The thread starts at the first `reach`, so a Prefetch may be handed
    to a worker process before.
    """

    def __init__(self, index: Index, order: Order, *, epochs: bool) -> None:
        self._ahead = index.origin.options.prefetch_shards if any(map(index.is_remote, range(len(index.shards)))) else 0
        self._cache, self._order, self._epochs = ShardCache(index), order, epochs
        self._ends = np.cumsum([shard.samples for shard in index.shards])
        self._uses: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._fetching: _Fetching | None = None

    def reach(self, epoch: int, place: int) -> None:
        """Says that sample `place` of the epoch's order comes next."""
        if self._ahead == 0:
            return
        wanted = self._after(epoch, place)
        if self._epochs and len(wanted) < self._ahead:
            wanted += self._after(epoch + 1, 0)
        if self._fetching is None:
            self._fetching = _Fetching(self._cache)
        self._fetching.want(wanted[: self._ahead])

    def _after(self, epoch: int, place: int) -> list[int]:
        """The shards whose first use is at `place` or after it, in the order of that use."""
        if epoch not in self._uses:
            self._uses = {known: uses for known, uses in self._uses.items() if known == epoch - 1}
            numbers = self._order(epoch)
            # A run that starts in the middle of an epoch needs anew what was used before as well.
            places, shards = first_uses(np.searchsorted(self._ends, numbers[place:], side="right"))
            self._uses[epoch] = (places + place, shards)
        places, shards = self._uses[epoch]
        begin = int(np.searchsorted(places, place))
        return list(map(int, shards[begin : begin + self._ahead]))


def first_uses(shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, shards): each different value of `shards` [n] and where it comes first, in the order of the places."""
    found, places = np.unique(shards, return_index=True)
    by_place = np.argsort(places)
    return places[by_place], found[by_place]


class _Fetching:
    """Fetches the shards that are wanted, in a thread that ends when they are here.

    All ranks and workers of a node want nearly the same shards next; each takes the first that nobody is fetching, so
    their threads together fetch several at once, and none twice.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._wanted: tuple[int, ...] = ()
        self._left: list[int] = []
        self._working = False

    def want(self, numbers: Sequence[int]) -> None:
        """From now on these shards, the first first; what was wanted before is forgotten."""
        with self._lock:
            if tuple(numbers) == self._wanted:
                return
            self._wanted, self._left = tuple(numbers), list(numbers)
            if self._working:
                return
            self._working = True
        threading.Thread(target=self._work, name="prefetch of shards", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._left:
                    self._working = False
                    return
                number = self._left.pop(0)
            # Whoever needs the shard will meet the same trouble, and is there to hear of it; the rest is still wanted.
            with contextlib.suppress(Exception):
                self._cache.fetch(number, wait=False)
