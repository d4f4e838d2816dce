"""Evaluation end to end: the numbers are right, at any world size, and say what they are numbers of."""

import json
import logging
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from cleanfid.fid import compute_fid
from PIL import Image
from pydantic import ValidationError

from bigtrain.cluster.passes import Reading
from bigtrain.data.index import Index
from bigtrain.data.read.stream import rank_share
from bigtrain.errors import UserError
from bigtrain.evaluation import metrics
from bigtrain.evaluation.held_out import measure_rfd
from bigtrain.evaluation.images import Outputs
from bigtrain.evaluation.metrics.metric import find_metric
from bigtrain.evaluation.metrics.registry import DEFAULT_METRICS, METRICS, title
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.features import classifier
from bigtrain.features.network import TorchScriptFeatures
from bigtrain.inference.metric_choice import chosen_metrics
from tests.evaluation.evaluation_worlds import (
    CPU,
    IMAGE_METRICS,
    SAMPLES,
    RealDigits,
    evaluate_draws,
    label_of,
    measure,
    measure_images,
    measure_pairs_of,
    shorten_training,
    work,
    write_images,
)
from tests.features.feature_scripts import NotFinite
from tests.ranks import in_ranks
from tests.training.small_steps import small_family


@pytest.fixture(scope="module", autouse=True)
def _short_training():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classifier, "TRAININGS", dict(classifier.TRAININGS))
        shorten_training()
        yield


@pytest.fixture(scope="module")
def train(pristine_digits, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("evaluate") / "digits"
    shutil.copytree(pristine_digits, folder)
    return str(folder / "train.json")


@pytest.fixture(scope="module")
def alone(train, script):
    """The result of one process."""
    return measure(train, script)


@pytest.fixture(scope="module", params=[pytest.param(2, marks=pytest.mark.slow), 3])
def ranks(request, pristine_digits, script, tmp_path_factory):
    """What each rank of a world saw, beginning with nothing kept."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(pristine_digits, folder / "digits")
    write_images(folder / "digits" / "images", Index.read(folder / "digits" / "train.json"), SAMPLES, darker=30)
    in_ranks(work, (request.param, str(folder / "digits" / "train.json"), script, str(folder)), request.param)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(request.param)]


def run(train: str, options: EvaluationOptions, draw=None, validation=None, **how):
    index = Index.read(train)
    return evaluate_draws(draw or RealDigits(index), index, validation, options, **how)


def test_several_ranks_measure_what_one_process_measures(ranks, alone):
    for seen in ranks:
        result = seen["result"]
        assert result["fd_colour_moments"] == pytest.approx(alone["fd_colour_moments"], rel=1e-6)
        assert result["fd_colour_moments_real"] == pytest.approx(alone["fd_colour_moments_real"], rel=1e-6)
        assert result["recall"] == alone["recall"]
        assert result["class_accuracy"] == alone["class_accuracy"]


def test_several_ranks_find_in_a_folder_what_one_process_finds(ranks, train, script, tmp_path):
    folder = write_images(tmp_path / "images", Index.read(train), SAMPLES, darker=30)
    alone = measure_images(str(folder), train, script)
    named = {title(name, "colour_moments") for name in IMAGE_METRICS}
    assert named - {"nearest_neighbours", "two_sample_test"} <= set(alone)
    for seen in ranks:
        result = seen["images"]
        assert result["protocol"] == alone["protocol"]
        for metric, value in alone.items():
            if isinstance(value, float):
                assert result[metric] == pytest.approx(value, rel=1e-6), metric
        assert [row["sample"] for row in result["nearest_neighbours"]] == [
            row["sample"] for row in alone["nearest_neighbours"]
        ]


def test_several_ranks_find_in_pairs_what_one_process_finds(ranks, train):
    alone = measure_pairs_of(train)
    assert {"psnr", "ssim", "reconstruction_mse"} <= set(alone)
    for seen in ranks:
        assert seen["pairs"] == pytest.approx(alone, rel=1e-9)


def test_the_protocol_does_not_depend_on_the_world(ranks, alone):
    for seen in ranks:
        protocol = {**seen["result"]["protocol"], "evaluator": alone["protocol"]["evaluator"]}
        assert protocol == alone["protocol"]


def test_every_rank_has_the_same_result_and_the_same_classifier(ranks):
    for seen in ranks:
        assert seen["result"] == ranks[0]["result"]
        assert seen["with classifier"] == ranks[0]["with classifier"]


def test_each_sample_is_drawn_once(ranks):
    shares = [len(rank_share(np.arange(SAMPLES), rank, len(ranks))) for rank in range(len(ranks))]
    drawn = [index for seen, share in zip(ranks, shares, strict=True) for index in seen["drawn"][:share]]
    assert sorted(drawn) == list(range(SAMPLES))


def test_one_ranks_wish_to_stop_stops_all(ranks):
    assert all(seen["stopped on the last rank"] for seen in ranks)


def test_one_ranks_user_error_ends_every_rank(ranks):
    for seen in ranks:
        assert seen["error on the last rank"] == "the last rank refuses"
        assert seen["error on every rank"] == seen["error on main"] == "the last rank refuses"
        assert "nowhere.pt" in seen["features absent"]
        assert seen["disk full on main"] == "the disk is full"


def test_rows_are_gathered_on_rank_0_in_the_order_of_their_numbers(ranks):
    assert all(seen["gathered"] is None and seen["ordered"] is None for seen in ranks[1:])
    assert ranks[0]["ordered"] == [[number, 10 * number] for number in range(7)]
    assert len(ranks[0]["gathered"]) == sum(range(len(ranks)))


@pytest.mark.filterwarnings("ignore")  # scipy's, of clean-fid's call
def test_fid_equals_clean_fid_on_the_same_images(alone, train, script, tmp_path):
    index = Index.read(train)
    indices = np.arange(SAMPLES)
    samples = RealDigits(index, darker=30)(indices, label_of(indices))
    for name, images in (("real", RealDigits(index).images), ("fake", samples)):
        (tmp_path / name).mkdir()
        for number, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / name / f"{number}.png")
    network = TorchScriptFeatures(script, (8, 8), CPU)
    theirs = compute_fid(
        str(tmp_path / "real"),
        str(tmp_path / "fake"),
        mode="legacy_tensorflow",  # the one in which the network is given images as they are
        custom_feat_extractor=lambda images: network(images.round().to(torch.uint8)).features,
        num_workers=0,
        device=CPU,
        verbose=False,
    )
    assert alone["fd_colour_moments"] == pytest.approx(theirs, rel=1e-3)
    assert alone["fd_colour_moments"] > 2 * alone["fd_colour_moments_real"], "a case that tells nothing"


def test_a_perfect_model_scores_the_yardstick(train, script):
    options = EvaluationOptions(metrics=("fd", "fd_real", "recall"), samples=700, features=script)
    result = run(train, options)
    assert result["fd_colour_moments"] < 2 * result["fd_colour_moments_real"] + 1e-4
    assert result["recall"] > 0.8


def test_accuracy_asks_for_the_class_that_was_asked_for(train):
    options = EvaluationOptions(metrics=("class_accuracy",), samples=200)
    index = Index.read(train)
    digits = RealDigits(index)
    right = run(train, options, digits)["class_accuracy"]
    wrong = run(train, options, lambda indices, labels: digits(indices, (labels + 1) % 10))["class_accuracy"]
    assert right > 0.6
    assert wrong < 0.1


def test_accuracy_alone_needs_no_feature_network(train):
    result = run(train, EvaluationOptions(metrics=("class_accuracy",), samples=20, features="nowhere.pt"))
    assert set(result) == {"class_accuracy", "protocol"}
    assert "features" not in result["protocol"]


def test_only_what_is_asked_for_is_measured(train, script):
    result = run(train, EvaluationOptions(metrics=("fd",), samples=50, features=script))
    assert set(result) == {"fd_colour_moments", "protocol"}
    assert not {"evaluator", "recall", "fd_real"} & set(result["protocol"])


def test_the_protocol_says_what_the_numbers_depend_on(alone, train, script):
    protocol = alone["protocol"]
    index = Index.read(train)
    features = TorchScriptFeatures(script, (8, 8), CPU)
    assert protocol["samples"] == SAMPLES
    assert protocol["features"] == {
        "name": "colour_moments.pt",
        "fingerprint": features.fingerprint,
        "dimensions": 10,
        "kind": "TorchScript",
        "resize": "the network's own",
        "classes": None,
    }
    assert protocol["reference"] == {
        "split": "train",
        "samples": 1497,
        "fingerprint": index.fingerprint,
    }
    assert 0.5 < protocol["evaluator"]["held_out_accuracy"] <= 1
    assert protocol["recall"] == {"neighbours": 3, "real": SAMPLES, "fake": SAMPLES}
    assert protocol["fd_real"] == {"images_a_side": SAMPLES}
    assert protocol["images"] == {"kind": "drawn", "quantisation": "round"}
    assert protocol["weights"] == "none", "the caller's part"
    assert json.loads(json.dumps(alone)) == alone


def test_the_reference_may_be_the_validation_split(train, script):
    validation = Index.read(Index.read(train).folder / "validation.json")
    options = EvaluationOptions(metrics=("fd", "fd_real"), samples=400, features=script, reference="validation")
    protocol = run(train, options, validation=validation)["protocol"]
    assert (protocol["reference"]["split"], protocol["reference"]["samples"]) == ("validation", 300)
    assert protocol["fd_real"] == {"images_a_side": 150}, "half of a reference smaller than twice the samples"
    with pytest.raises(UserError, match=r"evaluation\.reference.*data\.validation"):
        run(train, options, validation=None)


def test_batches_do_not_change_the_numbers(alone, train, script):
    index = Index.read(train)
    options = EvaluationOptions(samples=SAMPLES, features=script, batch_size=57)
    result = run(train, options, RealDigits(index, darker=30))
    assert [result[name] for name in ("fd_colour_moments", "recall", "class_accuracy")] == pytest.approx(
        [alone[name] for name in ("fd_colour_moments", "recall", "class_accuracy")], rel=1e-6
    )


def test_a_stop_gives_no_result(train, script):
    asked = iter([False, True])
    options = EvaluationOptions(metrics=("fd",), samples=50, features=script, batch_size=10)
    run(train, options)
    assert run(train, options, should_stop=lambda: next(asked)) is None


def test_features_that_are_not_finite_are_an_error(train, tmp_path):
    path = tmp_path / "not_finite.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(NotFinite()).save(path)
    options = EvaluationOptions(metrics=("fd",), samples=20, features=str(path))
    with pytest.raises(UserError, match=r"not_finite\.pt gave features of the samples that are not finite"):
        run(train, options, lambda indices, labels: torch.zeros(len(indices), 3, 8, 8, dtype=torch.uint8))


def test_few_samples_are_warned_of(train, script, caplog):
    with caplog.at_level(logging.WARNING):
        run(train, EvaluationOptions(metrics=("fd",), samples=11, features=script))
        assert not caplog.records
        run(train, EvaluationOptions(metrics=("fd",), samples=10, features=script))
    assert "10 images in 10 feature dimensions" in caplog.text


def test_recall_needs_more_samples_than_neighbours(train, script):
    with pytest.raises(UserError, match=r"evaluation\.samples: recall needs more images than neighbours"):
        run(train, EvaluationOptions(samples=3, metrics=("recall",), features=script))
    run(train, EvaluationOptions(samples=3, metrics=("fd",), features=script))


def test_an_unknown_metric_is_refused_and_every_known_one_has_a_file_of_its_name():
    with pytest.raises(ValidationError, match="fd_real"):
        EvaluationOptions(metrics=("fjd",))
    files = {path.stem for path in Path(metrics.__file__).parent.glob("*.py")}
    shared = {"__init__", "metric", "neighbourhood_metric", "pair_mean", "registry"}
    assert files - shared == set(METRICS)
    assert all(find_metric(name).name == name for name in METRICS)


def test_without_a_word_what_a_family_can_is_measured():
    assert chosen_metrics(small_family("diffusion"), EvaluationOptions()) == DEFAULT_METRICS
    unconditional = small_family("diffusion", class_conditional=False, label_dropout=0.0)
    assert set(chosen_metrics(unconditional, EvaluationOptions())) == set(DEFAULT_METRICS) - {"class_accuracy"}
    assert chosen_metrics(small_family("vqvae"), EvaluationOptions()) == ("reconstruction",)


def test_rfd_is_the_distance_of_reconstructions(train, script):
    index = Index.read(train)
    validation = Index.read(index.folder / "validation.json")
    options = EvaluationOptions(features=script)
    reading = Reading(batch=50, workers=0)

    def rfd(reconstruct, limit):
        def made(numbers, batch):
            return reconstruct(batch["image"].permute(0, 3, 1, 2).float() / 127.5 - 1)

        outputs = Outputs(validation, "validation", "reconstructions", "image", made, ["image"], limit)
        values, protocol = measure_rfd(outputs, index, validation, options, CPU, reading)
        assert (protocol["rfd"]["samples"], protocol["rfd"]["reference_samples"]) == (limit or 300, 300)
        return values["rfd_colour_moments"]

    assert rfd(lambda images: images, None) < 1e-9
    assert rfd(lambda images: 0.5 * images, 200) > 10 * rfd(lambda images: images, 200)


@pytest.mark.slow
def test_every_metric_can_be_measured_of_a_model(train):
    validation = Index.read(Index.read(train).folder / "validation.json")
    of_samples = tuple(name for name in METRICS if find_metric(name).measured_on == "samples")
    options = EvaluationOptions(metrics=of_samples, samples=300)
    result = run(train, options, validation=validation)
    named = {title(name, "classifier") for name in of_samples}
    assert named - {"two_sample_test", "nearest_neighbours"} <= set(result)
    assert result["classification_accuracy_score"] > 0.3
    assert result["two_sample_p_value"] > 1e-3, "the digits are real"
    assert len(result["nearest_neighbours"]) == 10
    assert all(row["nearest"][0]["distance"] < 1e-3 for row in result["nearest_neighbours"]), "learnt by heart"
