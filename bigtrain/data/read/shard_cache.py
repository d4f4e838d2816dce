"""The local cache of shards at URLs: each is fetched once for all ranks, workers and jobs; its size is bounded.

A shard's file is named by the sha256 in its index, or by its outline (data.tars) where the index has none, so equal contents
are kept once whatever they are called, and a name never means other contents. It is received as `SHA256.SIZE.part`, checked,
and renamed, so a name exists only when the file is complete. The receiving process holds a lock on the part; others wait for it
instead of fetching again, and continue the part if that process was killed. The least recently used shards are unlinked to make
room on the disk: a process that has one open reads on, and one that needs it later fetches it again. So the folder may even be
deleted while a job runs.
"""

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bigtrain.data.index import Index
from bigtrain.data.read.file_hashes import FileHashes, identity_of
from bigtrain.data.remote import receive, sha256_of, shown
from bigtrain.data.shard import Shard
from bigtrain.data.tars import outline_of
from bigtrain.errors import UserError
from bigtrain.runs.atomic import cache_folder

GIB = 2**30
_PART = re.compile(r"[0-9a-f]{64}\.(?P<size>\d+)\.part")
_COMPLETE = re.compile(r"[0-9a-f]{64}")
_MAX_ATTEMPTS = 100
"""How often a shard may vanish between its arrival and its opening before we give up: something keeps emptying the folder."""


class ShardCache:
    """The cached shards of one index. Holds no descriptor and no lock between calls, so it survives a fork."""

    def __init__(self, index: Index) -> None:
        options = index.origin.options
        self._index = index
        given = options.cache and Path(os.path.expandvars(options.cache))
        self.folder = given or cache_folder() / "shards"
        self.limit = int(options.cache_gib * GIB)

    def check_room(self, shuffle_shards: int) -> None:
        """Raises UserError if the cache's limit is below what a stream reads at the same time: two groups of `shuffle_shards`
        shards, because workers are not all at the same position, and the shards that are fetched ahead."""
        sizes = sorted((s.size for n, s in enumerate(self._index.shards) if self._index.is_remote(n)), reverse=True)
        count = min(len(sizes), 2 * shuffle_shards + self._index.origin.options.prefetch_shards)
        needed = sum(sizes[:count])
        if needed > self.limit:
            raise UserError(
                f"data.remote.cache_gib: {self.limit / GIB:.3g} GiB do not hold the {count} shards of {self._index.where} "
                f"that are read at the same time ({needed / GIB:.3g} GiB); raise it, or lower data.shuffle_shards or "
                "data.remote.prefetch_shards"
            )

    def open(self, number: int) -> int:
        """A descriptor of shard `number`, fetched first if it is not cached. Raises UserError if it cannot be fetched."""
        shard = self._index.shards[number]
        path = self.folder / shard.sha256
        for _ in range(_MAX_ATTEMPTS):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(descriptor).st_size == shard.size:
                    with contextlib.suppress(OSError):  # another user's file, or a read-only disk
                        _note_use(descriptor)
                    return descriptor
                os.close(descriptor)  # truncated from outside: the disk lost data, or another program wrote the file
                path.unlink(missing_ok=True)
            self.fetch(number)
        raise UserError(f"{path}: is deleted as soon as it is fetched; give data.remote.cache another folder")

    def fetch(self, number: int, *, wait: bool = True) -> bool:
        """Fetches shard `number` unless it is cached. Returns False, without `wait`, if another process is fetching it."""
        shard = self._index.shards[number]
        path = self.folder / shard.sha256
        if shard.size > self.limit:
            raise UserError(
                f"data.remote.cache_gib: {self.limit / GIB:.3g} GiB do not hold {shown(self._index.location(number))} "
                f"({shard.size / GIB:.3g} GiB); raise it"
            )
        if "$" in str(self.folder):
            raise UserError(
                f"data.remote.cache: {self.folder}: this variable is not set here; set it, or name a folder"
            )
        with contextlib.suppress(OSError):
            _note_use(path)  # soon, so it should not be evicted now
            return True
        try:
            with self._part(shard, wait) as part:
                if part is None:
                    return False
                if not path.exists():
                    self._make_room(shard)
                    location, origin = self._index.location(number), self._index.origin
                    sha256 = None if shard.outlined else shard.sha256
                    receive(location, part, origin, "the shard", size=shard.size, sha256=sha256)
                    if shard.outlined:
                        self._check_outline(part, shard, shown(location))
                    os.fsync(part.fileno())
                    self._rename(part, shard, path)
                return True
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free some space, lower data.remote.cache_gib, or" if full else "make it writable, or"
            raise UserError(
                f"{self.folder}: the cache of shards cannot be written: {error.strerror}; {remedy} choose another folder "
                "with data.remote.cache=PATH"
            ) from None

    def _part_path(self, shard: Shard) -> Path:
        return self.folder / f"{shard.sha256}.{shard.size}.part"

    @contextlib.contextmanager
    def _part(self, shard: Shard, wait: bool) -> Iterator[IO[bytes] | None]:
        """The shard's part file, locked; None if another process holds the lock and `wait` is false."""
        path = self._part_path(shard)
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666), "r+b")
            except FileNotFoundError:  # the folder was deleted between these lines
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield None
                    return
                if not _is_still(file, path):  # it was finished by another process, or evicted, while this one waited
                    if (self.folder / shard.sha256).exists():
                        yield file
                        return
                    continue
                try:
                    yield file
                finally:  # an empty part holds nothing, but would count with its full size
                    if os.fstat(file.fileno()).st_size == 0 and _is_still(file, path):
                        path.unlink(missing_ok=True)
                    # Closing is not enough: a process that was forked meanwhile has the file open too, and would keep the lock.
                    fcntl.flock(file, fcntl.LOCK_UN)
                return

    def _check_outline(self, part: IO[bytes], shard: Shard, location: str) -> None:
        """Raises UserError unless a shard, of which the index has no sha256, has the outline that the index says."""
        try:
            found = outline_of(location, part)
        except UserError:
            found = "none"
        if found != shard.sha256:
            part.truncate(0)
            raise UserError(
                f"{location}: the shard is not the one that {self._index.where} was made from (other members, or contents): "
                "it was replaced; make the index again, and train in another folder"
            )

    def _rename(self, part: IO[bytes], shard: Shard, target: Path) -> None:
        """Renames the complete part, unless it was deleted meanwhile: then `open` fetches it again."""
        source = self._part_path(shard)
        with contextlib.suppress(FileNotFoundError):
            if _is_still(part, source):
                sha256 = sha256_of(part) if shard.outlined else shard.sha256  # others were measured when they came
                _note_use(part.fileno())
                source.rename(target)
                FileHashes().remember(identity_of(os.stat(target), is_cached=True), sha256)

    def _make_room(self, wanted: Shard) -> None:
        """Unlinks the least recently used shards until `wanted` fits into the limit with the rest."""
        with contextlib.suppress(FileNotFoundError), open(self.folder / "lock", "ab") as lock:  # folder deleted: empty
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._unlink_oldest(wanted)
            finally:  # closing is not enough: a process that was forked meanwhile has the file open too
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _unlink_oldest(self, wanted: Shard) -> None:
        entries = [entry for entry in os.scandir(self.folder) if entry.name != self._part_path(wanted).name]
        sizes = {entry.name: _size_of(entry) for entry in entries}
        total = sum(sizes.values()) + wanted.size
        for entry in sorted(entries, key=_last_use):
            if total <= self.limit:
                return
            if sizes[entry.name] and _unlink_unless_locked(Path(entry.path)):
                total -= sizes[entry.name]


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _size_of(entry: "os.DirEntry[str]") -> int:
    """Bytes that a shard takes, or a part will take when it is complete; 0 for files that are not this cache's."""
    if part := _PART.fullmatch(entry.name):
        return int(part["size"])
    try:
        return entry.stat().st_size if _COMPLETE.fullmatch(entry.name) else 0
    except FileNotFoundError:
        return 0


def _note_use(file: int | Path) -> None:
    """Sets the time of use, by which shards are evicted: that of access, because that of the content says whether it is still
    the one that was verified."""
    os.utime(file, ns=(time.time_ns(), os.stat(file).st_mtime_ns))


def _last_use(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_atime_ns
    except FileNotFoundError:
        return 0


def _unlink_unless_locked(path: Path) -> bool:
    """Returns False for a part that another process is receiving."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:  # locked, or not ours to remove
        return False
    return True
