"""The Inception Score from sums is torch-fidelity's from stored logits."""

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from bigtrain.evaluation.metrics.inception_score import ScoreSums


def logits(count: int, classes: int) -> torch.Tensor:
    return 3 * torch.randn(count, classes, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("splits", [1, 7, 10])
def test_equals_torch_fidelity(splits):
    count = 203
    stored = logits(count, 12)
    sums = ScoreSums(splits, 12)
    for begin in range(0, count, 40):
        positions = torch.arange(begin, min(begin + 40, count))
        sums.add(stored[positions], ((positions + 1) * splits - 1) // count)
    theirs = isc_features_to_metric(stored, splits=splits, shuffle=False)
    mean, deviation = sums.score()
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-10)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-6, abs=1e-10)


def test_is_the_number_of_classes_when_each_is_sure_and_as_frequent():
    sums = ScoreSums(1, 8)
    sums.add(1000 * torch.eye(8), torch.zeros(8, dtype=torch.int64))
    assert sums.score() == (pytest.approx(8.0), 0.0)


def test_is_one_for_a_mode_alone():
    sums = ScoreSums(2, 8)
    sums.add(logits(1, 8).repeat(10, 1), torch.arange(10) % 2)
    assert sums.score() == (pytest.approx(1.0), pytest.approx(0.0))
