"""Writes checkpoints while training goes on: the trainer waits only for a copy in host memory."""

import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from bigtrain import beats
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RUN, RunFolder
from bigtrain.training.average_snapshots import thin_out
from bigtrain.training.averaging import PosthocOptions
from bigtrain.training.engine.component import Groups


class CheckpointWriter:
    """Writes one checkpoint at a time, or one snapshot of averages, in a thread. Only for the main rank.

    A kill in the middle loses only what is being written (runs/checkpoint.py). A snapshot is whole before a checkpoint of its
    step or of a later one is.
    """

    def __init__(self, folder: RunFolder, keep: int, posthoc: PosthocOptions | None = None) -> None:
        self.folder, self.keep, self.posthoc = folder, keep, posthoc
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
        self._start("writes a checkpoint", partial(self._write, step, components, state, flush))

    def start_averages(self, step: int, components: Mapping[str, Groups]) -> None:
        """The same for a snapshot of the averages after `step` steps."""
        self._start("writes a snapshot of the averages", partial(self._write_averages, step, components))

    def _start(self, what: str, write: Callable[[], None]) -> None:
        self.finish()
        self._beats = beats.Beats()
        self._thread = threading.Thread(target=self._run, args=(what, write), daemon=True, name="checkpoint")
        self._thread.start()

    def _run(self, what: str, write: Callable[[], None]) -> None:
        beats.use(self._beats)
        try:
            with beats.work(what):
                self.folder.check()
                write()
        except BaseException as failure:
            self._failure = failure

    def _write(
        self,
        step: int,
        components: Mapping[str, Groups],
        state: Mapping[str, Any],
        flush: Callable[[], None] | None,
    ) -> None:
        folder = self.folder.checkpoints
        if flush is not None:
            flush()
        checkpoint.write(folder, step, components, state, self.folder.recipe_yaml, self.folder.check)
        checkpoint.keep_newest(folder, step, self.keep)
        if self.posthoc is not None:
            thin_out(self.folder.averages, self.posthoc, step)

    def _write_averages(self, step: int, components: Mapping[str, Groups]) -> None:
        folder = self.folder.averages
        self.folder.make_room(folder / checkpoint.STATE)
        state = {"step": step, RUN: self.folder.run}
        checkpoint.write(folder, step, components, state, check=self.folder.check)

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
