"""Fetches shards before they are needed: the order is a pure function, so the next shards are known."""

import contextlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from bigtrain.data.index import Index
from bigtrain.data.read.shard_cache import ShardCache

Order = Callable[[int], np.ndarray]
"""The sample numbers of an epoch in the order of their use, int64 [n]."""


class Prefetch:
    """Fetches the next data.remote.prefetch_shards shards in the background while the reader advances; none for local shards.

    `epochs`: whether another epoch follows the first. The thread starts at the first `reach`, so a Prefetch may be passed to a
    worker process before that.
    """

    def __init__(self, index: Index, order: Order, *, epochs: bool) -> None:
        self._ahead = index.origin.options.prefetch_shards if any(map(index.is_remote, range(len(index.shards)))) else 0
        self._cache, self._order, self._epochs = ShardCache(index), order, epochs
        self._ends = np.cumsum([shard.samples for shard in index.shards])
        self._uses: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._fetching: _Fetching | None = None

    def reach(self, epoch: int, position: int) -> None:
        """Tells that the sample at `position` of the epoch's order is read next."""
        if self._ahead == 0:
            return
        wanted = self._after(epoch, position)
        if self._epochs and len(wanted) < self._ahead:
            wanted += self._after(epoch + 1, 0)
        if self._fetching is None:
            self._fetching = _Fetching(self._cache)
        self._fetching.want(wanted[: self._ahead])

    def _after(self, epoch: int, position: int) -> list[int]:
        """The next shards whose first use is at `position` or later, in the order of use."""
        if epoch not in self._uses:
            self._uses = {known: uses for known, uses in self._uses.items() if known == epoch - 1}
            numbers = self._order(epoch)
            # Uses before `position` do not count: a run that starts in the middle of an epoch has none of those shards yet.
            positions, shards = first_uses(np.searchsorted(self._ends, numbers[position:], side="right"))
            self._uses[epoch] = (positions + position, shards)
        positions, shards = self._uses[epoch]
        begin = int(np.searchsorted(positions, position))
        return list(map(int, shards[begin : begin + self._ahead]))


def first_uses(shards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(positions, shards): the distinct values of `shards` [n] and the position of each one's first use, in order of use."""
    values, positions = np.unique(shards, return_index=True)
    order = np.argsort(positions)
    return positions[order], values[order]


class _Fetching:
    """Fetches the wanted shards in a thread, which ends when it has gone through them.

    All ranks and workers of a node want nearly the same shards next; each skips those that another process is fetching, so
    together they fetch several shards at once, and none twice.
    """

    def __init__(self, cache: ShardCache) -> None:
        self._cache = cache
        self._lock = threading.Lock()
        self._wanted: tuple[int, ...] = ()
        self._remaining: list[int] = []
        self._working = False

    def want(self, numbers: Sequence[int]) -> None:
        """Replaces the list of wanted shards, which are fetched in this order."""
        with self._lock:
            if tuple(numbers) == self._wanted:
                return
            self._wanted, self._remaining = tuple(numbers), list(numbers)
            if self._working:
                return
            self._working = True
        threading.Thread(target=self._work, name="prefetch of shards", daemon=True).start()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._remaining:
                    self._working = False
                    return
                number = self._remaining.pop(0)
            # The reader that needs this shard will meet the same error and report it; the other shards are still wanted.
            with contextlib.suppress(Exception):
                self._cache.fetch(number, wait=False)
