"""TensorBoard's event files, in RUN/tensorboard/. They are local, so they are written in this process."""

import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bigtrain.training.monitoring.trackers.run_tracker import RunTracker


class TensorBoard(RunTracker):
    """Once a file cannot be written, TensorBoard is left alone until the run is resumed."""

    def __init__(self, folder: Path, recipe_yaml: str) -> None:
        self._folder, self._recipe_yaml = folder, recipe_yaml
        self._writer: Any = None
        self._warnings: list[str] = []
        self._hook = threading.excepthook

    def open(self, step: int) -> None:
        self._hook, threading.excepthook = threading.excepthook, self._on_failed_thread
        self._try(lambda: self._open(step))

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # heavy, and only training needs it

        self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)
        if step <= 0:
            self._writer.add_text("recipe", f"```yaml\n{self._recipe_yaml}```", 0)

    def row(self, values: Mapping[str, Any]) -> None:
        scalars = {name: value for name, value in values.items() if "/" in name}
        self._try(lambda: self._add(scalars, int(values["step"])))

    def observed(self, step: int, picture: Path | None, values: Mapping[str, float]) -> None:
        self._try(lambda: self._add({f"evaluation/{name}": value for name, value in values.items()}, step))
        if picture is not None and picture.exists():
            self._try(lambda: self._add_picture(picture, step))

    def _add(self, scalars: Mapping[str, Any], step: int) -> None:
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, step)

    def _add_picture(self, picture: Path, step: int) -> None:
        if self._writer is not None:
            with Image.open(picture) as image:
                pixels = np.asarray(image.convert("RGB"))
            self._writer.add_image("samples", pixels, step, dataformats="HWC")

    def warnings(self) -> Sequence[str]:
        said, self._warnings = self._warnings, []
        return said

    def end(self, seconds: float) -> None:
        pass

    def close(self) -> None:
        if self._writer is not None:
            self._try(self._writer.close)
        threading.excepthook = self._hook

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # whatever goes wrong in it costs a warning, and never the training
            self._writer = None
            reason = getattr(error, "strerror", None) or error
            self._warnings.append(
                f"run.trackers: tensorboard: cannot write {self._folder} ({reason}); the training goes on without it, and "
                "metrics.jsonl has everything"
            )

    def _on_failed_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Keeps quiet about a thread of TensorBoard's that could not write, as the next call raises its error."""
        is_boards = type(failed.thread).__module__.partition(".")[0] == "tensorboard"
        if not (is_boards and issubclass(failed.exc_type, OSError)):
            self._hook(failed)
