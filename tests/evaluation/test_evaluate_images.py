"""Images from anywhere are evaluated against real ones from anywhere; what cannot be compared is refused."""

import io
import json
import logging
import os
import shutil
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bigtrain.data.index import Index
from bigtrain.data.sources.collection import read_images
from bigtrain.data.sources.image_files import open_collection
from bigtrain.errors import UserError
from bigtrain.evaluation import reference
from bigtrain.evaluation.evaluate_images import evaluate_images
from bigtrain.evaluation.moment_files import holds_moments, read_moments, write_moments
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.features import classifier
from bigtrain.features.network import TorchScriptFeatures
from tests.data.faulty_server import serving
from tests.evaluation.evaluation_worlds import (
    CPU,
    SAMPLES,
    RealDigits,
    label_of,
    measure_images,
    shorten_training,
    write_images,
)
from tests.features.feature_scripts import NotFinite, Viewing


@pytest.fixture(scope="module")
def train(pristine_digits, tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("anywhere") / "digits"
    shutil.copytree(pristine_digits, folder)
    return str(folder / "train.json")


@pytest.fixture(scope="module")
def images(train, tmp_path_factory) -> str:
    """A folder of darkened digits by class."""
    return str(write_images(tmp_path_factory.mktemp("images") / "fake", Index.read(train), SAMPLES, darker=30))


@pytest.fixture(scope="module")
def real(train, tmp_path_factory) -> str:
    """A folder of digits by class."""
    return str(write_images(tmp_path_factory.mktemp("images") / "real", Index.read(train), 400))


def pixels_of(folder: str) -> np.ndarray:
    collection = open_collection(Path(folder))
    (seen,) = read_images(collection, [np.arange(collection.count)], 0)
    return seen.groups[0][1].numpy()


def numbers(result: dict) -> dict:
    return {key: value for key, value in result.items() if isinstance(value, float)}


def test_a_folder_an_archive_and_an_npz_measure_alike(images, real, script, tmp_path):
    folder = measure_images(images, real, script)
    listed = open_collection(Path(images))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for number in reversed(range(listed.count)):
            archive.write(f"{images}/{listed.name(number)}", listed.name(number))
    np.savez(tmp_path / "a.npz", pixels_of(images), listed.labels)
    np.savez(tmp_path / "real.npz", pixels_of(real))
    zipped = measure_images(str(tmp_path / "a.zip"), real, script)
    assert numbers(zipped) == numbers(folder)
    assert zipped["protocol"]["images"]["pixels_sha256"] == folder["protocol"]["images"]["pixels_sha256"]
    samples = measure_images(str(tmp_path / "a.npz"), real, script)
    assert numbers(samples) == numbers(folder)
    metrics = ("fd", "kd", "precision", "recall", "density", "coverage")
    against = measure_images(str(tmp_path / "a.npz"), str(tmp_path / "real.npz"), script, metrics=metrics)
    assert numbers(against).items() <= numbers(folder).items()


def test_shards_are_evaluated_where_they_lie_behind_a_url_too(train, real, script):
    with serving(Path(train).parent) as server:
        far = measure_images(f"{server.url}/validation.json", real, script, metrics=("fd",))
        for sides in ({"folder": f"{server.url}/a.zip"}, {"folder": train, "reference": f"{server.url}/a.zip"}):
            with pytest.raises(UserError, match=rf"{server.url}/a\.zip: a URL may be that of an index of shards"):
                measure_images(**({"reference": real, "features": script} | sides))
    assert far == measure_images(str(Path(train).parent / "validation.json"), real, script, metrics=("fd",))


def test_evaluated_twice_gives_the_same_bytes(images, real, script, monkeypatch, tmp_path):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path))
    first, kept = (measure_images(images, real, script) for _ in range(2))
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "other"))
    anew = measure_images(images, real, script)
    assert json.dumps(first) == json.dumps(kept) == json.dumps(anew)


def test_a_reference_is_read_once(images, real, script, monkeypatch, tmp_path):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path))
    measure_images(images, real, script, metrics=("fd", "kd"))
    monkeypatch.setattr(reference, "pass_over", lambda *_: pytest.fail("looked at again"))
    measure_images(images, real, script, metrics=("fd", "kd"))


def test_the_protocol_says_what_was_compared_with_what(images, real, script):
    protocol = measure_images(images, real, script, metrics=("fd", "kd"))["protocol"]
    assert protocol["images"]["kind"] == protocol["reference"]["kind"] == "folder"
    assert (protocol["samples"], protocol["reference"]["samples"]) == (SAMPLES, 400)
    assert protocol["kd"]["real"] == protocol["kd"]["fake"] == SAMPLES
    assert protocol["features"]["fingerprint"] == TorchScriptFeatures(script, (8, 8), CPU).fingerprint
    assert protocol["images"]["pixels_sha256"] != protocol["reference"]["pixels_sha256"]
    assert len(protocol["images"]["pixels_sha256"]) == 64
    assert not {"recall", "density"} & set(protocol)


def test_moments_stand_for_their_images(images, real, script, tmp_path):
    of_images = measure_images(images, real, script, metrics=("fd",))
    options = EvaluationOptions(features=script, workers=0)
    saved = evaluate_images(real, options, CPU, keep_moments=True)
    write_moments(tmp_path / "real.npz", saved.moments, saved.result["protocol"])
    of_moments = measure_images(images, str(tmp_path / "real.npz"), script, metrics=("fd",))
    assert of_moments["fd_colour_moments"] == pytest.approx(of_images["fd_colour_moments"], rel=1e-9)
    assert of_moments["protocol"]["reference"]["moments"]["made"]["samples"] == 400


@pytest.mark.filterwarnings("ignore")
def test_public_tools_read_our_moments_and_we_read_theirs(images, real, script, tmp_path):
    from cleanfid.fid import frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    network = TorchScriptFeatures(script, (8, 8), CPU)
    real_features = network(torch.from_numpy(pixels_of(real)).permute(0, 3, 1, 2)).features.numpy()
    saved = evaluate_images(images, EvaluationOptions(features=script, workers=0), CPU, keep_moments=True)
    write_moments(tmp_path / "ours.npz", saved.moments, saved.result["protocol"])
    with np.load(tmp_path / "ours.npz") as file:  # as pytorch-fid and clean-fid do
        mean, covariance = file["mu"][:], file["sigma"][:]
    theirs = frechet_distance(mean, covariance, real_features.mean(0), np.cov(real_features, rowvar=False))
    real_moments = {"mu": real_features.mean(0).astype(np.float64), "sigma": np.cov(real_features, rowvar=False)}
    fidelity = fid_statistics_to_metric({"mu": mean, "sigma": covariance}, real_moments, verbose=False)
    assert fidelity["frechet_inception_distance"] == pytest.approx(theirs, rel=1e-5)
    np.savez(tmp_path / "theirs.npz", mu=real_features.mean(0), sigma=np.cov(real_features, rowvar=False))
    np.savez(tmp_path / "kid.npz", feats=real_features)
    np.savez(
        tmp_path / "adm.npz",
        mu=real_features.mean(0),
        sigma=np.cov(real_features, rowvar=False),
        mu_s=np.zeros(3),
        sigma_s=np.eye(3),
        arr_0=pixels_of(real),
    )
    for name in ("theirs", "kid", "adm"):
        fid = measure_images(images, str(tmp_path / f"{name}.npz"), script, metrics=("fd",))["fd_colour_moments"]
        assert fid == pytest.approx(theirs, rel=1e-5), name
    metrics = ("kd", "precision", "coverage")
    from_images = numbers(measure_images(images, real, script, metrics=metrics, max_features=400))
    assert numbers(measure_images(images, str(tmp_path / "adm.npz"), script, metrics=metrics)) == from_images
    assert "kd_colour_moments" in measure_images(images, str(tmp_path / "kid.npz"), script, metrics=metrics)


def test_features_without_a_covariance_stand_for_their_own_moments(images, script, tmp_path):
    rows = np.random.default_rng(0).random((40, 10), dtype=np.float32)
    np.savez(tmp_path / "feats.npz", feats=rows)
    np.savez(tmp_path / "mean.npz", feats=rows, mu=rows.mean(0))
    alone, with_mean = (
        measure_images(images, str(tmp_path / name), script, metrics=("fd",))["fd_colour_moments"]
        for name in ("feats.npz", "mean.npz")
    )
    assert alone == with_mean


def test_a_set_against_itself_is_perfect(real, script):
    result = measure_images(real, real, script)
    assert (result["precision"], result["recall"], result["coverage"]) == (1.0, 1.0, 1.0)
    assert result["fd_colour_moments"] < 1e-9
    assert result["intra_fd_colour_moments"] < 1e-9
    assert result["nearest_neighbour_distance"] < 1e-6


def test_dropping_classes_shows_in_recall_and_coverage_but_not_in_precision(real, script, tmp_path):
    for name in "0123":
        shutil.copytree(f"{real}/{name}", tmp_path / "few" / name)
    result = measure_images(str(tmp_path / "few"), real, script, metrics=("precision", "recall", "coverage"))
    assert result["precision"] > 0.95
    assert result["recall"] < 0.85
    assert result["coverage"] < 0.85


def test_intra_fid_is_the_mean_of_the_classes_own(images, real, script):
    by_class = measure_images(images, real, script, metrics=("intra_fd",))
    alone = measure_images(f"{images}/3", f"{real}/3", script, metrics=("fd",))["fd_colour_moments"]
    assert by_class["intra_fd_colour_moments_by_class"]["3"] == pytest.approx(alone, rel=1e-9)
    assert by_class["intra_fd_colour_moments_fewest_of_a_class"] == SAMPLES // 10, (
        "how many a seed draws is no part of the protocol"
    )
    assert by_class["protocol"]["intra_fd"] == {"fewest_of_a_class": {"real": 40}}
    assert by_class["intra_fd_colour_moments"] == pytest.approx(
        np.mean(list(by_class["intra_fd_colour_moments_by_class"].values())), rel=1e-12
    )


def test_an_intra_fid_of_more_features_than_images_is_the_mean_of_the_classes_own(images, real, tmp_path):
    """Of 192 features, 13 and 40 images a class."""
    path = tmp_path / "pixels.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Viewing()).save(path)
    result = measure_images(images, real, str(path), metrics=("intra_fd",))
    for name in "07":
        alone = measure_images(f"{images}/{name}", f"{real}/{name}", str(path), metrics=("fd",))["fd_pixels"]
        assert result["intra_fd_pixels_by_class"][name] == pytest.approx(alone, rel=1e-7)


def test_a_full_disk_during_an_intra_fid_is_one_sentence(images, real, script, monkeypatch, tmp_path):
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda: io.FileIO("/dev/full", "w"))
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\).* set TMPDIR to a folder with more"
    ):
        measure_images(images, real, script, metrics=("intra_fd",))


@pytest.mark.slow
def test_labelled_samples_are_measured_by_class(train, images, real, monkeypatch, tmp_path):
    monkeypatch.setattr(classifier, "TRAININGS", dict(classifier.TRAININGS))
    shorten_training()
    metrics = ("inception_score", "class_accuracy", "intra_fd", "classification_accuracy_score")
    result = measure_images(images, train, "classifier", metrics=metrics)
    assert 1 < result["inception_score"] < 10
    assert result["class_accuracy"] > 0.5
    assert result["classification_accuracy_score"] > 0.3
    shuffled = tmp_path / "wrong.npz"
    np.savez(shuffled, pixels_of(images), (open_collection(Path(images)).labels + 1) % 10)
    wrong = measure_images(
        str(shuffled), train, "classifier", metrics=("class_accuracy", "classification_accuracy_score")
    )
    assert wrong["class_accuracy"] < 0.2
    assert wrong["classification_accuracy_score"] < 0.2


def test_intra_fid_warns_of_classes_with_few_images(real, script, tmp_path, caplog):
    labels = open_collection(Path(real)).labels
    some = np.concatenate([np.flatnonzero(labels == number)[:6] for number in range(10)])
    np.savez(tmp_path / "some.npz", pixels_of(real)[some], labels[some])
    with caplog.at_level(logging.WARNING):
        measure_images(str(tmp_path / "some.npz"), real, script, metrics=("intra_fd",))
    assert "as few as 6 images of a class" in caplog.text


def mixed(images: str, folder) -> str:
    shutil.copytree(images, folder)
    Image.fromarray(np.zeros((9, 8, 3), dtype=np.uint8)).save(folder / "9" / "x.png")
    return str(folder)


def test_images_of_several_sizes_are_refused_unless_they_may_be_resized(images, real, script, tmp_path):
    folder = mixed(images, tmp_path / "mixed")
    with pytest.raises(
        UserError, match=r"differ in size: 0/0\.png is 8 x 8, 9/x\.png is 9 x 8; .*allow_mixed_sizes=true"
    ):
        measure_images(folder, real, script, metrics=("fd",))
    result = measure_images(folder, real, script, metrics=("fd", "kd"), allow_mixed_sizes=True)
    one_by_one = measure_images(folder, real, script, metrics=("fd", "kd"), allow_mixed_sizes=True, batch_size=1)
    assert numbers(one_by_one) == pytest.approx(numbers(result), rel=1e-5)


def options_of(**options):
    return {"metrics": ("fd",)} | options


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"metrics": ("inception_score",)}, r"inception_score needs a network that predicts classes"),
        ({"metrics": ("class_accuracy",)}, "need labelled real images; give the index of shards"),
        ({"metrics": ("bits_per_dim",)}, "bits_per_dim needs a model"),
        ({"features": "classifier"}, r"evaluation\.features: classifier is trained on the labels"),
        ({"samples": 10}, r"evaluation\.samples: says how a model is evaluated"),
        ({"reference": "nowhere"}, r"evaluation\.reference: nowhere: there is no such file"),
        ({"reference": "train"}, r"evaluation\.reference: train: there is no such file"),
    ],
)
def test_what_cannot_be_measured_is_refused(images, real, script, change, sentence):
    with pytest.raises(UserError, match=sentence):
        measure_images(images, **(options_of(reference=real, features=script) | change))


def test_a_reference_of_another_resolution_is_refused(images, script, tmp_path):
    np.savez(tmp_path / "large.npz", np.zeros((20, 16, 16, 3), dtype=np.uint8))
    with pytest.raises(UserError, match="are 8 x 8, the reference's 16 x 16"):
        measure_images(images, str(tmp_path / "large.npz"), script, metrics=("fd",))


def test_labels_that_are_missing_or_others_are_refused(images, real, script, tmp_path):
    flat, others = tmp_path / "flat.npz", tmp_path / "others"
    np.savez(flat, pixels_of(images))
    with pytest.raises(UserError, match=r"intra_fd needs the class of each image.*arr_1"):
        measure_images(str(flat), real, script, metrics=("intra_fd",))
    with pytest.raises(UserError, match=r"intra_fd needs a reference whose classes have names"):
        measure_images(images, str(flat), script, metrics=("intra_fd",))
    shutil.copytree(images, others)
    (others / "9").rename(others / "nine")
    with pytest.raises(UserError, match="have the class 'nine', which the other side does not"):
        measure_images(str(others), real, script, metrics=("intra_fd",))
    shutil.rmtree(others / "nine")
    with pytest.raises(UserError, match="have fewer of '9'"):
        measure_images(str(others), real, script, metrics=("intra_fd",))


def test_moments_of_other_features_are_refused(images, script, tmp_path):
    np.savez(tmp_path / "moments.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"moments of 2048 dimensions, but colour_moments\.pt .* gives 10"):
        measure_images(images, str(tmp_path / "moments.npz"), script, metrics=("fd",))
    theirs = json.dumps({"features": {"name": "other.pt", "fingerprint": "0" * 64}})
    np.savez(tmp_path / "moments.npz", mu=np.zeros(10), sigma=np.eye(10), protocol=np.array(theirs))
    with pytest.raises(UserError, match=r"was made with other\.pt of other weights"):
        measure_images(images, str(tmp_path / "moments.npz"), script, metrics=("fd",))
    with pytest.raises(UserError, match="holds only moments"):
        measure_images(images, str(tmp_path / "moments.npz"), script, metrics=("fd", "recall"))


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"mu": np.array([None]), "sigma": np.eye(1)}, "cannot be read"),
        ({"mu": np.zeros(3), "sigma": np.eye(2)}, r"mu is \[3\] and sigma \[2, 2\]"),
        ({"mu": np.full(10, np.nan), "sigma": np.eye(10)}, "not finite"),
        ({"feats": np.zeros(10)}, r"feats is \[10\]"),
        ({"feats": np.full((9, 10), np.nan)}, "finite features"),
        ({"mu": np.zeros(10), "sigma": np.eye(10), "feats": np.zeros((9, 4))}, "features have 4 dimensions"),
        ({"mu": np.zeros(10), "sigma": np.eye(10), "protocol": np.array("[]")}, "cannot be read"),
        ({"mu": np.zeros(10), "sigma": np.eye(10), "protocol": np.array("{}")}, "names no features"),
        ({"mu": np.zeros(10), "sigma": -np.eye(10)}, "sigma has a negative eigenvalue"),
        ({"mu": np.zeros(10), "sigma": np.eye(10) - 0.2}, "sigma has a negative eigenvalue"),
        ({"mu": np.zeros(10), "sigma": np.triu(np.ones((10, 10)))}, "sigma is not symmetric"),
        ({"mu": np.zeros(10), "sigma": np.eye(10) * (1 + 1j)}, "sigma is of complex128"),
        ({"mu": np.zeros(10, dtype=bool), "sigma": np.eye(10)}, "mu is of bool"),
        ({"mu": np.zeros(10), "sigma": np.full((10, 10), np.nan)}, "not finite"),
        ({"mu": np.zeros(10), "sigma": np.eye(10) * 1e200}, "not finite"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu is \[0\]"),
    ],
)
def test_moments_that_are_none_are_refused(images, script, tmp_path, arrays, sentence):
    np.savez(tmp_path / "moments.npz", **arrays)
    with pytest.raises(UserError, match=sentence):
        measure_images(images, str(tmp_path / "moments.npz"), script, metrics=("fd",))


@pytest.mark.parametrize("dtype", ["float16", "float32", ">f8", "float64"])
@pytest.mark.parametrize("images_of_reference", [20, 2000])
def test_moments_of_fewer_images_than_dimensions_and_of_any_float_are_some(dtype, images_of_reference, tmp_path):
    features = np.random.default_rng(0).normal(1.0, 3.0, (images_of_reference, 256)).astype("float32")
    covariance = np.cov(features, rowvar=False)
    np.savez(tmp_path / "a.npz", mu=features.mean(0).astype(dtype), sigma=covariance.astype(dtype))
    moments = read_moments(tmp_path / "a.npz")
    assert moments.covariance.dtype == torch.float64
    np.testing.assert_allclose(moments.covariance, covariance, rtol=1e-2, atol=1e-2)


def npz_of(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def header(shape, dtype="<f8"):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"shape": shape, "fortran_order": False, "descr": dtype})
    return stream.getvalue()


@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((10**6, 10**6), "which takes 8000000000000 bytes"),
        ((2**62, 2**62), "bytes, and"),
        ((10, 10), "does not hold"),
        ((-1, 10), "does not hold|cannot be read"),
    ],
    ids=str,
)
def test_an_npz_that_states_more_than_it_holds_asks_for_no_memory(shape, sentence, tmp_path):
    mean = io.BytesIO()
    np.save(mean, np.zeros(10))
    npz_of(tmp_path / "a.npz", mu=mean.getvalue(), sigma=header(shape))
    with pytest.raises(UserError, match=sentence):
        read_moments(tmp_path / "a.npz")


def test_an_npz_that_unpacks_to_more_than_it_states_is_refused(tmp_path):
    mean = io.BytesIO()
    np.save(mean, np.zeros(10))
    npz_of(tmp_path / "a.npz", mu=mean.getvalue(), sigma=header((10, 10)) + bytes(10**8))
    with pytest.raises(UserError, match="does not hold"):
        read_moments(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "/dev/zero"])
def test_a_reference_that_is_a_fifo_or_a_device_is_refused_at_once(name, tmp_path):
    os.mkfifo(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"is a (FIFO|device), not a plain file"):
        holds_moments(tmp_path / name)


def test_too_few_images_for_the_features_are_warned_of_and_far_too_few_refused(
    real, script, tmp_path, caplog, monkeypatch
):
    few = tmp_path / "few.npz"
    np.savez(few, pixels_of(real)[:9])
    with caplog.at_level(logging.WARNING):
        measure_images(str(few), real, script, metrics=("fd",))
    assert "9 images in 10 feature dimensions" in caplog.text
    monkeypatch.setattr("bigtrain.evaluation.sample_counts.LEAST_SHARE", 1)
    with pytest.raises(UserError, match=r"9 images .* are too few for fd in 10 feature dimensions"):
        measure_images(str(few), real, script, metrics=("fd",))


@pytest.mark.parametrize(("metric", "count"), [("kd", 1), ("two_sample_test", 19), ("fd_real", 1)])
def test_images_too_few_for_any_number_are_refused(real, script, tmp_path, metric, count):
    np.savez(tmp_path / "few.npz", pixels_of(real)[:count])
    with pytest.raises(UserError, match=rf"{metric} needs \d+ images of each side, not {count}"):
        measure_images(str(tmp_path / "few.npz"), real, script, metrics=(metric,))
    np.savez(tmp_path / "one.npz", pixels_of(real)[:1])
    with pytest.raises(UserError, match="covariance needs 2 images"):
        evaluate_images(
            str(tmp_path / "one.npz"), EvaluationOptions(features=script, workers=0), CPU, keep_moments=True
        )


def test_features_that_are_not_finite_are_an_error_whatever_is_measured(images, tmp_path):
    path, plain = tmp_path / "not_finite.pt", tmp_path / "plain.npz"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(NotFinite()).save(path)
    np.savez(plain, np.zeros((20, 8, 8, 3), dtype=np.uint8))
    for metric in ("fd", "kd"):
        with pytest.raises(UserError, match=r"not_finite\.pt gave features of the images of .* not finite"):
            measure_images(str(plain), images, str(path), metrics=(metric,))


def test_sample_i_of_a_model_and_of_its_npz_measure_alike(train, real, script, tmp_path):
    from tests.evaluation.evaluation_worlds import evaluate_draws

    index = Index.read(train)
    drawn = RealDigits(index, darker=30)(np.arange(SAMPLES), label_of(np.arange(SAMPLES)))
    np.savez(tmp_path / "a.npz", drawn.permute(0, 2, 3, 1).numpy())
    options = EvaluationOptions(metrics=("fd", "kd"), samples=SAMPLES, features=script, reference=real)
    of_model = evaluate_draws(RealDigits(index, darker=30), index, None, options)
    of_file = measure_images(
        str(tmp_path / "a.npz"), real, script, metrics=("fd", "kd"), kd_subsets=100, kd_subset_size=None
    )
    assert numbers(of_model) == pytest.approx(numbers(of_file), rel=1e-5, abs=1e-12)
