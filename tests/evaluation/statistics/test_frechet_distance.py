"""The Frechet distance is clean-fid's where that is exact, and exact where that is not."""

import numpy as np
import pytest
import torch
from cleanfid.fid import fid_from_feats

from bigtrain.evaluation.statistics.frechet import frechet_distance, frechet_distance_of_features
from bigtrain.evaluation.statistics.moments import Moments


def features(seed: int, count: int, dimensions: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(dimensions, dimensions, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.relu(torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mixing + 0.1 * seed)


def distance(real: torch.Tensor, fake: torch.Tensor) -> float:
    first, second = Moments.of(real), Moments.of(fake)
    return frechet_distance(first.mean(), first.covariance(), second.mean(), second.covariance())


def test_equals_clean_fid():
    real, fake = features(1, 800, 24), features(2, 700, 24)
    assert distance(real, fake) == pytest.approx(fid_from_feats(real.numpy(), fake.numpy()), rel=1e-9)


@pytest.mark.filterwarnings("ignore")  # scipy's square root of a singular matrix
def test_equals_clean_fid_with_fewer_samples_than_dimensions():
    real, fake = features(1, 40, 64), features(2, 50, 64)
    assert distance(real, fake) == pytest.approx(fid_from_feats(real.numpy(), fake.numpy()), rel=1e-3)


@pytest.mark.parametrize(("count", "other"), [(40, 50), (40, 600), (600, 40), (600, 700), (2, 2)])
def test_features_give_what_their_covariances_do(count, other):
    """Whether there are fewer of them than dimensions on one side, on both or on neither."""
    fake, real = features(1, count, 64), features(2, other, 64)
    assert frechet_distance_of_features(fake, real) == pytest.approx(distance(fake, real), rel=1e-9)
    assert frechet_distance_of_features(fake, fake) < 1e-9


def test_a_singular_covariance_costs_no_precision_on_either_side():
    """Against the singular values of the product of both roots, which squares nothing."""
    real, fake = features(1, 600, 48), features(2, 20, 48)
    first, second = Moments.of(real), Moments.of(fake)
    roots = []
    for covariance in (first.covariance(), second.covariance()):
        variances, directions = torch.linalg.eigh(covariance)
        roots.append(directions * variances.clamp(min=0).sqrt())
    overlap = torch.linalg.svdvals(roots[0].T @ roots[1])[:19].sum()
    traces = first.covariance().trace() + second.covariance().trace()
    exact = float((first.mean() - second.mean()).square().sum() + traces - 2 * overlap)
    assert distance(real, fake) == pytest.approx(exact, rel=1e-11)
    assert distance(fake, real) == pytest.approx(exact, rel=1e-11)


def test_a_reference_that_changes_in_place_is_noticed():
    first, second = Moments.of(features(1, 100, 8)), Moments.of(features(2, 100, 8))
    reference = second.covariance()
    frechet_distance(first.mean(), first.covariance(), second.mean(), reference)
    reference += torch.eye(8)
    again = frechet_distance(first.mean(), first.covariance(), second.mean(), reference)
    swapped = frechet_distance(second.mean(), reference, first.mean(), first.covariance())
    assert again == pytest.approx(swapped, rel=1e-10)


def test_features_of_low_rank_are_as_far_apart_as_in_their_own_space():
    real, fake = features(1, 300, 6), features(2, 300, 6)
    embedding = torch.linalg.qr(torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[
        0
    ].T
    assert distance(real @ embedding, fake @ embedding) == pytest.approx(distance(real, fake), rel=1e-10)


def test_commuting_covariances_give_the_closed_form():
    variances1, variances2 = torch.tensor([4.0, 1.0, 0.0, 9.0]), torch.tensor([1.0, 0.0, 0.0, 16.0])
    mean1, mean2 = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([1.0, 2.0, 3.0, 2.0])
    expected = 4.0 + (2 - 1) ** 2 + 1.0 + 0.0 + (3 - 4) ** 2
    assert frechet_distance(mean1, variances1.diag(), mean2, variances2.diag()) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("count", [20, 500])
def test_is_zero_for_equal_moments_and_never_below(count):
    real = features(1, count, 40)
    scale = float(Moments.of(real).covariance().trace())
    assert 0 <= distance(real, real) < 1e-10 * scale


def test_is_symmetric_and_grows_with_the_square_of_a_shift():
    real, fake = features(1, 200, 12), features(2, 200, 12)
    assert distance(real, fake) == pytest.approx(distance(fake, real), rel=1e-10)
    assert distance(real, real + 2.0) == pytest.approx(12 * 4.0, rel=1e-9)


def test_float32_moments_are_computed_with_in_float64():
    real, fake = Moments.of(features(1, 900, 30)), Moments.of(features(2, 900, 30))
    rounded = [moment.float() for moment in (real.mean(), real.covariance(), fake.mean(), fake.covariance())]
    exact = frechet_distance(*(moment.double() for moment in rounded))
    assert frechet_distance(*rounded) == exact


def test_not_a_number_stays_one():
    mean, covariance = torch.zeros(3), torch.eye(3)
    assert np.isnan(frechet_distance(mean * torch.nan, covariance, mean, covariance))
