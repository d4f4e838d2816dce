"""One rank of a command that may be hurt at a chosen call of a function: python tests/attacks/hurt_rank.py SCRIPT [WORD ...]

The environment variable HURT, if there is one, says how, as JSON:

    {"rank": 0, "call": "package.module:Class.method", "number": 3, "act": "stop", "when": PATH}

At that call of that rank the file `when` is written, and the process stops (SIGSTOP), dies (kill: SIGKILL) or loops.
"""

import functools
import importlib
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import tests.field_reader
import tests.toy  # noqa: F401  (registers the families of the tests)
from bigtrain.cli import run_cli


def hurt(call: str, number: int, act: str, when: str) -> None:
    """Replaces the function by one whose `number`-th call ends the rank's work."""
    module, _, name = call.partition(":")
    owner: Any = importlib.import_module(module)
    *classes, last = name.split(".")
    for each in classes:
        owner = getattr(owner, each)
    whole: Callable[..., Any] = getattr(owner, last)
    calls = itertools.count(1)

    @functools.wraps(whole)
    def wrapped(*words: Any, **keys: Any) -> Any:
        if next(calls) == number:
            Path(when).touch()
            if act != "loop":
                os.kill(os.getpid(), signal.SIGSTOP if act == "stop" else signal.SIGKILL)
            while True:
                time.sleep(0.01)
        return whole(*words, **keys)

    setattr(owner, last, wrapped)


def main(script: str, words: list[str]) -> None:
    launched = importlib.import_module(f"launch.{script}")
    plan: Mapping[str, Any] = json.loads(os.environ.get("HURT", "{}"))
    if plan and int(os.environ["RANK"]) == plan["rank"]:
        hurt(plan["call"], plan["number"], plan["act"], plan["when"])
    sys.argv[1:] = words
    run_cli(launched.main)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
