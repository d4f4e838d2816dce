"""A start that dies before any of its file operations leaves a folder that the same command takes over."""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import tests.toy  # noqa: F401  (registers the family)
from bigtrain.cli import open_run
from bigtrain.inference.splits import find_splits
from bigtrain.recipe import Recipe, load_recipe
from bigtrain.runs import checkpoint
from bigtrain.runs.folder import RUN
from tests.runs_of import FAMILIES, write_recipe

CHANGES = ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "fcntl.flock")
"""Audit events of operations that change a folder, besides opening a file to write."""


def forked(work: Callable[[], object]) -> int:
    """The status, as os.waitpid gives it, of a child process that does the work."""
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(child, 0)[1]


def dying(work: Callable[[], object], before: int) -> Callable[[], object]:
    """The work, killed before its operation of the number `before` that changes a file."""
    done = 0

    def count(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal done
        opened = event == "open" and bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if not (opened or event in CHANGES):
            return
        if done == before:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    def counted() -> None:
        sys.addaudithook(count)
        work()

    return counted


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return load_recipe(write_recipe(tmp_path, FAMILIES["toy"]))


def begun_again(recipe: Recipe) -> str:
    """Starts the run a second time; returns its id."""
    data = find_splits(recipe.data)[0]
    assert forked(lambda: open_run(recipe, data)) == 0
    assert load_recipe(recipe.folder / "recipe.yaml") == recipe
    assert not list(recipe.folder.rglob("*.tmp"))
    return str(json.loads((recipe.folder / "environment.json").read_bytes())[RUN])


@pytest.mark.parametrize("resumed", [False, True], ids=["new", "resumed"])
def test_a_start_may_die_before_any_file_operation(recipe: Recipe, resumed: bool) -> None:
    run, deaths, data = None, 0, find_splits(recipe.data)[0]
    if resumed:
        run = begun_again(recipe)
        checkpoint.write(recipe.folder / "checkpoints", 1, {}, {"step": 1, RUN: run}, recipe.to_yaml().encode())
    while (status := forked(dying(lambda: open_run(recipe, data), before=deaths))) != 0:
        assert os.WTERMSIG(status) == signal.SIGKILL
        deaths += 1
        assert run in (None, begun_again(recipe))
        if not resumed:
            for path in sorted(recipe.folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            recipe.folder.rmdir()
    assert deaths > 8
