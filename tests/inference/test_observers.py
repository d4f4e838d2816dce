"""What is done with averaged weights during training gives way to a signal."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.modules import module as torch_module

from bigtrain.cluster.passes import Reading, Stopped
from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.splits import describe
from bigtrain.errors import UserError
from bigtrain.evaluation.held_out import measure_split
from bigtrain.evaluation.metrics.bits_per_dim import BitsPerDim
from bigtrain.evaluation.metrics.metric import Split
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.result import EvaluationResult
from bigtrain.families.data_spec import DataSpec
from bigtrain.features import classifier
from bigtrain.inference.evaluation import write_evaluation
from bigtrain.inference.model import make_family
from bigtrain.inference.observers import SampleObserver, observers_of
from bigtrain.inference.splits import find_splits
from bigtrain.recipe import load_recipe
from bigtrain.runs.folder import RunFolder
from tests.families.diffusion.test_diffusion import family, network_of
from tests.runs_of import FAMILIES, write_recipe
from tests.training.small_steps import small_family, small_networks

CPU = torch.device("cpu")


class Patience:
    """Ends after so many questions."""

    def __init__(self, asked: int) -> None:
        self.asked, self.most = 0, asked

    def should_stop(self) -> bool:
        self.asked += 1
        return self.asked >= self.most


def test_a_picture_is_given_up_between_two_steps_of_its_sampling(tmp_path: Path) -> None:
    diffusion = family(class_conditional=True, sampling={"sampler": "ancestral", "steps": 25})
    networks = network_of(diffusion)
    observer = SampleObserver(diffusion, RunFolder(tmp_path), 0, CPU)
    long, short = Patience(10**9), Patience(200)
    assert observer.observe(2, networks, long.should_stop) == {}
    assert observer.has(2)
    assert long.asked > 1000
    assert observer.observe(4, networks, short.should_stop) == {}
    assert short.asked == 200
    assert not observer.has(4)
    assert not torch_module._global_forward_pre_hooks  # later calls are free of it


@pytest.mark.parametrize(
    ("kind", "options", "sentence"),
    [
        ("toy", "features={folder}/no_net.pt", r"evaluation\.features: no_net\.pt: not a TorchScript network"),
        ("toy", "reference=nowhere.pt", r"evaluation\.reference: nowhere\.pt"),
        ("toy", "metrics=[intra_fd] samples=12", "intra_fd needs 2 images of each class"),
        ("toy", "metrics=[recall] samples=3", "recall needs more images than neighbours"),
        ("toy", "metrics=[fd,kd] reference={folder}/moments.npz", "kd needs the reference's images"),
        ("toy", "metrics=[fd] reference={folder}/moments.npz", "moments of 7 dimensions, but classifier"),
        ("toy", "metrics=[fd] reference={folder}/large.npz", "16 x 16, the reference's 32 x 32"),
        ("toy", "candidates=2 classifier={folder}/no_net.pt", "the classifier no_net.pt cannot be used"),
        ("toy", "metrics=[fd]", "has one class, so no classifier can be trained"),
        ("vqvae", "metrics=[rfd]", "has one class, so no classifier can be trained"),
        ("vqvae", "metrics=[rfd] features={folder}/no_net.pt", r"evaluation\.features: no_net\.pt: not a TorchScript"),
        ("diffusion", "metrics=[bits_per_dim] likelihood_evaluations=50", r"from 2 \.\. 20 evaluations, not 50"),
    ],
)
def test_what_the_first_evaluation_would_refuse_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, options: str, sentence: str
) -> None:
    short = {role: replace(training, most_images=640) for role, training in classifier.TRAININGS.items()}
    monkeypatch.setattr(classifier, "TRAININGS", short)
    np.savez(tmp_path / "moments.npz", mu=np.zeros(7), sigma=np.eye(7))
    np.savez(tmp_path / "large.npz", np.zeros((20, 32, 32, 3), dtype=np.uint8))
    (tmp_path / "no_net.pt").write_bytes(b"nothing")
    words = [f"evaluation.{word.format(folder=tmp_path)}" for word in options.split()]
    words += ["data.classes=[3]"] if "one class" in sentence else []
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES[kind], evaluate_every=10), words)
    index, validation = find_splits(recipe.data)
    trained = make_family(recipe, DataSpec.from_json(describe(index)))
    with pytest.raises(UserError, match=sentence):
        observers_of(trained, RunFolder(tmp_path), recipe, index, validation, CPU)


def test_what_the_smaller_evaluations_of_a_training_would_refuse_is_refused_too(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, FAMILIES["toy"], evaluate_every=10, evaluate_samples=12)
    recipe = load_recipe(path, ["evaluation.metrics=[intra_fd]", "evaluation.samples=1000"])
    index = Index.read(digits_index("train", (16, 16)))
    toy = make_family(recipe, DataSpec.from_json(describe(index)))
    with pytest.raises(UserError, match="intra_fd needs 2 images of each class"):
        observers_of(toy, RunFolder(tmp_path), recipe, index, index, CPU)


def test_a_likelihood_is_given_up_between_two_evaluations_of_its_network(one_cache_for_all: Path) -> None:
    index = Index.read(digits_index("validation", (16, 16)))
    network = nn.Linear(1, 1)
    patience = Patience(3)

    def likelihood(numbers: Any, batch: Any) -> dict[str, torch.Tensor]:
        for _ in range(1000):
            network(torch.zeros(1, 1))
        return {"nats": torch.zeros(len(numbers), dtype=torch.float64)}

    try:
        split = Split(index, 8, EvaluationOptions(), CPU, dimensions=192)
        reading = Reading(8, 0, patience.should_stop)
        measure_split([BitsPerDim(split)], likelihood, split, reading, ["image"], "likelihood")
    except Stopped:
        assert patience.asked == 3
    else:
        raise AssertionError("it went on to its end")


def test_no_evaluation_overwrites_another(tmp_path: Path) -> None:
    """Neither one of another protocol nor one of other metrics; the same measurement, made again, has one file."""
    results: list[dict[str, Any]] = [
        {"fd_classifier": 1.0, "protocol": {"seed": 0}},
        {"nearest_neighbour_distance": 2.0, "protocol": {"seed": 0}},
        {"fd_classifier": 3.0, "protocol": {"seed": 1}},
        {"nearest_neighbour_distance": 4.0, "protocol": {"seed": 1}},
    ]
    paths = [write_evaluation(tmp_path, 7, EvaluationResult(result)) for result in results * 2]
    assert paths[:4] == paths[4:]
    assert paths[0] == RunFolder(tmp_path).evaluation(7)
    assert [json.loads(path.read_text()) for path in paths[:4]] == results
    assert len(list((tmp_path / "evaluations").iterdir())) == 4


def test_a_file_that_is_no_evaluation_is_left_alone(tmp_path: Path) -> None:
    path = RunFolder(tmp_path).evaluation(7)
    path.parent.mkdir()
    path.write_text("[]")
    written = write_evaluation(tmp_path, 7, EvaluationResult({"fd_classifier": 1.0, "protocol": {}}))
    assert path.read_text() == "[]"
    assert json.loads(written.read_text())["fd_classifier"] == 1.0


def test_no_evaluation_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "evaluations").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot write the evaluation \(is a link"):
        write_evaluation(tmp_path / "run", 7, EvaluationResult({"fd_classifier": 1.0, "protocol": {}}))
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(("channels", "size", "mode"), [(1, (24, 16), "L"), (3, (16, 24), "RGB")])
def test_a_picture_during_training_has_the_shape_of_the_data(
    channels: int, size: tuple[int, int], mode: str, tmp_path: Path
) -> None:
    unet = {"channels": 4, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [], "norm_groups": 2}
    diffusion = small_family("diffusion", size, channels, unet=unet, sampling={"sampler": "dpmpp", "steps": 2})
    observer = SampleObserver(diffusion, RunFolder(tmp_path), 0, CPU)
    networks = {name: network.eval() for name, network in small_networks(diffusion).items()}
    assert observer.observe(2, networks, lambda: False) == {}
    with Image.open(RunFolder(tmp_path).samples(2)) as picture:
        assert picture.mode == mode
        height, width = (3 * side + 2 for side in size)  # enlarged to at least 48 pixels, and a line
        assert picture.size == (10 * width + 2, 10 * height + 2)
