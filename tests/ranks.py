"""Starts a function of a test's module in the ranks of a world, each a fork of a process that has imported everything.

As a script this file is one rank: python tests/ranks.py MODULE FUNCTION ARGUMENTS, which are JSON.
"""

import importlib
import inspect
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.runs_of import ROOT, run


def in_ranks(function: Callable[..., None], arguments: Sequence[str | int], ranks: int) -> None:
    """Calls function(rank, *arguments) in each rank; fails with what they said where one of them fails."""
    module = Path(inspect.getfile(function)).relative_to(ROOT).with_suffix("")  # pytest calls it by its last part
    words = [".".join(module.parts), function.__name__, json.dumps(list(arguments))]
    run(Path(__file__), *words, processes=ranks)


if __name__ == "__main__":
    module, name, given = sys.argv[1:]
    call: Any = getattr(importlib.import_module(module), name)
    call(int(os.environ["RANK"]), *json.loads(given))
