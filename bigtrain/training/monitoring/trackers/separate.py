"""A tracker in a process of its own, which reads the run folder (following.py), so that nothing it does can stop, slow down or
change the training: it may hang, crash, take signals, seed generators or use up its memory."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bigtrain
from bigtrain.runs import atomic
from bigtrain.training.monitoring.trackers.run_tracker import RunTracker

_MORE_S = 5.0
"""How much longer than it is told its process may take to end."""
_OF_LAUNCHERS = ("ACCELERATE_", "MASTER_", "TORCHELASTIC_", "LOCAL_", "GROUP_", "ROLE_", "NCCL_", "PMI_", "OMPI_")
_RANKS = {"RANK", "WORLD_SIZE", "CUDA_VISIBLE_DEVICES"}
_GOES_ON = "the training goes on without it, and metrics.jsonl has everything"


class SeparateTracker(RunTracker):
    """Starts the process, passes on what it says, and ends it."""

    def __init__(self, tracker: str, folder: Path, run: str, title: str) -> None:
        """`tracker`: its name; `folder`: the run folder; `run`: the run's id; `title`: run.name."""
        self._tracker, self._folder, self._run, self._title = tracker, folder, run, title
        self._process: subprocess.Popen[bytes] | None = None
        self._warnings: list[str] = []
        self._said = b""
        self._deadline = 0.0

    @property
    def log(self) -> Path:
        """What the tracker prints."""
        return self._folder / "trackers" / f"{self._tracker}.log"

    def open(self, step: int) -> None:
        try:
            atomic.make_folder(self.log.parent)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            descriptor = os.open(self.log, flags, 0o666)
            try:
                self._process = subprocess.Popen(
                    self._command(), stdin=-1, stdout=-1, stderr=descriptor, env=_environment(), start_new_session=True
                )
            finally:
                os.close(descriptor)
            assert self._process.stdout is not None
            os.set_blocking(self._process.stdout.fileno(), False)
        except OSError as error:
            self._warn(f"cannot be started ({error.strerror})")

    def _command(self) -> list[str]:
        job = {"tracker": self._tracker, "folder": str(self._folder), "run": self._run, "title": self._title}
        module = "bigtrain.training.monitoring.trackers.following"
        # -P: no module of the current folder is taken for a package.
        return [sys.executable, "-P", "-m", module, json.dumps(job | {"parent": os.getpid()})]

    def row(self, values: Mapping[str, Any]) -> None:
        pass

    def observed(self, step: int, picture: Path | None, values: Mapping[str, float]) -> None:
        pass

    def warnings(self) -> Sequence[str]:
        self._read()
        if self._process is not None and self._process.poll() is not None:
            self._warn(f"its process has ended (exit code {self._process.returncode}; {self.log})")
            self._process = None
        said, self._warnings = self._warnings, []
        return said

    def end(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds + _MORE_S
        if self._process is not None and self._process.stdin is not None:
            try:
                self._process.stdin.write(b"%d\n" % seconds)
                self._process.stdin.flush()
            except OSError:  # it has ended
                pass

    def close(self) -> None:
        if self._process is None:
            return
        try:
            self._process.wait(max(0.0, self._deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._warn("does not end, and is killed")
            self._process.returncode = 0
        self._read()
        if self._process.returncode:
            self._warn(f"its process has ended (exit code {self._process.returncode}; {self.log})")
        self._process = None

    def _read(self) -> None:
        """Takes over what the process has said, which are whole lines."""
        if self._process is None or self._process.stdout is None:
            return
        try:
            self._said += os.read(self._process.stdout.fileno(), 65536)
        except OSError:  # nothing new
            return
        *lines, self._said = self._said.split(b"\n")
        self._warnings += [f"run.trackers: {self._tracker}: {line.decode(errors='replace')[:400]}" for line in lines]

    def _warn(self, what: str) -> None:
        self._warnings.append(f"run.trackers: {self._tracker}: {what}; {_GOES_ON}")


def _environment() -> dict[str, str]:
    """Of a process that is no rank and uses no GPU."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(_OF_LAUNCHERS) and key not in _RANKS}
    path = [str(Path(bigtrain.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return own | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
