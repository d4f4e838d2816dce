"""The run folder: where everything of one run lies, and who may write to it."""

import fcntl
import os
from functools import partial
from pathlib import Path

from bigtrain.errors import UserError


class RunFolder:
    """Names of the files of one run (HOUSE: run folder)."""

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
                f"{self.path}: cannot make the run folder ({error.strerror}); choose another with run.dir=PATH"
            ) from error

    def lock(self) -> None:
        """Makes this process the only one that trains in this folder; the kernel drops the lock with the process."""
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if not isinstance(error, BlockingIOError):  # a Lustre that is mounted without -o flock, say
                raise UserError(
                    f"{self.path}: its file system cannot lock files ({error.strerror}), without which two trainings could "
                    "write here at once; mount it with locks, or choose a folder elsewhere with run.dir=PATH"
                ) from error
            raise UserError(
                f"{self.path}: another process is training in this run folder; wait for it, or choose another with "
                "run.dir=PATH"
            ) from error
        # A worker process that outlives a killed trainer for seconds must not hold its lock.
        os.register_at_fork(after_in_child=partial(os.close, descriptor))
