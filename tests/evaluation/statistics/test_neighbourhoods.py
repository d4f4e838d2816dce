"""What nearest neighbours say of two sets: by the definitions, as torch-fidelity, and on sets whose answer is known."""

import pytest
import torch
from torch_fidelity.metric_prc import prc_features_to_metric

from bigtrain.evaluation.metrics.nearest_neighbours import Nearest
from bigtrain.evaluation.metrics.two_sample_test import two_sample_test
from bigtrain.evaluation.statistics import neighbourhoods
from bigtrain.evaluation.statistics.neighbourhoods import measure_neighbourhoods, recall


def by_definition(real: torch.Tensor, fake: torch.Tensor, neighbours: int) -> float:
    """Kynkäänniemi et al. 2019, eq. 1 and 2, one vector at a time."""
    radii = []
    for position, vector in enumerate(fake):
        others = torch.cat([fake[:position], fake[position + 1 :]])
        radii.append((others - vector).norm(dim=1).sort().values[neighbours - 1])
    covered = [
        any((vector - other).norm() <= radius for other, radius in zip(fake, radii, strict=True)) for vector in real
    ]
    return sum(covered) / len(covered)


def precision(real: torch.Tensor, fake: torch.Tensor, neighbours: int = 3) -> float:
    return measure_neighbourhoods(real, fake, ["precision"], neighbours)["precision"]


def density_and_coverage(real: torch.Tensor, fake: torch.Tensor, neighbours: int = 5) -> tuple[float, float]:
    found = measure_neighbourhoods(real, fake, ["density", "coverage"], 3, neighbours)
    return found["density"], found["coverage"]


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


@pytest.mark.parametrize("neighbours", [1, 2])
def test_precision_and_recall_equal_torch_fidelity(neighbours):
    real, fake = clouds(160, 130)
    theirs = prc_features_to_metric(fake, real, prc_neighborhood=neighbours, verbose=False)
    assert precision(real, fake, neighbours) == pytest.approx(theirs["precision"], rel=1e-6)
    assert recall(real, fake, neighbours) == pytest.approx(theirs["recall"], rel=1e-6)
    assert 0.1 < theirs["recall"] < theirs["precision"] < 1, "a case that tells nothing"


@pytest.mark.parametrize(("real", "fake"), [(90, 60), (30, 110)])
def test_density_and_coverage_equal_the_definition(real, fake, monkeypatch):
    real_features, fake_features = clouds(real, fake)
    radii = torch.stack([(real_features - vector).norm(dim=1).sort().values[5] for vector in real_features])
    inside = torch.cdist(real_features, fake_features) <= radii[:, None]
    expected = float(inside.sum()) / (5 * fake), float(inside.any(1).double().mean())
    monkeypatch.setattr(neighbourhoods, "BLOCK_ELEMENTS", 7 * real)
    assert density_and_coverage(real_features, fake_features, 5) == pytest.approx(expected, abs=1e-12)


def test_equal_distributions_have_density_one_and_high_coverage():
    generator = torch.Generator().manual_seed(5)
    real, fake = (torch.randn(800, 6, generator=generator) for _ in range(2))
    density, coverage = density_and_coverage(real, fake)
    assert density == pytest.approx(1.0, abs=0.06)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.03)  # Naeem et al. 2020, eq. 7


def test_a_dropped_mode_lowers_coverage_and_recall_but_not_precision_or_density():
    generator = torch.Generator().manual_seed(6)
    modes = torch.tensor([[20.0, 0.0], [-20.0, 0.0]])
    real = torch.randn(600, 2, generator=generator) + modes[torch.arange(600) % 2]
    fake = torch.randn(600, 2, generator=generator) + modes[0]
    density, coverage = density_and_coverage(real, fake)
    assert (precision(real, fake), density) == (pytest.approx(1.0, abs=0.05), pytest.approx(1.0, abs=0.15))
    assert (recall(real, fake), coverage) == (pytest.approx(0.5, abs=0.05), pytest.approx(0.5, abs=0.05))


def test_the_two_sample_test_holds_its_level_and_finds_a_shift():
    def drawn(seed, shift=0.0):
        return torch.randn(300, 5, generator=torch.Generator().manual_seed(seed)) + shift

    equal = [two_sample_test(drawn(2 * seed), drawn(2 * seed + 1), seed).p_value for seed in range(40)]
    assert sum(p < 0.1 for p in equal) <= 9
    assert 0.3 < sum(equal) / len(equal) < 0.7
    shifted = two_sample_test(drawn(0), drawn(1, 1.0), 0)
    assert shifted.accuracy > 0.75
    assert shifted.p_value < 1e-6
    assert (shifted.tested, shifted.neighbours) == (300, 17)


def test_the_two_sample_test_takes_a_fair_part_of_the_longer_side():
    generator = torch.Generator().manual_seed(0)
    by_class = torch.randn(2000, 8, generator=generator) + 3 * (torch.arange(2000) // 200)[:, None]
    some = by_class[torch.randperm(2000, generator=generator)[:400]] + 0.01 * torch.randn(400, 8, generator=generator)
    assert two_sample_test(some, by_class, 0).p_value > 1e-3
    assert two_sample_test(by_class, some, 0).p_value > 1e-3


def test_the_two_sample_test_sees_a_scale_that_no_mean_tells():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(400, 8, generator=generator), 0.5 * torch.randn(400, 8, generator=generator)
    assert two_sample_test(real, fake, 0).p_value < 1e-4


def test_the_nearest_of_a_stream_are_those_of_all_at_once():
    generator = torch.Generator().manual_seed(0)
    stream, queries = torch.randn(100, 3, generator=generator), torch.randn(4, 3, generator=generator)
    stream[70] = queries[2]
    stream[33] = stream[12]
    found = Nearest(queries, 6)
    for numbers in torch.arange(100).flip(0).split(7):
        found.add(numbers, stream[numbers])
    distances, numbers = torch.cdist(queries.double(), stream.double()).sort(dim=1, stable=True)
    torch.testing.assert_close(found.distances.sqrt(), distances[:, :6], rtol=1e-9, atol=1e-9)
    assert torch.equal(found.numbers, numbers[:, :6])
    assert (found.numbers[2, 0], found.distances[2, 0]) == (70, 0.0), "a copy is at no distance"


def test_together_they_are_what_they_are_alone(monkeypatch):
    real, fake = clouds(150, 70)
    monkeypatch.setattr(neighbourhoods, "BLOCK_ELEMENTS", 70 * 13)
    together = measure_neighbourhoods(real, fake, ["precision", "recall", "density", "coverage"], 2, 4)
    alone = {name: measure_neighbourhoods(real, fake, [name], 2, 4)[name] for name in together}
    assert together == alone
