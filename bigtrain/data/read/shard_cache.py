"""Shards of far-away indices on this machine: fetched once, shared by all ranks, workers and jobs, bounded.

A shard is a file named by the sha256 in its index, so equal contents are kept once whatever they are called, and a name
never stands for other contents. It is received beside (`SHA256.SIZE.part`), checked, and renamed: a name is there only
when the file is whole. Who receives holds a lock on the part; others wait for it instead of fetching a second time, and
go on where it stopped if it was killed. The least recently used shards are unlinked to make room: whoever has one open
reads on, and whoever needs it later fetches it again. So the folder may even be deleted under a running job.
"""

import contextlib
import errno
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from bigtrain.data.index import Index, Shard
from bigtrain.data.remote import receive, shown
from bigtrain.errors import UserError
from bigtrain.runs.atomic import cache_folder

GIB = 2**30
_PART = re.compile(r"[0-9a-f]{64}\.(?P<size>\d+)\.part")
_WHOLE = re.compile(r"[0-9a-f]{64}")
_OPENINGS = 100
"""A shard that vanishes this often between its arrival and its opening: the folder is being emptied without end."""


class ShardCache:
    """The cached shards of one index. Holds no descriptor and no lock between calls, so a fork may take it along."""

    def __init__(self, index: Index) -> None:
        options = index.origin.options
        self._index = index
        given = options.cache and Path(os.path.expandvars(options.cache)).expanduser()
        self.folder = given or cache_folder() / "shards"
        self.limit = int(options.cache_gib * GIB)

    def check_room(self, shuffle_shards: int) -> None:
        """Raises UserError if the folder may not hold what a stream with such windows reads side by side: two windows, for
        workers are not all at one place, and the shards that are fetched ahead."""
        sizes = sorted((s.size for n, s in enumerate(self._index.shards) if self._index.is_remote(n)), reverse=True)
        at_once = min(len(sizes), 2 * shuffle_shards + self._index.origin.options.prefetch_shards)
        needed = sum(sizes[:at_once])
        if needed > self.limit:
            raise UserError(
                f"data.remote.cache_gib: {self.limit / GIB:.3g} GiB do not hold the {at_once} shards of {self._index.where} "
                f"that are read side by side ({needed / GIB:.3g} GiB); raise it, or lower data.shuffle_shards or "
                "data.remote.prefetch_shards"
            )

    def open(self, number: int) -> int:
        """A descriptor of shard `number`, whole; fetches it if need be. Raises UserError where that cannot be done."""
        shard = self._index.shards[number]
        path = self.folder / shard.sha256
        for _ in range(_OPENINGS):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                if os.fstat(descriptor).st_size == shard.size:
                    with contextlib.suppress(OSError):  # another user's file, or a disk to read from: as good
                        os.utime(descriptor)  # the time of use, by which the oldest is told
                    return descriptor
                os.close(descriptor)  # no work of this module: a disk that lost data, or a stranger's hand
                path.unlink(missing_ok=True)
            self.fetch(number)
        raise UserError(f"{path}: vanishes as soon as it is there; give data.remote.cache another folder")

    def fetch(self, number: int, *, wait: bool = True) -> bool:
        """Sees to it that shard `number` is here. Without `wait`: unless another process is fetching it; False then."""
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
            os.utime(path)  # it will be used soon: not the one to remove now
            return True
        try:
            with self._part(shard, wait) as part:
                if part is None:
                    return False
                if not path.exists():
                    self._make_room(shard)
                    location, origin = self._index.location(number), self._index.origin
                    receive(location, part, origin, "the shard", size=shard.size, sha256=shard.sha256)
                    os.fsync(part.fileno())
                    self._rename(part, self._part_path(shard), path)
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
        """The shard's part, locked; None if another holds the lock and `wait` is not wanted."""
        path = self._part_path(shard)
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644), "r+b")
            except FileNotFoundError:  # the folder went away between these lines
                continue
            with file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                except BlockingIOError:
                    yield None
                    return
                if not _is_still(file, path):  # another has finished it, or it was evicted, while this one waited
                    if (self.folder / shard.sha256).exists():
                        yield file
                        return
                    continue
                try:
                    yield file
                finally:  # an empty one is worth nothing, but would be counted as if it were whole
                    if os.fstat(file.fileno()).st_size == 0 and _is_still(file, path):
                        path.unlink(missing_ok=True)
                    # A process that was forked meanwhile has the file open too: closing it here would leave it locked.
                    fcntl.flock(file, fcntl.LOCK_UN)
                return

    def _rename(self, part: IO[bytes], source: Path, target: Path) -> None:
        """Gives the part its name, unless it was deleted meanwhile: then `open` fetches it again."""
        with contextlib.suppress(FileNotFoundError):
            if _is_still(part, source):
                os.utime(part.fileno())
                source.rename(target)

    def _make_room(self, wanted: Shard) -> None:
        """Unlinks the shards that were not used for longest until the folder holds `wanted` besides the rest."""
        with contextlib.suppress(FileNotFoundError), open(self.folder / "lock", "ab") as lock:  # deleted: room enough
            fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                self._unlink_oldest(wanted)
            finally:  # not by closing it: a process that was forked meanwhile has it open too
                fcntl.flock(lock, fcntl.LOCK_UN)

    def _unlink_oldest(self, wanted: Shard) -> None:
        found = [entry for entry in os.scandir(self.folder) if entry.name != self._part_path(wanted).name]
        sizes = {entry.name: _counted(entry) for entry in found}
        total = sum(sizes.values()) + wanted.size
        for entry in sorted(found, key=_last_use):
            if total <= self.limit:
                return
            if sizes[entry.name] and _unlink_unless_locked(Path(entry.path)):
                total -= sizes[entry.name]


def _is_still(file: IO[bytes], path: Path) -> bool:
    """Whether the open file is what the name stands for."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _counted(entry: "os.DirEntry[str]") -> int:
    """Bytes that a file takes, or will when it is whole; 0 for what is none of this cache's."""
    if part := _PART.fullmatch(entry.name):
        return int(part["size"])
    try:
        return entry.stat().st_size if _WHOLE.fullmatch(entry.name) else 0
    except FileNotFoundError:
        return 0


def _last_use(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _unlink_unless_locked(path: Path) -> bool:
    """False for a part that someone is receiving."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return True
    except OSError:  # locked, or not ours to remove
        return False
    return True
