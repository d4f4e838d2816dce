"""A number that few images cannot give is refused, or is null with a sentence; it is never one that says how few there were."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.evaluation.compare import _cells
from bigtrain.evaluation.metrics.classification_accuracy_score import ClassificationAccuracyScore
from bigtrain.evaluation.metrics.inception_score import InceptionScore, ScoreSums
from bigtrain.evaluation.metrics.metric import standard_error
from bigtrain.evaluation.options import EvaluationOptions
from tests.evaluation.evaluation_worlds import measure_images


@pytest.fixture
def few(tmp_path):
    """`few(n)`: the path of an npz of n random images."""

    def write(count: int, seed: int = 0) -> str:
        path = tmp_path / f"{count}_{seed}.npz"
        pixels = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        np.savez(path, pixels)
        return str(path)

    return write


def options(**given) -> EvaluationOptions:
    return EvaluationOptions(metrics=("inception_score",), **given)


class Compared:
    """What an Inception Score sees of a comparison."""

    def __init__(self, count: int, **given) -> None:
        self.count, self.options, self.label, self.samples = count, options(**given), "classifier", self

    def accumulate(self, new):
        return new


class Labelled(Compared):
    """What a classification accuracy score sees of a comparison of ten classes."""

    data = SimpleNamespace(test="held out")

    def classes(self, metric):
        return tuple("0123456789")


class Known:
    name = "a network"

    def __init__(self, classes: int) -> None:
        self.facts = {"classes": classes}


def test_an_inception_score_of_one_image_a_split_is_refused(few, script):
    with pytest.raises(
        UserError, match=r"score_splits: inception_score of 10 images in 10 splits .*score_splits=1, or at "
    ):
        measure_images(few(10), few(20), script, metrics=("inception_score",))


def test_an_inception_score_needs_images_in_proportion_to_the_networks_classes(caplog):
    metric = InceptionScore(Compared(150))
    metric.check()
    metric.check_features(Known(10))
    assert not caplog.text
    with pytest.raises(UserError, match=r"150 images in 10 splits .*score_splits=1, or at least 200 images"):
        metric.check_features(Known(1000))
    with caplog.at_level(logging.WARNING):
        InceptionScore(Compared(5000)).check_features(Known(1000))
    assert "splits of 500 images, where the network knows 1000 classes" in caplog.text


def test_one_split_has_no_deviation():
    metric = InceptionScore(Compared(20, score_splits=1))
    metric._scores._sums = scores = ScoreSums(1, 3)
    scores.add(torch.randn(20, 3), torch.zeros(20, dtype=torch.int64))
    assert metric.compute()["inception_score_std"] is None


def test_a_kernel_distance_of_few_takes_smaller_subsets(few, script):
    result = measure_images(few(60), few(80, 1), script, metrics=("kd",), kd_subset_size=None, kd_subsets=10)
    (spread,) = (value for name, value in result.items() if name.endswith("_std"))
    (value,) = (value for name, value in result.items() if name.startswith("kd_") and not name.endswith("_std"))
    assert spread > 1e-3 * abs(value)
    assert result["protocol"]["kd"]["subset_size"] == 30


def test_a_kernel_distance_of_subsets_of_all_images_has_no_deviation(few, script, caplog):
    with caplog.at_level(logging.WARNING):
        result = measure_images(few(60), few(60, 1), script, metrics=("kd",), kd_subset_size=1000)
    assert [value for name, value in result.items() if name.endswith("_std")] == [None]
    assert "every subset holds all 60 vectors of the smaller side" in caplog.text


def test_the_kept_vectors_are_the_remedy_where_they_are_the_limit(few, script, caplog):
    with caplog.at_level(logging.WARNING):
        measure_images(few(60), few(60, 1), script, metrics=("kd",), max_features=2, kd_subset_size=None)
    assert "evaluation.max_features: every subset holds all 2 vectors of the smaller side" in caplog.text
    with pytest.raises(UserError, match=r"evaluation\.max_features: two_sample_test needs 20 images .*not 10"):
        measure_images(few(60), few(60, 1), script, metrics=("two_sample_test",), max_features=10)


def test_one_subset_is_not_said_to_hold_every_vector(few, script, caplog):
    with caplog.at_level(logging.WARNING):
        measure_images(few(60), few(60, 1), script, metrics=("kd",), kd_subsets=1)
    assert "evaluation.kd_subsets: kd_" in caplog.text
    assert "of one subset has no deviation (null); take more" in caplog.text


def test_a_classifier_is_not_trained_on_fewer_samples_than_classes(caplog):
    def scored(count: int, **given) -> ClassificationAccuracyScore:
        return ClassificationAccuracyScore(Labelled(count, **given))

    for few, key in ((scored(9), "samples"), (scored(500, max_features=9), "max_features")):
        with pytest.raises(UserError, match=rf"evaluation\.{key}: .* of 9 samples of 10 classes .*take at least 10"):
            few.check()
    with caplog.at_level(logging.WARNING):
        scored(100).check()
        assert not caplog.text
        scored(99).check()
    assert "a classifier trained on 99 samples of 10 classes is far below that of more" in caplog.text


def test_a_two_sample_test_of_few_is_refused(few, script):
    with pytest.raises(UserError, match="two_sample_test needs 20 images of each side, not 8"):
        measure_images(few(8), few(40), script, metrics=("two_sample_test",))


def test_balls_that_hold_most_images_are_warned_of(few, script, caplog):
    with caplog.at_level(logging.WARNING):
        measure_images(few(12), few(200), script, metrics=("recall",))
    assert "recall of 12 images" in caplog.text
    assert "take at least 30 images" in caplog.text


def test_the_mean_of_one_value_has_no_standard_error():
    assert standard_error(1, 3.0, 9.0) is None
    assert standard_error(2, 2.0, 5.0) == pytest.approx(1.0)
    result = {"psnr": 30.0, "psnr_standard_error": None, "protocol": {"seed": 0}}
    cell = _cells([result])["psnr"]
    assert (cell.value, cell.half) == (30.0, None)
