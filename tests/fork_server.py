"""A process that has imported everything, and forks one that runs a script in a few hundredths of a second.

Started as `python tests/fork_server.py` by the first `start` of a test process, it ends with that. Each line of its input is
a request, each line of its output the answer:

    {"argv": [SCRIPT, ...], "environment": {...}, "stdout": PATH, "stderr": PATH} -> {"pid": N}
    {} -> {}, which says that all is imported
    {"pid": N} -> {"code": C}, where C is null while the process runs and -S where signal S ended it

It must have one thread only when it forks, so it computes nothing itself.
"""

import atexit
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]

# -- the tests' side ----------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115  (as long as the server)
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__))], cwd=ROOT, env=environment, text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr,
        )  # fmt: skip
        self._lock = threading.Lock()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            print(json.dumps(request), file=self._process.stdin)
            answer = self._process.stdout.readline()
        if not answer:
            self._stderr.seek(0)
            raise RuntimeError(f"the fork server has ended: {self._stderr.read()[-6000:]}")
        return json.loads(answer)


class Child:
    """A process that the server made, with the methods of subprocess.Popen. Its number is its own until it is known to have
    ended."""

    def __init__(self, pid: int, ask: Callable[..., dict[str, Any]]) -> None:
        self.pid, self._ask = pid, ask
        self._code: int | None = None

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._ask(pid=self.pid)["code"]
        return self._code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def wait(self, timeout: float = 120) -> int:
        """The exit code. Kills a process that takes longer, and raises TimeoutError."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                self.send_signal(signal.SIGKILL)
                raise TimeoutError(f"process {self.pid} has not ended after {timeout} s")
            time.sleep(0.005)
        return code


@functools.cache
def _server(process: int) -> _Server:
    """One for this process."""
    return _Server(dict(os.environ) | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)})


def make_ready() -> None:
    """Returns once a start costs only a fork."""
    _server(os.getpid()).ask()


def start(argv: Sequence[str | Path], environment: Mapping[str, str], stdout: Path, stderr: Path) -> Child:
    """A process as `python SCRIPT ...` makes one, but for what its environment tells modules that are imported already."""
    server = _server(os.getpid())
    request = {"argv": list(map(str, argv)), "stdout": str(stdout), "stderr": str(stderr)}
    return Child(server.ask(environment=dict(environment), **request)["pid"], server.ask)


# -- the server's side --------------------------------------------------------------------------------------------------


HEAVY = ("accelerate", "diffusers.pipelines", "sklearn.datasets", "sympy", "torch._dynamo", "torch.utils.tensorboard")
"""What scripts import late."""


def import_everything() -> None:
    sys.path.insert(0, str(ROOT))
    scripts = [f"launch.{path.stem}" for path in (ROOT / "launch").glob("*.py")]
    for name in (*HEAVY, *scripts, "tests.toy", "tests.field_reader"):
        importlib.import_module(name)
    from bigtrain.families.family import family_kinds, find_family

    for kind in family_kinds():
        find_family(kind)
    gc.freeze()  # or a child's first collection would copy all of it


def serve() -> None:
    import_everything()
    for line in sys.stdin:
        request = json.loads(line)
        if "argv" in request:
            answer: dict[str, Any] = {"pid": fork(**request)}
        elif not request:
            answer = {}
        else:
            pid, status = os.waitpid(request["pid"], os.WNOHANG)
            answer = {"code": os.waitstatus_to_exitcode(status) if pid else None}
        print(json.dumps(answer), flush=True)


def fork(argv: list[str], environment: dict[str, str], stdout: str, stderr: str) -> int:
    """The child's number; the child itself ends here."""
    assert threading.active_count() == 1, "a fork would lose threads"
    tasks = Path("/proc/self/task")
    assert not tasks.exists() or len(list(tasks.iterdir())) == 1, "a fork would lose a library's threads"
    pid = os.fork()
    if pid:
        return pid
    from bigtrain.cluster.launch import die_with_parent

    die_with_parent(signal.SIGKILL)
    for descriptor, path in enumerate((os.devnull, stdout, stderr)):
        file = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
        os.close(file)
    os.environ.clear()
    os.environ.update(environment)
    try:
        code = execute(argv)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # to take everything apart that was imported would take a second and a half


def execute(argv: list[str]) -> int:
    """Runs the script to the end of its threads and exit functions; its exit code."""
    sys.argv = argv
    sys.path[0] = str(Path(argv[0]).parent)
    code: Any = 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    if isinstance(code, str):
        print(code, file=sys.stderr)
    return code if isinstance(code, int) else int(code is not None)


if __name__ == "__main__":
    serve()
