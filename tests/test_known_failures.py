"""What is said of failures that are no defects."""

import signal
from pathlib import Path

import pytest

from bigtrain.errors import TrainingDiverged, known_failure
from tests import fork_server
from tests.runs_of import environment

FAILS = """
import torch
from bigtrain import cli
from bigtrain.errors import TrainingDiverged
cli.SPEAKER_FIRST_S = 0.1

class Killed(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, number):
        import os
        os.kill(os.getpid(), int(self.signal))

def main(argv):
    if argv[0] == "diverges":
        raise TrainingDiverged("step 3: the loss is not finite")
    data = Killed()
    data.signal = argv[0]
    list(torch.utils.data.DataLoader(data, num_workers=1))

cli.run_cli(main)
"""


def said(folder: Path, word: str, **more: str) -> str:
    """What the command says that fails so; its exit code is 1."""
    (folder / "fails.py").write_text(FAILS)
    out, err = folder / "stdout", folder / "stderr"
    assert fork_server.start([folder / "fails.py", word], environment(**more), out, err).wait(60) == 1
    return err.read_text()


def test_a_killed_data_worker_is_one_sentence(tmp_path: Path) -> None:
    """Torch does not always hear of the signal before it misses the worker."""
    sentence = said(tmp_path, str(int(signal.SIGKILL)))
    assert sentence in (
        "error: a data worker was killed (SIGKILL, signal 9), probably for lack of memory: fewer data.workers\n",
        "error: a data worker has ended unexpectedly, perhaps for lack of memory: fewer data.workers\n",
    )


def test_divergence_is_one_sentence_of_the_main_rank_and_the_launchers_cause(tmp_path: Path) -> None:
    cause = tmp_path / "error.json"
    assert said(tmp_path, "diverges", TORCHELASTIC_ERROR_FILE=str(cause)) == "error: step 3: the loss is not finite\n"
    assert '"message": "error: step 3: the loss is not finite"' in cause.read_text()
    ranks = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    assert said(tmp_path, "diverges", **ranks) == ""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RuntimeError("DataLoader worker (pid(s) 17, 18) exited unexpectedly"), "a data worker has ended unexpectedly"),
        (
            RuntimeError("DataLoader worker (pid 17) is killed by signal: Bus error. It is possible that ..."),
            "a data worker was killed (SIGBUS, signal 7): a shard was cut short",
        ),
        (RuntimeError("DataLoader worker (pid 17) is killed by signal: Segmentation fault. "), "signal 11); with data.wor"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "no memory left"),
        (MemoryError(), "no memory left for this process"),
        (FloatingPointError("the model draws images that are not finite"), "draws images that are not finite"),
    ],
)  # fmt: skip
def test_known_failures_have_a_sentence(error: BaseException, sentence: str) -> None:
    assert sentence in (known_failure(error) or "")


def test_other_errors_keep_their_traceback() -> None:
    assert known_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    assert known_failure(OSError("DataLoader worker (pid 1) exited unexpectedly")) is None
    assert known_failure(TrainingDiverged("x")) is None, "which all ranks raise, and the main one says"
