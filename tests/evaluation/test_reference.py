"""The real side is computed once, from each image once, and kept."""

import logging

import pytest
import torch

from bigtrain.cluster.passes import Reading, Stopped
from bigtrain.data.read.stream import SplitLoader
from bigtrain.evaluation import reference
from bigtrain.evaluation.images import Shards
from bigtrain.evaluation.one_pass import pass_over
from bigtrain.evaluation.reference import collect
from bigtrain.evaluation.result import versions
from bigtrain.evaluation.statistics.class_features import FeaturesByClass
from bigtrain.evaluation.statistics.moments import FeatureMoments, HalfMoments
from bigtrain.evaluation.statistics.subsets import StoredFeatures
from bigtrain.features.cache import Cache
from bigtrain.features.network import TorchScriptFeatures

READING = Reading(batch=64, workers=0)


def reference_moments(index, features, reading):
    found = FeatureMoments()
    collect(Shards(index, "train"), [found], features, False, reading)
    return found.moments


def reference_features(index, features, count, reading):
    found = StoredFeatures(count)
    collect(Shards(index, "train"), [found], features, False, reading)
    return found.vectors


@pytest.fixture
def features(script):
    return TorchScriptFeatures(script, (8, 8), torch.device("cpu"))


@pytest.fixture
def sweeps(monkeypatch) -> list[list[str]]:
    """The kinds of entries that each pass over real images is made for."""
    made: list[list[str]] = []

    def counted(images, accumulators, *how):
        made.append([one.kind for one in accumulators])
        pass_over(images, accumulators, *how)

    monkeypatch.setattr(reference, "pass_over", counted)
    return made


def all_features(index, features) -> torch.Tensor:
    sweep = SplitLoader(index, rank=0, world=1, batch=500, workers=0)
    return torch.cat([features(batch["image"].permute(0, 3, 1, 2)).features for _, batch in sweep])


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
    assert len(sweeps) == 1
    assert torch.equal(first.covariance(), again.covariance())
    reference_moments(validation, features, READING)
    assert len(sweeps) == 2, "another split has other moments"
    features.fingerprint = "another network"
    reference_moments(train, features, READING)
    assert len(sweeps) == 3, "another network has other moments"


def test_what_another_decoder_saw_is_not_taken_for_ours(digits, features, sweeps, monkeypatch):
    reference_moments(digits[0], features, READING)
    monkeypatch.setattr(reference, "versions", lambda: {**versions(), "simplejpeg": "0.0"})
    reference_moments(digits[0], features, READING)
    assert len(sweeps) == 2
    assert {"pillow", "simplejpeg", "torch"} <= set(versions())


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> None:
    """What is made again beside a damaged file is kept in the user's cache, which other tests would find."""
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "own"))


def test_damaged_moments_are_computed_again(digits, own_cache, features, sweeps, caplog):
    train, _ = digits
    first = reference_moments(train, features, READING)
    (path,) = (train.folder / ".bigtrain").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        again = reference_moments(train, features, READING)
    assert len(sweeps) == 2
    assert "damaged" in caplog.text
    assert torch.equal(first.covariance(), again.covariance())
    reference_moments(train, features, READING)
    assert len(sweeps) == 2, "the new ones were kept"


def test_one_pass_finds_whatever_is_missing(digits, features, sweeps):
    images = Shards(digits[0], "train")

    def found():
        wanted = FeatureMoments(), HalfMoments(300), StoredFeatures(200), FeaturesByClass(10)
        collect(images, wanted, features, False, READING)
        return wanted

    collect(images, [FeatureMoments()], features, False, READING)
    (_, first_halves, first_stored, first_classes), (_, halves, stored, classes) = found(), found()
    assert sweeps[1:] == [["half_moments", "features", "class_features"]]
    assert [len(rows) for rows in first_classes.found] == list(digits[0].class_counts)
    assert [moments.count for moments in first_halves.halves] == [300, 300]
    for kept, made in zip(halves.halves, first_halves.halves, strict=True):
        assert torch.equal(kept.covariance(), made.covariance())
    of_three = all_features(digits[0], features)[torch.from_numpy(digits[0].labels == 3)]
    for kept, made in zip(classes.found, first_classes.found, strict=True):
        assert torch.equal(kept, made)
    torch.testing.assert_close(list(classes.found)[3], of_three)
    assert torch.equal(stored.vectors, first_stored.vectors)


def test_classes_of_which_one_is_damaged_are_read_again(digits, own_cache, features, sweeps):
    images = Shards(digits[0], "train")
    for _ in range(2):
        found = FeaturesByClass(10)
        collect(images, [found], features, False, READING)
        assert [len(rows) for rows in found.found] == list(digits[0].class_counts)
        path = sorted((digits[0].folder / ".bigtrain").iterdir())[5]
        path.write_bytes(path.read_bytes()[:-1])
    assert len(sweeps) == 2


def test_entries_have_the_keys_that_they_always_had(digits, features):
    """What earlier versions kept is found, and nothing of theirs is taken for something else."""
    wanted = FeatureMoments(), HalfMoments(300), StoredFeatures(200), FeaturesByClass(10)
    assert {one.kind: dict(one.wanted) for one in wanted} == {
        "moments": {"moments": True},
        "half_moments": {"halves": 300},
        "features": {"stored": 200},
        "class_features": {"by_class": 10},
    }
    collect(Shards(digits[0], "train"), wanted, features, False, READING)
    key = {**Shards(digits[0], "train").key, "features": features.fingerprint, "allow_mixed_sizes": False}
    entry = Cache(digits[0]).read("moments", {**key, "versions": versions(), "wanted": {"moments": True}})
    assert entry is not None
    assert set(entry.tensors) == {"count", "total", "outer"}
    halves = Cache(digits[0]).read("half_moments", {**key, "versions": versions(), "wanted": {"halves": 300}})
    assert set(halves.tensors) == {f"{half}/{name}" for half in (0, 1) for name in ("count", "total", "outer")}
    three = {**key, "versions": versions(), "wanted": {"by_class": 10}, "class": 3}
    assert set(Cache(digits[0]).read("class_features", three).tensors) == {"features"}


def test_a_sample_of_features_is_a_fair_one_of_different_images(digits, features):
    train, _ = digits
    rows = reference_features(train, features, 200, READING)
    other_batches = reference_features(train, features, 200, Reading(batch=33, workers=0))
    everything = all_features(train, features)
    distances = torch.cdist(rows.double(), everything.double())
    numbers = distances.argmin(1)
    assert rows.shape == (200, 10)
    assert distances.min(1).values.max() < 1e-5
    assert len(set(numbers.tolist())) == 200
    assert numbers.max() > 1300, "a prefix would be a biased sample"
    assert torch.equal(rows, other_batches)


def test_a_stop_between_batches_leaves_nothing_behind(digits, features):
    asked = iter([False, False, True])
    reading = Reading(batch=64, workers=0, should_stop=lambda: next(asked))
    with pytest.raises(Stopped):
        reference_moments(digits[0], features, reading)
    assert not (digits[0].folder / ".bigtrain").exists()
