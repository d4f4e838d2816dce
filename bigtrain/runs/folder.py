"""The run folder: paths of the files of one run, and a lock against two trainings in it."""

import fcntl
import os
from functools import partial
from pathlib import Path

from bigtrain.errors import UserError


class RunFolder:
    """Paths of the files of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.recipe = path / "recipe.yaml"
        self.environment = path / "environment.json"
        self.metrics = path / "metrics.jsonl"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"

    def samples(self, step: int) -> Path:
        return self.path / "samples" / f"step_{step:08d}.png"

    def evaluation(self, step: int) -> Path:
        return self.path / "evaluations" / f"step_{step:08d}.json"

    def make(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.path}: cannot create the run folder ({error.strerror}); choose another with run.dir=PATH"
            ) from error

    def lock(self) -> None:
        """Makes this process the only one that trains in this folder; the kernel releases the lock when the process ends."""
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
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
        # A worker process may outlive a killed trainer for seconds, and must not hold its lock.
        os.register_at_fork(after_in_child=partial(os.close, descriptor))
