"""Holds the shards that are read to the hashes in their index. A shard of the right size may still be another file: copied in
part, swapped, changed under its old name.

A process of the lowest priority measures the shards in the order of their use, while training goes on. Before a checkpoint is
written, `check` waits for those that the training has read since the last one, and finds out whether one was changed meanwhile.
A shard is read once on each node for this (file_hashes.py), whatever the number of runs; then its size, times and inode are
compared. A shard at a URL whose sha256 the index has not is held to its outline when it comes, and to what came from then on.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np

from bigtrain import beats
from bigtrain.data.index import Index
from bigtrain.data.read.file_hashes import FileHashes, Identity, identity_of
from bigtrain.data.read.order import Epochs
from bigtrain.data.read.shard_cache import ShardCache
from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar

SHOWN_BYTES = 2**30
"""A progress bar is shown for more than this."""
AHEAD_BYTES = 2**26
"""Shards of fewer bytes together are measured when `check` needs them: starting a process takes longer."""


class ShardVerification:
    """The verification of the shards of one index, on one node."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._cache = ShardCache(index)
        self._ahead: subprocess.Popen[str] | None = None
        self._begun: dict[int, Identity | None] = {}

    @cached_property
    def _hashes(self) -> FileHashes:
        return FileHashes()

    def begin(self, order: Iterable[int]) -> None:
        """Notes what the shards are now, and starts to measure those of which nothing is known, in this order."""
        unknown = []
        for number in order:
            if number not in self._begun:
                identity = self._begun[number] = self._identity(number)
                if identity is not None and self._hashes.known(identity) is None:
                    unknown.append(number)
        if sum(self.index.shards[number].size for number in unknown) >= AHEAD_BYTES:
            self._measure_ahead(unknown)

    def close(self) -> None:
        """Ends the process that measures."""
        if self._ahead is not None:
            self._ahead.kill()
            self._ahead.wait()
            self._ahead = None

    def check(self, numbers: Iterable[int]) -> None:
        """Waits until the shards `numbers` are measured, with signs of life.

        Raises UserError for one that does not hold what the index says, and for one that was replaced while it was read and
        before it was known.
        """
        numbers = list(numbers)
        unknown = [number for number in numbers if not self._is_known(number)]
        size = sum(self.index.shards[number].size for number in unknown)
        with ProgressBar(size, "verifying shards", "B", quiet=size < SHOWN_BYTES, unit_scale=True, leave=False) as bar:

            def on_bytes(count: int) -> None:
                bar.update(count)
                beats.beat()

            for number in numbers:
                self._check(number, on_bytes)

    def _check(self, number: int, pulse: Callable[[int], None]) -> None:
        shard, path = self.index.shards[number], self._path(number)
        try:
            identity, sha256 = self._measured(number, path, pulse)
        except OSError as error:
            if self.index.is_remote(number) and isinstance(error, FileNotFoundError):
                return  # evicted from the cache; it was checked when it came
            raise UserError(f"{path}: the shard cannot be read: {error.strerror}") from None
        begun = self._begun.get(number, identity)
        self._begun[number] = identity
        expected = sha256 if shard.outlined else shard.sha256  # an outline was compared when the shard came
        if sha256 != expected:
            raise UserError(
                f"{path}: the shard does not hold what {self.index.where} says (its sha256 is another, though its size is the "
                f"same): it was changed or replaced; {self._remedy(number)}"
            )
        if begun is not None and begun != identity and self._hashes.known(begun) != expected:
            raise UserError(
                f"{path}: the shard was replaced while it was read; run the same command again: it goes on from the newest "
                "checkpoint"
            )

    def _measured(self, number: int, path: str, pulse: Callable[[int], None]) -> tuple[Identity, str]:
        identity = self._identity_at(number)
        known = self._hashes.known(identity)
        return (
            (identity, known) if known is not None else self._hashes.measure(path, self.index.is_remote(number), pulse)
        )

    def _identity_at(self, number: int) -> Identity:
        return identity_of(os.stat(self._path(number)), self.index.is_remote(number))

    def _identity(self, number: int) -> Identity | None:
        """None for a shard that is not on this machine yet."""
        try:
            return self._identity_at(number)
        except OSError:
            return None

    def _is_known(self, number: int) -> bool:
        identity = self._identity(number)
        return identity is None or self._hashes.known(identity) is not None

    def _path(self, number: int) -> str:
        if self.index.is_remote(number):
            return str(self._cache.folder / self.index.shards[number].sha256)
        return self.index.location(number)

    def _remedy(self, number: int) -> str:
        if self.index.is_remote(number):
            return f"remove {self._path(number)}, and it is fetched again"
        return (
            f"copy it here again, or run {self.index.made_by} again, which replaces damaged shards; or, if it is meant to be "
            "so, make the index again and train in another folder"
        )

    def _measure_ahead(self, numbers: Sequence[int]) -> None:
        self._ahead = subprocess.Popen(
            [sys.executable, "-P", "-m", "bigtrain.data.read.file_hashes"],  # -P: not from the current folder
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert self._ahead.stdin is not None
        with contextlib.suppress(BrokenPipeError), self._ahead.stdin as names:
            names.writelines(
                f"{'cached' if self.index.is_remote(number) else 'kept'} {os.path.abspath(self._path(number))}\n"
                for number in numbers
            )


class StreamVerification:
    """The verification of what a stream reads from a position on."""

    def __init__(self, parts: Iterable[tuple[ShardVerification, Epochs]], position: int) -> None:
        self._parts = list(parts)
        self._position = position
        for shards, epochs in self._parts:
            shards.begin(_shards_between(shards.index, epochs, position, position + epochs.length))

    def check(self, position: int, everything: bool) -> None:
        """As `ShardVerification.check`, of the shards of the positions since the last call and before `position`, or of all of
        them."""
        for shards, epochs in self._parts:
            whole = everything or position - self._position >= epochs.length
            every = range(len(shards.index.shards))
            shards.check(every if whole else _shards_between(shards.index, epochs, self._position, position))
        self._position = position

    def close(self) -> None:
        for shards, _ in self._parts:
            shards.close()


def _shards_between(index: Index, epochs: Epochs, first: int, end: int) -> list[int]:
    """The shards of the samples at positions first .. end - 1, in the order of their first use."""
    return shards_of(index, epochs.numbers(first, end - first)) if first < end else []


def shards_of(index: Index, numbers: np.ndarray) -> list[int]:
    """The shards of samples `numbers`, int64 [n], in the order of their first use."""
    ends = np.cumsum([shard.samples for shard in index.shards])
    shards, positions = np.unique(np.searchsorted(ends, numbers, side="right"), return_index=True)
    return [int(shard) for shard in shards[np.argsort(positions)]]
