"""What becomes of the other runs of a launch where one fails (run_list.py); no promise test would say so by itself."""

from pathlib import Path

import pytest

from tests.runs_of import FAMILIES, Run, check, launch, write_recipe


def runs_in(folder: Path, failing_rank: int) -> list[Run]:
    """The second of three fails."""
    words = {"first": [], "second": [f"family.failing_rank={failing_rank}"], "third": []}
    recipes = {name: write_recipe(folder / name, FAMILIES["toy"], steps=4) for name in words}
    return [Run(recipes[name].parent, (recipes[name], *overrides)) for name, overrides in words.items()]


@pytest.mark.parametrize(
    ("processes", "failing_rank"),
    [(1, 0), pytest.param(2, 0, marks=pytest.mark.slow)],
)
def test_a_run_that_fails_leaves_the_others_to_be_made(processes: int, failing_rank: int, tmp_path: Path) -> None:
    """On two ranks one fails alone, and the other waits for it until the launch is ended."""
    first, second, third = runs_in(tmp_path, failing_rank)
    launch([first, second, third], processes)
    check(first.folder)
    check(third.folder)
    with pytest.raises(AssertionError, match="this rank fails on purpose"):
        check(second.folder)
