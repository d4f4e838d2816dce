"""The run folder: paths of the files of one run, whose it is, and a lock against two trainings in it."""

import fcntl
import os
import stat
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from bigtrain.errors import UserError
from bigtrain.runs import atomic, checkpoint
from bigtrain.untrusted import read_json

LOCK = ".lock"
_FILES = {"recipe.yaml", "environment.json", "metrics.jsonl", LOCK}
_FOLDERS = {"averages", "checkpoints", "codes", "evaluations", "profile", "samples", "slurm", "tensorboard", "trackers"}
"""What a run folder has of its own, `codes` by the README's advice."""
RUN = "run"
"""The key of environment.json, and of a checkpoint's state, that holds the run's id."""
STARTS = "starts"
"""The key of environment.json that lists at which step the run was started and started again, and when."""
_MOST_STARTS = 1000
"""That are kept: the newest."""
DIRECTORY = "directory"
"""The key of environment.json that holds the folder from which the run was started, and which relative paths begin at."""


class RunFolder:
    """Paths of the files of one run. `run`: its id, and `recipe_yaml`: what it is trained with, once a process has claimed the
    folder to train in it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.averages = path / "averages"
        self.tensorboard = path / "tensorboard"
        self.run: str | None = None
        self.recipe_yaml: bytes | None = None
        self._identity: tuple[int, int] | None = None
        self._locked: tuple[int, int] | None = None
        """Device and inode of the lock that this process holds."""
        self._locking = threading.Lock()  # checkpoints are written by a thread of their own

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:08d}.png"

    @property
    def moving_picture(self) -> Path:
        """The pictures of the run, one after the other."""
        return self.path / "samples" / "run.gif"

    def evaluation(self, step: int) -> Path:
        return self.path / "evaluations" / f"step_{step:08d}.json"

    def evaluations_until(self, step: int) -> list[Path]:
        """The files of the evaluations that training made up to a step, in ascending order."""
        found = sorted((self.path / "evaluations").glob(f"step_{'[0-9]' * 8}.json"))
        return [path for path in found if path <= self.evaluation(step)]

    def has_results(self) -> bool:
        """Whether there are pictures or evaluations."""
        return any(any((self.path / name).glob("step_*")) for name in ("samples", "evaluations"))

    def record_start(self, step: int) -> None:
        """Adds to environment.json at which step a training begins or goes on, and when. Raises UserError."""
        self.check()
        recorded = self._recorded()
        if recorded is not None:
            now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
            starts = [*starts_in(recorded), {"step": step, "when": now}]
            try:
                atomic.write_json(self.environment, recorded | {STARTS: starts[-_MOST_STARTS:]})
            except OSError as error:
                raise UserError(f"{self.environment}: cannot be written ({error.strerror})") from error

    # -- claiming ---------------------------------------------------------------------------------------------------

    def claim(self, recipe_yaml: bytes) -> None:
        """Makes the folder or takes over what is there, and makes this process the only one that trains in it.

        The lock is the one act that decides: whatever a killed process left behind is taken over, and its temporary files are
        removed. Nothing is written before it is clear that the folder is a run's: raises UserError for a folder with files of
        somebody's own, for links within it, through which a run would write and delete elsewhere, and for a damaged best.json.
        The id is that of the run whose checkpoints are here, or a new one.
        """
        self._make()
        self._check_entries(self._foreign())
        self.lock()
        for folder in (self.path, self.checkpoints, self.averages, self.path / "samples", self.path / "evaluations"):
            atomic.remove_leftovers(folder)
        self.checkpoints.mkdir(exist_ok=True)
        checkpoint.read_best(self.checkpoints)
        self.recipe_yaml = recipe_yaml
        self.run = self._id_of_checkpoints() or uuid.uuid4().hex
        self._identity = _identity(self.path)

    def check_claimable(self, *, with_runs_inside: bool = False) -> None:
        """Raises UserError if `claim` would because of what the folder holds; makes and writes nothing.

        `with_runs_inside`: it is not trained in, and may hold the folders of runs, as that of a sweep does.
        """
        if self.path.is_dir():
            foreign = self._foreign()
            if with_runs_inside:
                foreign = [name for name in foreign if not RunFolder(self.path / name)._was_claimed()]
            self._check_entries(foreign)
        elif os.path.lexists(self.path):
            raise UserError(f"{self.path}: is a file, and no folder for a run; choose another with run.dir=PATH")

    def check(self) -> None:
        """Raises UserError if the path is no longer the folder that was claimed, or if another process trains there because
        the lock was deleted; nothing may be written there then. A lock that was deleted, and that no other has taken, is taken
        again."""
        if self._identity is None:
            return
        if _identity(self.path) != self._identity:
            raise UserError(
                f"{self.path}: was moved or deleted while the run trained, so nothing more is written; put it back, or give "
                "where it is now as run.dir=PATH, and run the same command again: it goes on from the newest checkpoint"
            )
        with self._locking:
            if _identity(self.path / LOCK) != self._locked:
                try:
                    self.lock()
                except (UserError, OSError) as error:
                    raise UserError(
                        f"{self.path / LOCK}: was deleted while the run trained, and cannot be taken again, so nothing more is "
                        f"written ({error})"
                    ) from error

    def make_room(self, path: Path) -> None:
        """Makes the folder that a file of the run lies in, just before it is written. Raises UserError as `check` does, and for
        a link instead of the folder."""
        self.check()
        try:
            atomic.make_folder(path.parent)
        except OSError as error:
            raise UserError(f"{path.parent}: cannot be written ({error.strerror})") from error

    def _make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(
                f"{self.path}: cannot create the run folder ({reason}); choose another with run.dir=PATH"
            ) from error

    def _foreign(self) -> list[str]:
        """Names in the folder that no run and no death of one leaves."""
        names = sorted(os.listdir(self.path))
        foreign = [name for name in names if name not in _FOLDERS | _FILES and not atomic.is_leftover(name)]
        if self.recipe.name in names and LOCK not in names:  # no start of ours wrote it
            foreign.append(self.recipe.name)
        return foreign

    def _was_claimed(self) -> bool:
        return self.path.is_dir() and ((self.path / LOCK).is_file() or self._recorded() is not None)

    def _check_entries(self, foreign: Sequence[str]) -> None:
        """Raises UserError for a link or another kind of file where a run has its own, and for a folder that is no run's.
        `foreign`: names of what is somebody's own."""
        names = sorted(os.listdir(self.path))
        for name in names:
            if name in _FILES:
                self._check_kind(self.path / name, stat.S_ISREG, "a plain file")
            elif name in _FOLDERS:
                self._check_kind(self.path / name, stat.S_ISDIR, "a folder")
        for path in (*self.checkpoints.glob("*"), *self.averages.glob("*")):
            if path.name == checkpoint.BEST:
                self._check_kind(path, stat.S_ISREG, "a plain file")
            elif path.name.startswith("step_"):
                self._check_kind(path, stat.S_ISDIR, "a folder")
        for path in (self.path / "trackers").glob("*"):
            self._check_kind(path, stat.S_ISREG if path.suffix else stat.S_ISDIR, "a plain file or folder")
        if foreign and self._recorded() is None:
            raise UserError(
                f"{self.path}: is not a run folder: it holds {foreign[0]} and no environment.json of a run; choose another "
                "with run.dir=PATH, so that nothing there is overwritten"
            )

    def _check_kind(self, path: Path, is_kind: Callable[[int], bool], kind: str) -> None:
        if not is_kind(os.lstat(path).st_mode):
            raise UserError(
                f"{path}: is a link, or something else that is not {kind}, and a run writes and deletes there; remove it (the "
                "run folder itself may be a link), or choose another folder with run.dir=PATH"
            )

    def _recorded(self) -> dict[str, Any] | None:
        """What environment.json says; None if there is none that a run wrote."""
        try:
            content = read_json(self.environment)
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) and "versions" in content else None

    def _id_of_checkpoints(self) -> str | None:
        """The id of the run whose checkpoints are here; None if there are none, or if they are older than ids.

        Raises UserError if they are of several runs, or of another one than environment.json says.
        """
        recorded = (self._recorded() or {}).get(RUN)
        known = str(recorded) if recorded is not None else None
        paths = checkpoint.listed(self.checkpoints)
        for path in paths:
            own = checkpoint.run_of(path)
            if own is not None and known is not None and own != known:
                raise UserError(
                    f"{path}: is a checkpoint of another run ({own}) than the others here ({known}); move it into a folder of "
                    "its own, or choose another folder with run.dir=PATH"
                )
            known = known or own
        return known if paths else None

    def lock(self) -> None:
        """Makes this process the only one that trains in this folder; the kernel releases the lock when the process ends.

        The lock counts if it is still the file at its path: one that is deleted meanwhile would keep nobody out.
        """
        descriptor, held = self._lock_file()
        if _identity(self.path / LOCK) != held:
            os.close(descriptor)
            raise UserError(f"{self.path / LOCK}: was deleted as this process took it; run the same command again")
        self._locked = held
        # A worker process may outlive a killed trainer for seconds, and must not hold its lock.
        os.register_at_fork(after_in_child=partial(os.close, descriptor))

    def _lock_file(self) -> tuple[int, tuple[int, int]]:
        """The descriptor of the file at the lock's path, which this process has locked, and its device and inode."""
        descriptor = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):  # Lustre mounted without -o flock, for example
                raise UserError(
                    f"{self.path}: its file system cannot lock files ({error.strerror}), so two trainings could write here "
                    "at once; mount it with locks, or choose a folder elsewhere with run.dir=PATH"
                ) from error
            raise UserError(
                f"{self.path}: another process is training in this run folder; wait for it, or choose another with "
                "run.dir=PATH"
            ) from error
        status = os.fstat(descriptor)
        return descriptor, (status.st_dev, status.st_ino)


def starts_in(recorded: Mapping[str, Any]) -> list[Any]:
    """What environment.json says of the starts of a run; empty for a run of an earlier version."""
    starts = recorded.get(STARTS)
    return starts if isinstance(starts, list) else []


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path; None if there is nothing."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
