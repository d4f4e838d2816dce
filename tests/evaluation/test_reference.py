"""The real side is computed once, from each image once, and kept."""

import logging

import pytest
import torch

from bigtrain.data.stream import Sweep
from bigtrain.evaluation import reference
from bigtrain.evaluation.features import TorchScriptFeatures
from bigtrain.evaluation.ranks import Reading, Stopped
from bigtrain.evaluation.reference import reference_features, reference_moments

READING = Reading(batch=64, workers=0)


@pytest.fixture
def features(script):
    return TorchScriptFeatures(script, 8, torch.device("cpu"))


@pytest.fixture
def sweeps(monkeypatch) -> list[int | None]:
    """The limit of every pass over real images that is made."""
    made: list[int | None] = []

    def counted(index, *, limit=None, **how):
        made.append(limit)
        return Sweep(index, limit=limit, **how)

    monkeypatch.setattr(reference, "Sweep", counted)
    return made


def all_features(index, features) -> torch.Tensor:
    sweep = Sweep(index, rank=0, world=1, batch=500, workers=0)
    return torch.cat([features(batch.images.permute(0, 3, 1, 2)) for _, batch in sweep])


def test_moments_are_those_of_every_image(digits, features):
    train, _ = digits
    stored = all_features(train, features).double()
    moments = reference_moments(train, features, READING)
    assert moments.count == train.samples == 1497
    torch.testing.assert_close(moments.mean(), stored.mean(0), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(moments.covariance(), torch.cov(stored.T), rtol=1e-5, atol=1e-8)


def test_moments_are_computed_once(digits, features, sweeps):
    train, validation = digits
    first = reference_moments(train, features, READING)
    again = reference_moments(train, features, READING)
    assert sweeps == [None]
    assert torch.equal(first.covariance(), again.covariance())
    reference_moments(validation, features, READING)
    assert sweeps == [None, None], "another split has other moments"
    features.fingerprint = "another network"
    reference_moments(train, features, READING)
    assert sweeps == [None, None, None], "another network has other moments"


def test_damaged_moments_are_computed_again(digits, features, sweeps, caplog):
    train, _ = digits
    first = reference_moments(train, features, READING)
    (path,) = (train.folder / ".bigtrain").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = reference_moments(train, features, READING)
    assert sweeps == [None, None]
    assert "damaged" in caplog.text
    assert torch.equal(first.covariance(), again.covariance())
    reference_moments(train, features, READING)
    assert sweeps == [None, None], "the new ones were kept"


def test_a_sample_of_features_holds_different_images_in_a_fixed_mixed_order(digits, features):
    train, _ = digits
    rows = reference_features(train, features, 200, READING)
    other_batches = reference_features(train, features, 200, Reading(batch=33, workers=0))
    everything = all_features(train, features)
    distances = torch.cdist(rows.double(), everything.double())
    numbers = distances.argmin(1)
    assert rows.shape == (200, 10)
    assert distances.min(1).values.max() < 1e-5
    assert len(set(numbers.tolist())) == 200
    assert not torch.equal(numbers, numbers.sort().values), "a prefix would be a biased sample"
    assert torch.equal(rows, other_batches)


def test_a_sample_larger_than_the_split_is_the_split(digits, features, sweeps):
    _, validation = digits
    rows = reference_features(validation, features, 10_000, READING)
    assert rows.shape == (300, 10)
    reference_features(validation, features, 20_000, READING)
    assert sweeps == [300], "the same sample is not computed twice"


def test_a_stop_between_batches_leaves_nothing_behind(digits, features):
    asked = iter([False, False, True])
    reading = Reading(batch=64, workers=0, should_stop=lambda: next(asked))
    with pytest.raises(Stopped):
        reference_moments(digits[0], features, reading)
    assert not (digits[0].folder / ".bigtrain").exists()
