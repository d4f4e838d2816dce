"""A part of the hostile folders and files, drawn by a fixed seed; the whole: python -m tests.attacks.hostile"""

from pathlib import Path

import pytest

from tests.attacks.hostile import attack_all, part

PARTS = 10
LIMIT_S = 60.0
"""No case begins later."""


@pytest.mark.slow
def test_what_somebody_else_wrote_is_refused_by_a_sentence_and_does_no_harm(tmp_path: Path) -> None:
    assert not attack_all(part(0, PARTS), tmp_path, LIMIT_S)
