"""Output into a pipe whose reader has gone, as after `| head`: no traceback, and the code of SIGPIPE."""

import os
import subprocess
import sys

import pytest

from tests.runs_of import ROOT, environment

TRAIN = str(ROOT / "launch" / "train.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "codes"),
    [
        ([str(ROOT / "recipes" / "biggan_digits.yaml"), "--plan", "nodes=1,gpus=1"], {141}),
        (["--help"], {0, 141}),  # argparse of some versions of Python takes no notice that nobody reads
    ],
    ids=["plan", "help"],
)
def test_what_prints_much_ends_quietly_when_nobody_reads(words: list[str], codes: set[int]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, TRAIN, *words], stdout=writer, stderr=subprocess.PIPE, env=environment(), check=False
    )
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode in codes
