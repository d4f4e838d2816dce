"""Commands under a signal: training saves first, everything else ends promptly and leaves nothing half-written."""

import contextlib
import os
import pty
import signal
import subprocess
import termios
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import launch.train as train_command
from bigtrain.cli import Signalled
from bigtrain.cluster.slurm import MARKER
from tests.runs_of import FAMILIES, ROOT, command, environment, final_tensors, run, train_and_signal, write_recipe

LAUNCH = ROOT / "launch"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusion model after two steps; a thousand more a sample would be hours of drawing."""
    folder = tmp_path_factory.mktemp("trained")
    family = dict(FAMILIES["diffusion"], timesteps=1000, sampling={"sampler": "ancestral", "steps": 1000})
    run(LAUNCH / "train.py", write_recipe(folder, family, steps=2))
    return folder / "run"


def signalled(number: int, words: list[str], until: Callable[[str], bool]) -> tuple[int, str, float]:
    """Starts a command in a terminal, where its bars are drawn at once; sends the signal once `until` accepts its output. Exit
    code, output, seconds it then took."""
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    said = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # the last process has closed it
            while piece := os.read(ours, 4096):
                said.extend(piece)

    process = subprocess.Popen(words, cwd=ROOT, env=environment(), stdout=terminal, stderr=terminal)
    os.close(terminal)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    end = time.monotonic() + 90
    while process.poll() is None and not until(said.decode(errors="replace")) and time.monotonic() < end:
        time.sleep(0.05)
    begin = time.monotonic()
    process.send_signal(number)
    code = process.wait(60)
    took_s = time.monotonic() - begin
    reader.join(30)
    os.close(ours)
    return code, said.decode(errors="replace").replace("\r\n", "\n"), took_s


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


@pytest.mark.slow
def test_sampling_ends_on_usr1_without_a_file(trained: Path, tmp_path: Path) -> None:
    words = command(LAUNCH / "sample.py", trained, "--out", tmp_path / "out" / "grid.png", "--per-class", "100")
    code, output, seconds = signalled(signal.SIGUSR1, words, lambda text: "sampling" in text)
    assert code == 128 + signal.SIGUSR1, output
    assert output.rstrip().endswith("ended by SIGUSR1")
    assert "Traceback" not in output
    assert seconds < 20
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_evaluation_ends_on_all_ranks_without_a_file(trained: Path) -> None:
    before = names_in(trained)
    words = command(LAUNCH / "evaluate.py", trained, "evaluation.metrics=[fd]", processes=2)
    code, output, seconds = signalled(signal.SIGTERM, words, lambda text: "samples:" in text)
    assert code != 0, output
    assert output.count("ended by SIGTERM") == 1, output
    assert seconds < 40
    assert names_in(trained) == before
    time.sleep(0.5)
    left = subprocess.run(["pgrep", "-f", f"{LAUNCH / 'evaluate.py'} {trained}"], capture_output=True, check=False)
    assert left.stdout == b"", "a rank outlived the evaluation"


@pytest.mark.slow
def test_training_gives_an_evaluation_up_and_saves(tmp_path: Path) -> None:
    """Of a million samples, it would take minutes."""
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=1000, log_every=5, evaluate_every=5)
    recipe.write_text(recipe.read_text().replace("samples: 64", "samples: 1000000"))
    begin = time.monotonic()
    assert train_and_signal(recipe, signal.SIGTERM, rest_s=3) == 128 + signal.SIGTERM
    assert time.monotonic() - begin < 60
    assert final_tensors(tmp_path / "run")
    assert not (tmp_path / "run" / "evaluations").exists()


@pytest.mark.slow
def test_training_in_a_terminal_that_is_closed_saves(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["toy"], steps=100_000)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup
        words = command(ROOT / "tests" / "drive.py", recipe)
        os.execve(words[0], words, environment())
    metrics, said = tmp_path / "run" / "metrics.jsonl", bytearray()

    def read() -> None:
        while not (metrics.exists() and metrics.read_text()):
            said.extend(os.read(terminal, 4096))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    reader.join(90)
    os.close(terminal)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP, said.decode()
    assert final_tensors(tmp_path / "run")


@pytest.mark.parametrize(
    ("number", "ranks", "marked"), [(signal.SIGUSR1, 2, True), (signal.SIGTERM, 1, True), (signal.SIGTERM, 2, False)]
)
def test_a_start_that_a_launcher_ends_because_another_rank_failed_asks_for_no_requeue(
    number: signal.Signals, ranks: int, marked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(*_: object) -> None:
        raise Signalled(number)

    monkeypatch.setattr(train_command, "train", start)
    for name, value in {MARKER: str(tmp_path / "mark"), "RANK": "0", "WORLD_SIZE": str(ranks)}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Signalled):
        train_command.main([str(write_recipe(tmp_path, FAMILIES["diffusion"]))])
    assert (tmp_path / "mark").exists() == marked
