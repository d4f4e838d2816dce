"""Balanced epochs: every class equally often, every sample its share, whatever was read before."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.data.read.order import balanced_counts

SIZES = st.lists(st.integers(1, 7), min_size=1, max_size=5)


def labels_of(sizes: list[int]) -> np.ndarray:
    return np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))


@settings(max_examples=60, deadline=None)
@given(sizes=SIZES, seed=st.integers(0, 3), epochs=st.integers(1, 6))
def test_each_class_comes_as_often_as_the_largest_and_each_sample_its_share(
    sizes: list[int], seed: int, epochs: int
) -> None:
    labels = labels_of(sizes)
    counts = [balanced_counts(labels, seed, epoch) for epoch in range(epochs)]
    for count in counts:
        assert np.bincount(labels, weights=count).tolist() == [max(sizes)] * len(sizes)
        assert count.min() >= 1
    share = epochs * max(sizes) / np.array(sizes)[labels]
    assert (np.abs(sum(counts) - share) < 1).all()


def test_the_samples_that_come_once_more_are_new_in_every_epoch_and_for_every_seed() -> None:
    labels = labels_of([20, 33])
    drawn = {tuple(balanced_counts(labels, seed, epoch)) for seed in range(3) for epoch in range(3)}
    assert len(drawn) == 9


def test_balanced_counts_are_the_same_for_ever() -> None:
    """A change breaks every balanced run that is then resumed."""
    labels = np.array([0, 1, 1, 1, 0, 1, 1])
    assert balanced_counts(labels, 0, 0).tolist() == PINNED


PINNED = [3, 1, 1, 1, 2, 1, 1]


@pytest.mark.parametrize("sizes", [[1], [5, 5]])
def test_a_set_that_is_balanced_already_keeps_its_epochs(sizes: list[int]) -> None:
    assert (balanced_counts(labels_of(sizes), 0, 3) == 1).all()
