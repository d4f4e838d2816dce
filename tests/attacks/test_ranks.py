"""A part of the attacks on two ranks, drawn by a fixed seed; the whole: python -m tests.attacks.ranks"""

import pkgutil
from pathlib import Path

import pytest

from tests.attacks.ranks import PHASES, Phase, attack_all, part

PARTS = 10


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase.name)
def test_each_phase_is_a_call_of_a_function_that_is_there(phase: Phase) -> None:
    assert callable(pkgutil.resolve_name(phase.call))


@pytest.mark.slow
def test_a_rank_that_stops_dies_or_loops_is_named_first_and_last(tmp_path: Path) -> None:
    assert not attack_all(part(0, PARTS), tmp_path)
