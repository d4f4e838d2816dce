"""Classifiers trained on the spot: good at digits, the same each time, and leaving the run alone."""

import dataclasses
import logging
import re
import shutil

import pytest
import torch

from bigtrain.cluster.passes import Reading, Stopped
from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index, plain_fields
from bigtrain.errors import UserError
from bigtrain.features import classifier
from bigtrain.features.classifier import (
    TRAININGS,
    Classifier,
    build_network,
    find_classifier,
    measure_accuracy,
    shifted,
    train_classifier,
)

CPU = torch.device("cpu")
READING = Reading(batch=100, workers=0)
ROLES = ("features", "evaluator")


@pytest.fixture
def short_training(monkeypatch):
    """A tenth of a second of training instead of ten."""
    short = {role: dataclasses.replace(training, most_images=640) for role, training in TRAININGS.items()}
    monkeypatch.setattr(classifier, "TRAININGS", short)


@pytest.mark.slow
@pytest.mark.parametrize("role", ROLES)
def test_recognises_handwritten_digits_that_it_has_not_seen(role):
    train, validation = (Index.read(digits_index(split, (16, 16))) for split in ("train", "validation"))
    trained = Classifier(train_classifier(train, role, READING, CPU), role, {}, CPU)
    assert measure_accuracy(trained, validation, READING) >= 0.97


def test_the_evaluator_is_another_network_than_the_one_that_gives_features(digits, short_training):
    features, evaluator = (find_classifier(digits[0], None, role, READING, CPU) for role in ROLES)
    assert features.facts["architecture"] == "ResNet"
    assert evaluator.facts["architecture"] == "DenseNet"
    assert TRAININGS["features"].seed != TRAININGS["evaluator"].seed
    assert features.fingerprint != evaluator.fingerprint


@pytest.mark.parametrize("side", [8, 16, 28, 32, 64, 128])
@pytest.mark.parametrize("role", ROLES)
def test_takes_images_of_any_size(side, role):
    network = build_network(role, 7, (3, side, side))
    made = Classifier(network, role, {}, CPU)
    images = torch.randint(0, 256, (2, 3, side, side), dtype=torch.uint8)
    assert made(images).features.shape == (2, made.dimensions)
    assert made(images).features.dtype == torch.float32
    assert made.predict(images).shape == (2,)
    assert network(images / 127.5 - 1).shape == (2, 7)


def test_training_again_gives_the_same_weights(digits, short_training):
    first, second = (
        Classifier(train_classifier(digits[0], "evaluator", reading, CPU), "evaluator", {}, CPU)
        for reading in (READING, Reading(batch=7, workers=2))
    )
    assert first.fingerprint == second.fingerprint


def test_training_leaves_the_runs_randomness_and_precision_alone(digits, short_training):
    expected = find_classifier(digits[0], None, "evaluator", READING, CPU).fingerprint
    torch.manual_seed(5)
    state = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        trained = Classifier(train_classifier(digits[0], "evaluator", READING, CPU), "evaluator", {}, CPU)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    assert trained.fingerprint == expected, "a float64 run has the same evaluator"


def test_is_trained_once_and_kept(digits, short_training, monkeypatch):
    train, validation = digits
    first = find_classifier(train, validation, "features", READING, CPU)
    monkeypatch.setattr(classifier, "train_classifier", lambda *_: pytest.fail("trained twice"))
    monkeypatch.setattr(classifier, "measure_accuracy", lambda *_: pytest.fail("measured twice"))
    second = find_classifier(train, validation, "features", READING, CPU)
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(first(images).features, second(images).features)
    assert first.protocol() == second.protocol()


def test_is_trained_anew_for_other_settings(digits, short_training, monkeypatch):
    first = find_classifier(digits[0], None, "features", READING, CPU)
    longer = dataclasses.replace(classifier.TRAININGS["features"], most_images=704)
    monkeypatch.setitem(classifier.TRAININGS, "features", longer)
    assert find_classifier(digits[0], None, "features", READING, CPU).fingerprint != first.fingerprint


def test_the_held_out_accuracy_is_measured_and_part_of_the_protocol(digits, short_training):
    train, validation = digits
    known = find_classifier(train, validation, "evaluator", READING, CPU)
    assert known.protocol()["held_out_accuracy"] == measure_accuracy(known, validation, READING)
    unknown = find_classifier(train, None, "evaluator", READING, CPU)
    assert unknown.protocol()["held_out_accuracy"] is None
    assert unknown.protocol()["training_accuracy"] == measure_accuracy(known, train, READING)
    assert unknown.fingerprint == known.fingerprint, "held-out images have no part in training"


def test_one_class_is_a_user_error(digits):
    train = dataclasses.replace(digits[0], fields=plain_fields(("digit",), (8, 8)))
    with pytest.raises(UserError, match=r"evaluation\.features: .*train\.json has one class"):
        find_classifier(train, None, "features", READING, CPU)
    with pytest.raises(UserError, match=r"evaluation\.metrics: .*leave out class_accuracy"):
        find_classifier(train, None, "evaluator", READING, CPU)


def test_a_stop_ends_the_training(digits, short_training, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    asked = iter([False] * 3 + [True])
    with pytest.raises(Stopped):
        find_classifier(digits[0], None, "evaluator", Reading(100, 0, lambda: next(asked)), CPU)
    assert not (digits[0].folder / ".bigtrain").exists()


def test_the_work_is_bounded():
    training = TRAININGS["features"]
    assert training.steps(10, 10) * training.batch == training.least_images
    assert training.steps(1497, 10) == training.epochs * 1497 // training.batch
    assert training.steps(60_000, 10) * training.batch == training.most_images <= 120_000, "two epochs of MNIST"
    assert training.steps(10**9, 1000) * training.batch == 400_000, "a thousand classes take more"
    assert training.steps(10**9, 10**6) * training.batch == 400_000


def test_runs_of_the_same_data_in_other_folders_share_it(digits, short_training, tmp_path, monkeypatch):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    train, validation = digits
    first = find_classifier(train, validation, "features", READING, CPU)
    shutil.copytree(train.folder, tmp_path / "copy", ignore=shutil.ignore_patterns(".bigtrain"))
    monkeypatch.setattr(classifier, "train_classifier", lambda *_: pytest.fail("trained twice"))
    monkeypatch.setattr(classifier, "measure_accuracy", lambda *_: pytest.fail("measured twice"))
    copies = [Index.read(tmp_path / "copy" / f"{split}.json") for split in ("train", "validation")]
    assert find_classifier(*copies, "features", READING, CPU).protocol() == first.protocol()


def test_a_classifier_that_recognises_little_is_warned_of(digits, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(classifier.TRAININGS, "features", dataclasses.replace(TRAININGS["features"], most_images=64))
    with caplog.at_level(logging.WARNING):
        find_classifier(*digits, "features", READING, CPU)
    assert re.search(r"the features network recognises \d+ % of held-out images", caplog.text)


def test_shifts_move_each_image_down_and_right():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.float32).reshape(2, 3, 4, 4)
    moved = shifted(images, torch.tensor([[1, 0], [0, -2]]))
    assert torch.equal(moved[0, :, 1:], images[0, :, :-1])
    assert torch.equal(moved[0, :, 0], images[0, :, 0])
    assert torch.equal(moved[1, :, :, :2], images[1, :, :, 2:])
    assert torch.equal(moved[1, :, :, 2:], images[1, :, :, 3:].expand(3, 4, 2))
