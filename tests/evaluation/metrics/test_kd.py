"""The kernel distance is clean-fid's and torch-fidelity's on the same vectors, and unbiased."""

import numpy as np
import pytest
import torch
from cleanfid.fid import kernel_distance as clean_fids
from torch_fidelity.metric_kid import kid_features_to_metric

from bigtrain.evaluation.metrics.kd import kernel_distance, polynomial_mmd


def clouds(seed: int, count: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(count, 16, generator=generator, dtype=torch.float64) + shift)


def test_equals_clean_fid_and_torch_fidelity():
    real, fake = clouds(0, 120), clouds(1, 120, 0.3)
    ours, deviation = kernel_distance(real, fake, subsets=3, subset_size=1000, seed=0)
    assert ours == pytest.approx(clean_fids(fake.numpy(), real.numpy(), num_subsets=2), rel=1e-9)
    theirs = kid_features_to_metric(fake, real, kid_subsets=2, kid_subset_size=120, verbose=False)
    assert ours == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)
    assert deviation is None, "every subset is the whole set"


def test_the_mean_over_subsets_agrees_with_clean_fids():
    real, fake = clouds(0, 400), clouds(1, 350, 0.3)
    ours, deviation = kernel_distance(real, fake, subsets=200, subset_size=100, seed=0)
    np.random.seed(0)
    theirs = clean_fids(fake.numpy(), real.numpy(), num_subsets=200, max_subset_size=100)
    assert ours == pytest.approx(theirs, abs=4 * deviation / np.sqrt(200))
    assert deviation > 0


def test_is_a_function_of_the_seed():
    sides = clouds(0, 300), clouds(1, 300)
    first, again, other = (kernel_distance(*sides, subsets=5, subset_size=50, seed=seed) for seed in (0, 0, 1))
    assert first == again != other


def test_is_unbiased_where_a_biased_estimate_would_not_be():
    values = [polynomial_mmd(clouds(2 * seed, 20), clouds(2 * seed + 1, 20)) for seed in range(300)]
    error = np.std(values) / np.sqrt(len(values))
    assert abs(np.mean(values)) < 4 * error
    assert min(values) < 0
