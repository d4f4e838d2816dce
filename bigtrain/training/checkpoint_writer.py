"""Writes checkpoints while training goes on: the trainer waits only for a copy in host memory."""

import threading
from collections.abc import Callable, Mapping
from typing import Any

from bigtrain import beats
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RunFolder
from bigtrain.training.engine.component import Groups


class CheckpointWriter:
    """Writes one checkpoint at a time, in a thread. Only for the main rank.

    A kill in the middle loses only the checkpoint that is being written (runs/checkpoint.py).
    """

    def __init__(self, folder: RunFolder, keep: int) -> None:
        self.folder, self.keep = folder, keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._beats = beats.Beats()

    def start(
        self,
        step: int,
        components: Mapping[str, Groups],
        state: Mapping[str, Any],
        flush: Callable[[], None] | None = None,
    ) -> None:
        """Starts writing, after waiting for the previous write, whose error it raises. The tensors must not change any more.
        `flush` is called first, in the same thread: it makes what the checkpoint counts on survive a power cut."""
        self.finish()
        self._beats = beats.Beats()
        self._thread = threading.Thread(
            target=self._write, args=(step, components, state, flush), daemon=True, name="checkpoint"
        )
        self._thread.start()

    def _write(
        self,
        step: int,
        components: Mapping[str, Groups],
        state: Mapping[str, Any],
        flush: Callable[[], None] | None,
    ) -> None:
        beats.use(self._beats)
        folder = self.folder.checkpoints
        try:
            with beats.work("writes a checkpoint"):
                self.folder.check()
                if flush is not None:
                    flush()
                checkpoint.write(folder, step, components, state, self.folder.recipe_yaml, self.folder.check)
                checkpoint.keep_newest(folder, step, self.keep)
        except BaseException as failure:
            self._failure = failure

    def check(self) -> None:
        """Raises the error of a write that has ended: UserError if the disk was full or read-only, or the folder is gone."""
        self.folder.check()
        if self._thread is None or not self._thread.is_alive():
            self.finish()

    def finish(self) -> None:
        """Waits until the checkpoint is complete. Raises as `check` does."""
        self.wait()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def wait(self) -> None:
        """Waits until nothing is being written; raises nothing."""
        if self._thread is not None:
            with beats.own().following(self._beats):
                self._thread.join()
            self._thread = None
