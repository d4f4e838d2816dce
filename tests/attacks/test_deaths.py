"""Deaths before operations on files drawn by a fixed seed, for most of a minute; the whole: python -m tests.attacks.deaths"""

from pathlib import Path

import pytest

from tests.attacks.deaths import CASES, attack_all

LIMIT_S = 50.0
"""No attack begins later."""


@pytest.mark.slow
def test_the_command_that_died_ends_as_if_it_had_not(tmp_path: Path) -> None:
    train = [case for case in CASES if case.name == "train"]
    broken, points = attack_all(train, tmp_path, limit_s=LIMIT_S)
    assert points
    assert not broken
