"""Training within limits of memory and time: python tests/attacks/limited_train.py RECIPE [section.key=value ...]"""

import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the families of the tests)
from bigtrain.cli import run_cli
from launch.train import main

MORE_BYTES = 3 * 2**30
"""Beside what is mapped before anything is built."""
SECONDS = 25
"""Of a core."""

if __name__ == "__main__":
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MORE_BYTES, mapped + MORE_BYTES))
    used = int(time.process_time())
    resource.setrlimit(resource.RLIMIT_CPU, (used + SECONDS, used + SECONDS + 1))
    run_cli(main)
