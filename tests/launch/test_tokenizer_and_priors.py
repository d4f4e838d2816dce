"""The way from images to codes to priors to images, through the commands."""

import json
import os
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs_of import FAMILIES, ROOT, digits_tokenizer, run, write_recipe

LAUNCH = ROOT / "launch"


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a prior of the coarser level, trained for four steps."""
    folder = tmp_path_factory.mktemp("top")
    family = {key: value for key, value in FAMILIES["code_prior"].items() if key != "condition"} | {"level": "top"}
    run(LAUNCH / "train.py", write_recipe(folder, family, steps=4))
    return folder / "run"


@pytest.fixture(scope="module")
def bottom(top: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the prior that follows it, with pictures."""
    folder = tmp_path_factory.mktemp("bottom")
    family = dict(FAMILIES["code_prior"], condition=str(top))
    run(LAUNCH / "train.py", write_recipe(folder, family, steps=4, sample_every=4))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(bottom: Path) -> Path:
    run(LAUNCH / "export.py", bottom, bottom.parent / "export")
    return bottom.parent / "export"


@pytest.mark.slow
def test_each_stage_says_the_next(top: Path, tmp_path: Path) -> None:
    tokenizer = digits_tokenizer() / "run"
    stderr = run(LAUNCH / "train.py", tokenizer / "recipe.yaml").stderr
    assert f"accelerate launch launch/encode.py {tokenizer} digits {tokenizer}/codes --flip" in stderr
    stderr = run(LAUNCH / "train.py", top / "recipe.yaml").stderr
    assert f"family.level=bottom family.tokenizer={digits_tokenizer() / 'run'} family.condition={top}" in stderr


def test_a_tokenizer_shows_reconstruction_pairs_in_training_and_by_command(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["vqvae"], steps=2, sample_every=2)
    run(LAUNCH / "train.py", recipe)
    tile = 48 + 2
    assert Image.open(tmp_path / "run" / "samples" / "step_00000002.png").size == (10 * tile + 2, 10 * tile + 2)
    run(LAUNCH / "sample.py", tmp_path / "run", "--reconstruct", "digits", "--out", tmp_path / "pairs.png")
    assert Image.open(tmp_path / "pairs.png").size == (10 * tile + 2, 10 * tile + 2)


def test_the_last_prior_draws_pictures_by_class(bottom: Path, tmp_path: Path) -> None:
    tile = 48 + 2
    assert Image.open(bottom / "samples" / "step_00000004.png").size == (10 * tile + 2, 10 * tile + 2)
    flags = ["--classes", "3,1", "--per-class", "4", "--temperature", "0.9", "--top-k", "8"]
    run(LAUNCH / "sample.py", bottom, "--out", tmp_path / "grid.png", *flags)
    assert Image.open(tmp_path / "grid.png").size == (4 * tile + 2, 2 * tile + 2)


def test_an_export_of_priors_and_tokenizer_draws_what_the_runs_draw(
    bottom: Path, exported: Path, tmp_path: Path
) -> None:
    for source, name in ((bottom, "run.npz"), (exported, "export.npz")):
        run(LAUNCH / "sample.py", source, "--npz", tmp_path / name, "--per-class", "2", "--seed", "5", "--top-p", "0.9")
    ours, theirs = np.load(tmp_path / "run.npz"), np.load(tmp_path / "export.npz")
    assert ours["arr_0"].shape == (20, 16, 16, 1)
    assert len(np.unique(ours["arr_0"])) > 10
    assert np.array_equal(ours["arr_0"], theirs["arr_0"])


def test_plain_diffusers_loads_the_export_where_the_runs_are_not(exported: Path, bottom: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    moved = tmp_path / "moved"
    os.rename(exported, moved)
    try:
        pipeline = DiffusionPipeline.from_pretrained(str(moved), custom_pipeline=str(moved), trust_remote_code=True)
        images = pipeline(class_labels=[0, 1, 2], seed=3, output_type="np").images
    finally:
        os.rename(moved, exported)
    run(
        LAUNCH / "sample.py",
        bottom,
        "--npz",
        tmp_path / "run.npz",
        "--classes",
        "0,1,2",
        "--per-class",
        "1",
        "--seed",
        "3",
    )
    assert np.array_equal(np.round(images * 255).astype(np.uint8), np.load(tmp_path / "run.npz")["arr_0"])


def test_evaluate_gives_bits_per_dim_of_a_whole_split_at_any_world_size(top: Path) -> None:
    results = []
    for processes in (1, 2):
        words = ["evaluation.metrics=[bits_per_dim]", "evaluation.batch_size=7"]
        result = run(LAUNCH / "evaluate.py", top, *words, processes=processes)
        results.append(json.loads(result.stdout.splitlines()[-1]))
    one, two = results
    assert one["protocol"]["bits_per_dim"] | {"fingerprint": ""} == {
        "split": "validation", "samples": 300, "fingerprint": "", "dimensions": 16, "likelihood": "exact",
    }  # fmt: skip
    assert one["bits_per_dim"] == pytest.approx(two["bits_per_dim"], rel=1e-6)
    assert one["bits_per_dim_standard_error"] == pytest.approx(two["bits_per_dim_standard_error"], rel=1e-5)
    # 16 codes, trained for four steps: about the 4 bits that know nothing
    assert 2 < one["bits_per_dim"] < 5
    assert 0 < one["bits_per_dim_standard_error"] < 0.2


def test_evaluate_measures_reconstructions(tmp_path: Path) -> None:
    result = run(LAUNCH / "evaluate.py", digits_tokenizer() / "run")
    values = json.loads(result.stdout.splitlines()[-1])
    assert values["reconstruction_psnr"] == pytest.approx(10 * np.log10(4 / values["reconstruction_mse"]))
    assert 0 < values["reconstruction_nmse"] < 2


@pytest.mark.slow
def test_evaluating_samples_of_codes_compares_them_with_the_images_behind_them(bottom: Path) -> None:
    words = ["evaluation.metrics=[fd,bits_per_dim]", "evaluation.samples=40", "evaluation.candidates=2"]
    result = run(LAUNCH / "evaluate.py", bottom, *words)
    values = json.loads(result.stdout.splitlines()[-1])
    assert values["fd_classifier"] > 0
    assert values["protocol"]["reference"]["samples"] == 1497
    assert values["protocol"]["selection"]["candidates"] == 2
    assert set(values["protocol"]["followed"]) == {"tokenizer", "condition"}


def test_a_candidate_is_kept_because_the_classifier_is_surer_of_it() -> None:
    from bigtrain.inference.candidate_selection import Selection

    images = torch.randint(0, 255, (6, 3, 4, 4), dtype=torch.uint8)
    selection = Selection(3, lambda these, labels: -(these.float().mean((1, 2, 3)) - 50 * labels).abs(), {})
    best = selection.best(iter(images.split(2)), torch.tensor([1, 3]))
    scores = selection.score(images, torch.tensor([1, 3] * 3)).view(3, 2)
    assert torch.equal(best, torch.stack([images[2 * int(scores[:, k].argmax()) + k] for k in range(2)]))


def test_the_next_command_that_encode_names_can_be_run(tmp_path: Path) -> None:
    stderr = run(
        LAUNCH / "encode.py", digits_tokenizer() / "run", "digits", digits_tokenizer() / "codes", "--flip"
    ).stderr
    recipe, *overrides = shlex.split(stderr.split("launch/train.py ")[1])
    assert recipe == "RECIPE.yaml"
    small = ["train.steps=1", f"run.dir={tmp_path / 'run'}", "family.network={channels: 8, layers: 1}"]
    run(LAUNCH / "train.py", ROOT / "recipes" / "pixelcnn_digits.yaml", *overrides, *small)


USER_ERRORS = {
    "a tokenizer draws nothing": (("sample.py", "TOKENIZER", "--out", "x.png"), "encode"),
    "the prior of an upper level is no image": (("sample.py", "TOP", "--out", "x.png"), "codes alone make no image"),
    "a prior reconstructs nothing": (("sample.py", "TOP", "--reconstruct", "digits", "--out", "x.png"), "cannot reconstruct"),
    "a metric that needs samples": (("evaluate.py", "TOP", "evaluation.metrics=[fd]"), "metrics: fd cannot be measured"),
    "a likelihood that there is not": (("evaluate.py", "TOKENIZER", "evaluation.metrics=[bits_per_dim]"), "cannot be"),
    "no list of values in temperature": (("sample.py", "BOTTOM", "--out", "x.png", "--temperature", "0"), "--temperature"),
    "codes where images are asked for": (("encode.py", "TOKENIZER", "CODES", "out"), "codes"),
    "reconstructions of codes": (("sample.py", "TOKENIZER", "--reconstruct", "CODES", "--out", "x.png"), "index of codes"),
    "a classifier with nothing to choose among": (("sample.py", "BOTTOM", "--out", "x.png", "--classifier", "c"), "candidates"),
    "a seed without a draw": (("sample.py", "TOKENIZER", "--reconstruct", "digits", "--out", "x.png", "--seed", "1"), "seed"),
    "a prior encodes nothing": (("encode.py", "TOP", "digits", "out"), "cannot encode images into codes"),
}  # fmt: skip


@pytest.mark.parametrize("case", USER_ERRORS)
def test_a_user_error_is_one_sentence_and_exit_code_2(case: str, top: Path, bottom: Path, tmp_path: Path) -> None:
    words, sentence = USER_ERRORS[case]
    paths = {"TOKENIZER": digits_tokenizer() / "run", "TOP": top, "BOTTOM": bottom}
    paths["CODES"] = digits_tokenizer() / "codes" / "train.json"
    script, *arguments = [str(paths.get(word, tmp_path / word if word in ("x.png", "out") else word)) for word in words]
    result = run(LAUNCH / script, *arguments, expect=2)
    assert sentence in result.stderr
    assert result.stderr.count("error:") == 1
    assert "Traceback" not in result.stderr


def test_a_prior_refuses_codes_of_another_tokenizer_before_it_trains(tmp_path: Path) -> None:
    other = write_recipe(tmp_path / "other", FAMILIES["vqvae"], steps=1)
    run(LAUNCH / "train.py", other, "run.seed=5")
    recipe = write_recipe(tmp_path, FAMILIES["code_prior"], steps=2)
    result = run(LAUNCH / "train.py", recipe, f"family.tokenizer={tmp_path / 'other' / 'run'}", expect=2)
    assert "is not the tokenizer that made the codes" in result.stderr


def test_an_export_of_the_tokenizer_serves_as_well_as_its_run(tmp_path: Path) -> None:
    run(LAUNCH / "export.py", digits_tokenizer() / "run", tmp_path / "export")
    recipe = write_recipe(tmp_path, FAMILIES["code_prior"], steps=1)
    run(LAUNCH / "train.py", recipe, f"family.tokenizer={tmp_path / 'export'}")


def test_codes_are_refused_by_a_family_of_images(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["vqvae"], steps=2)
    result = run(LAUNCH / "train.py", recipe, f"data.train={digits_tokenizer() / 'codes' / 'train.json'}",
                 f"data.validation={digits_tokenizer() / 'codes' / 'validation.json'}", expect=2)  # fmt: skip
    assert "holds codes, but a vqvae learns images" in result.stderr


def test_a_validation_split_that_an_evaluation_will_need_is_missed_before_training(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, FAMILIES["vqvae"], steps=2, evaluate_every=2)
    result = run(LAUNCH / "train.py", recipe, "data.validation=null", expect=2)
    assert "evaluation.split: reconstruction is measured on the validation split" in result.stderr
    assert not list((tmp_path / "run" / "checkpoints").glob("step_*"))


def test_a_selecting_classifier_of_other_classes_is_refused(bottom: Path, tmp_path: Path) -> None:
    class Other(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.float().mean((1, 2, 3))[:, None].expand(-1, 1000)

    torch.jit.script(Other()).save(str(tmp_path / "other.pt"))
    flags = ["--candidates", "2", "--classifier", str(tmp_path / "other.pt")]
    result = run(LAUNCH / "sample.py", bottom, "--out", tmp_path / "x.png", *flags, expect=2)
    assert "gives [2, 1000] for 2 images of 10 classes" in result.stderr


def test_pictures_of_a_prior_whose_condition_is_not_there_are_refused_before_it_trains(tmp_path: Path) -> None:
    prior = dict(FAMILIES["code_prior"], condition="not-there-yet")
    recipe = write_recipe(tmp_path, prior, steps=2, sample_every=1)
    result = run(LAUNCH / "train.py", recipe, expect=2)
    assert "family.condition: not-there-yet: there is no such folder" in result.stderr
