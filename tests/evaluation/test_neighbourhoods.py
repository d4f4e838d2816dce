"""Recall is the share of real features within the fake ones' k-nearest-neighbour balls."""

import pytest
import torch

from bigtrain.evaluation import neighbourhoods
from bigtrain.evaluation.neighbourhoods import recall


def by_definition(real: torch.Tensor, fake: torch.Tensor, neighbours: int) -> float:
    """Kynkäänniemi et al. 2019, eq. 1 and 2, one vector at a time."""
    radii = []
    for place, vector in enumerate(fake):
        others = torch.cat([fake[:place], fake[place + 1 :]])
        radii.append((others - vector).norm(dim=1).sort().values[neighbours - 1])
    covered = [
        any((vector - other).norm() <= radius for other, radius in zip(fake, radii, strict=True)) for vector in real
    ]
    return sum(covered) / len(covered)


def clouds(real: int, fake: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(real, 4, generator=generator, dtype=torch.float64),
        0.6 * torch.randn(fake, 4, generator=generator, dtype=torch.float64) + 0.3,
    )


@pytest.mark.parametrize("neighbours", [1, 3, 5])
@pytest.mark.parametrize(("real", "fake"), [(90, 60), (30, 110)])
def test_equals_the_definition(real, fake, neighbours):
    real_features, fake_features = clouds(real, fake)
    expected = by_definition(real_features, fake_features, neighbours)
    assert 0.1 < expected < 0.95, "a case that tells nothing"
    assert recall(real_features, fake_features, neighbours) == pytest.approx(expected, abs=1e-12)


def test_does_not_depend_on_the_size_of_its_blocks(monkeypatch):
    real, fake = clouds(150, 70)
    whole = recall(real, fake)
    monkeypatch.setattr(neighbourhoods, "BLOCK_ELEMENTS", 70 * 13)
    assert recall(real, fake) == whole


def test_is_not_precision():
    real, fake = clouds(200, 200)
    assert recall(real, fake) < recall(fake, real) - 0.1


def test_a_collapsed_model_covers_nothing_but_its_mode():
    real, _ = clouds(200, 1)
    collapsed = real[:1].repeat(50, 1)
    assert recall(real, collapsed) <= 1 / 200


def test_is_one_for_the_real_set_itself():
    real, _ = clouds(100, 1)
    assert recall(real, real) == 1.0


def test_far_from_the_origin_float32_features_lose_nothing():
    real, fake = (cloud.float() for cloud in clouds(120, 90))
    near, far = recall(real, fake), recall(real + 1024.0, fake + 1024.0)
    assert far == pytest.approx(near, abs=0.02)


def test_fewer_samples_than_neighbours_are_refused():
    real, fake = clouds(10, 3)
    with pytest.raises(AssertionError, match="3-th nearest"):
        recall(real, fake, neighbours=3)
