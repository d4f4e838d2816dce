"""A part of the attacks on two ranks, drawn by a fixed seed; the whole: python -m tests.attacks.ranks"""

from pathlib import Path

import pytest

from tests.attacks.ranks import attack_all, part

PARTS = 10


@pytest.mark.slow
def test_a_rank_that_stops_dies_or_loops_is_named_first_and_last(tmp_path: Path) -> None:
    assert not attack_all(part(0, PARTS), tmp_path)
