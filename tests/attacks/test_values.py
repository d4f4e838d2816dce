"""A part of the hostile values of recipes, drawn by a fixed seed; the whole: python -m tests.attacks.values"""

from pathlib import Path

import pytest

from tests.attacks.values import Ground, attack_all, attacks, part


@pytest.mark.slow
def test_a_hostile_value_is_taken_as_it_was_given_or_refused_by_a_sentence(tmp_path: Path) -> None:
    ground = Ground(tmp_path)
    assert not attack_all(part(attacks(ground), 0, 10), ground, train_every=10)
