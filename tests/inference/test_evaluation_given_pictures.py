"""A family that draws a picture given a picture is measured on what it makes of a split's inputs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.data.splits import describe
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.inference.evaluation import check_early, evaluate_model
from bigtrain.inference.metric_choice import check_metrics, chosen_metrics
from bigtrain.inference.model import Model
from bigtrain.inference.splits import find_splits
from bigtrain.recipe import Recipe, load_recipe
from tests.runs_of import FAMILIES, write_recipe
from tests.toy import Toy
from tests.training.small_steps import small_family, small_networks

CPU = torch.device("cpu")


class Dimming(Toy):
    """Gives its input back, darker; its way of drawing has a name."""

    @property
    def conditions(self) -> Sequence[str]:
        return ("input",)

    def prepare_sampling(self, networks: Networks, sampling: Any, seed: int) -> Networks:
        return {}

    def sample(self, networks: Networks, batch: Microbatch, sampling: Any) -> Tensor:
        assert set(batch) == {"input"}
        return (batch["input"] - 0.2).clamp(min=-1)

    def sampling_name(self, sampling: Any) -> str:
        return "quick"


def recipe_of(tmp_path: Path, *words: str) -> Recipe:
    derived = ["data.derive.input.kind=grey", "data.derive.input.of=image", "data.flip=false"]
    small = ["evaluation.samples=120", "evaluation.split_samples=150", f"evaluation.features={tmp_path}/features.pt"]
    return load_recipe(write_recipe(tmp_path, FAMILIES["toy"]), [*derived, *small, *words])


def model_of(recipe: Recipe) -> tuple[Model, Any, Any]:
    train, validation = find_splits(recipe.data)
    family = Dimming(recipe.family, DataSpec.from_json(describe(train)))
    return Model(family, {}, recipe, {"weights": "ema", "step": 3}, CPU), train, validation


@pytest.fixture
def features(tmp_path: Path) -> None:
    from tests.features.feature_files import save_tiny_inception

    save_tiny_inception(tmp_path / "features.pt")


def test_its_outputs_are_compared_with_their_targets_and_with_the_reference(tmp_path: Path, features: None) -> None:
    recipe = recipe_of(tmp_path, "evaluation.metrics=[fd,fd_real,psnr,ssim]")
    model, train, validation = model_of(recipe)
    check_metrics(model.family, recipe.evaluation, validation)
    check_early(model.family, recipe.evaluation, train, validation, CPU)
    result = evaluate_model(model, train, validation).result
    assert {"fd_features_quick", "fd_features_real", "psnr_quick", "psnr_standard_error_quick", "ssim_quick"} <= set(
        result
    )
    assert 20 < result["psnr_quick"] < 30, "a tenth darker, but for what was black"
    assert 0.5 < result["ssim_quick"] < 1
    protocol = result["protocol"]
    assert protocol["psnr"]["split"] == "validation"
    assert protocol["psnr"]["given"] == ["input"]
    assert protocol["psnr"]["samples"] == 150
    assert protocol["images"]["kind"] == "outputs"
    assert protocol["samples"] == 120
    assert evaluate_model(model, train, validation).result == result


def test_both_are_measured_without_a_word(tmp_path: Path, features: None) -> None:
    model, _, _ = model_of(recipe_of(tmp_path))
    assert chosen_metrics(model.family, model.recipe.evaluation) == ("fd", "recall", "fd_real", "psnr", "ssim")


def test_of_a_family_that_reconstructs_they_are_measured_on_reconstructions(tmp_path: Path) -> None:
    recipe = load_recipe(
        write_recipe(tmp_path, FAMILIES["vqvae"]), ["evaluation.metrics=[psnr,ssim,reconstruction]", "data.channels=3"]
    )
    train, validation = find_splits(recipe.data)
    family = small_family("vqvae")
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    model = Model(family, networks, recipe, {"weights": "ema", "step": 3}, CPU)
    result = evaluate_model(model, train, validation).result
    assert result["psnr"] == pytest.approx(result["reconstruction_psnr"], abs=1)
    assert result["psnr"] != result["reconstruction_psnr"], "the mean of decibels is not that of the mean"
    assert "given" not in result["protocol"]["psnr"]


@pytest.mark.parametrize(
    ("family", "words", "sentence"),
    [
        ("gan", ["evaluation.metrics=[psnr]"], "evaluation.metrics: psnr cannot be measured: a gan cannot reconstruct"),
        ("vqvae", ["evaluation.metrics=[ssim]", "data.validation=null"], r"evaluation\.split: ssim is measured on the"),
        ("diffusion", ["evaluation.metrics=[bits_per_dim]", "evaluation.likelihood_samples=5"], "no use for it"),
    ],
)
def test_what_a_family_cannot_be_measured_by_is_one_sentence(
    family: str, words: list[str], sentence: str, tmp_path: Path
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, FAMILIES[family]), words)
    train, validation = find_splits(recipe.data)
    trained = small_family(family)

    def check() -> None:
        check_metrics(trained, recipe.evaluation, validation)
        check_early(trained, recipe.evaluation, train, validation, CPU)

    with pytest.raises(UserError, match=sentence):
        check()


def test_a_classifier_cannot_select_among_outputs(tmp_path: Path, features: None) -> None:
    model, _, validation = model_of(recipe_of(tmp_path, "evaluation.candidates=2"))
    with pytest.raises(UserError, match=r"evaluation\.candidates: a toy draws one sample for each input"):
        check_metrics(model.family, model.recipe.evaluation, validation)
