"""A process that has imported everything and forks a training command in a few hundredths of a second.

It must have one thread only when it forks, so it computes nothing itself. Each line of its input is a request, each line of
its output the answer: {"argv": [...], "stderr": PATH} -> {"pid": N}; {"pid": N} -> {"code": C}, null while the child runs.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.runs_of import ROOT, environment

if __name__ == "__main__":
    import accelerate  # noqa: F401
    import sympy  # noqa: F401  (torch's optimizers import it)
    import torch._dynamo  # noqa: F401
    from torch.utils import tensorboard  # noqa: F401

    import tests.toy  # noqa: F401
    from bigtrain.cli import run_cli
    from bigtrain.cluster.launch import die_with_parent
    from bigtrain.families.family import family_kinds, find_family
    from launch.train import main


class ForkServer:
    """The tests' side of it."""

    def __init__(self, stderr: Path) -> None:
        self._stderr = stderr

    def __enter__(self) -> "ForkServer":
        with self._stderr.open("w") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.promises.fork_server"], cwd=ROOT, env=environment(), text=True, bufsize=1,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(timeout=60)

    def _ask(self, **request: Any) -> dict[str, Any]:
        print(json.dumps(request), file=self._process.stdin)
        answer = self._process.stdout.readline()
        assert answer, f"the fork server has ended: {self._stderr.read_text()[-6000:]}"
        return json.loads(answer)

    def start(self, *argv: str | Path, stderr: Path) -> "Child":
        """A process that trains: launch/train.py with these words."""
        return Child(self._ask(argv=[str(word) for word in argv], stderr=str(stderr))["pid"], self)

    def exit_code(self, pid: int) -> int | None:
        """-N where signal N ended it; None while it runs. To be asked until it is said, and not again."""
        return self._ask(pid=pid)["code"]


class Child:
    """A process that the server made. Its number is its own until `code` is known."""

    def __init__(self, pid: int, server: ForkServer) -> None:
        self.pid, self._server = pid, server
        self.code: int | None = None

    def ended(self) -> bool:
        if self.code is None:
            self.code = self._server.exit_code(self.pid)
        return self.code is not None

    def send(self, number: int) -> None:
        if not self.ended():
            os.kill(self.pid, number)

    def wait(self, timeout_s: float = 120) -> int:
        end = time.monotonic() + timeout_s
        while not self.ended():
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} has not ended after {timeout_s} s")
            time.sleep(0.005)
        return self.code


def serve() -> None:
    for kind in family_kinds():
        find_family(kind)
    for line in sys.stdin:
        request = json.loads(line)
        if "argv" in request:
            answer = {"pid": fork(**request)}
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), flush=True)


def fork(argv: list[str], stderr: str) -> int:
    assert threading.active_count() == 1, "a fork would lose threads"
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, "a fork would lose a library's threads"
    pid = os.fork()
    if pid:
        return pid
    die_with_parent(signal.SIGKILL)
    with open(stderr, "w") as file, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *argv]
    run_cli(main)
    os._exit(0)


if __name__ == "__main__":
    serve()
