"""Streamed float64 moments are the moments of the stored features."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.evaluation.statistics.moments import Moments


def features(count: int, dimensions: int, offset: float = 0.0) -> torch.Tensor:
    return torch.randn(count, dimensions, generator=torch.Generator().manual_seed(count)) * 3 + offset


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(lambda sizes: sum(sizes) >= 2))
def test_any_batches_give_numpys_mean_and_covariance(sizes):
    stored = features(sum(sizes), 5, offset=2.0)
    moments = Moments(5)
    for batch in stored.split(sizes):
        moments.add(batch)
    exact = stored.numpy().astype(np.float64)
    assert moments.count == len(stored)
    np.testing.assert_allclose(moments.mean(), exact.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(moments.covariance(), np.cov(exact, rowvar=False), rtol=1e-11, atol=1e-11)


def test_sums_are_float64_where_float32_sums_would_be_wrong():
    stored = features(20_000, 3, offset=300.0)
    moments = Moments.of(stored)
    exact = np.cov(stored.numpy().astype(np.float64), rowvar=False)
    in_float32 = (stored.T @ stored - len(stored) * torch.outer(stored.mean(0), stored.mean(0))) / (len(stored) - 1)
    assert np.abs(moments.covariance().numpy() - exact).max() < 1e-8
    assert np.abs(in_float32.numpy() - exact).max() > 1e-3


def test_tensors_bring_moments_back():
    moments = Moments.of(features(7, 4))
    again = Moments.from_tensors(moments.tensors())
    assert (again.count, again.dimensions) == (7, 4)
    assert torch.equal(again.mean(), moments.mean())
    assert torch.equal(again.covariance(), moments.covariance())


def test_a_covariance_of_one_vector_is_refused():
    with pytest.raises(AssertionError, match="needs 2"):
        Moments.of(features(1, 4)).covariance()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_feature_that_is_not_finite_is_noticed(value):
    stored = features(6, 4)
    moments = Moments.of(stored)
    assert moments.finite()
    stored[3, 2] = value
    moments.add(stored)
    assert not moments.finite()
