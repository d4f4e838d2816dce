"""Diffusion models through the doors: metrics named by their sampler, exports that plain diffusers loads, averages by name."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.runs_of import FAMILIES, ROOT, run, write_recipe

LAUNCH = ROOT / "launch"
UNCONDITIONAL = {"class_conditional": False, "label_dropping": 0.0, "loss": "simple", "variance": "fixed_large"}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a class-conditional model with two more averages, trained for four steps."""
    folder = tmp_path_factory.mktemp("conditional")
    recipe = write_recipe(folder, FAMILIES["diffusion"], steps=4)
    run(LAUNCH / "train.py", recipe, "ema.further={short: {decay: 0.5}, wide: {relative_width: 0.1}}")
    return folder / "run"


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unconditional")
    run(LAUNCH / "train.py", write_recipe(folder, FAMILIES["diffusion"] | UNCONDITIONAL, steps=4, sample_every=4))
    return folder / "run"


def drawn(source: Path, name: Path, *flags: str) -> np.ndarray:
    run(LAUNCH / "sample.py", source, "--npz", name, "--classes", "0,1", "--per-class", "2", "--seed", "5", *flags)
    return np.load(name)["arr_0"]


def test_plain_diffusers_loads_an_unconditional_export_and_so_does_the_sample_door(
    unconditional: Path, tmp_path: Path
) -> None:
    from diffusers import DDPMPipeline

    run(LAUNCH / "export.py", unconditional, tmp_path / "export")
    assert not (tmp_path / "export" / "pipeline.py").exists()
    pipeline = DDPMPipeline.from_pretrained(str(tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=20, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (1, 16, 16, 3)
    ours = drawn(unconditional, tmp_path / "run.npz")
    assert np.array_equal(ours, drawn(tmp_path / "export", tmp_path / "export.npz"))
    assert len(np.unique(ours)) > 10


def test_a_class_conditional_export_draws_what_its_run_draws(conditional: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    run(LAUNCH / "export.py", conditional, tmp_path / "export")
    flags = ("--sampler", "dpmpp", "--steps", "5", "--guidance", "1")
    ours = drawn(conditional, tmp_path / "run.npz", *flags)
    assert np.array_equal(ours, drawn(tmp_path / "export", tmp_path / "export.npz", *flags))
    folder = str(tmp_path / "export")
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    sampling = {"sampler": "dpmpp", "steps": 5, "guidance": 1.0}
    images = pipeline(class_labels=[0, 0, 1, 1], seed=5, output_type="np", **sampling).images
    assert np.array_equal(np.round(images * 255).astype(np.uint8), ours)


def test_further_averages_are_sampled_by_name(conditional: Path, tmp_path: Path) -> None:
    pictures = {
        name: drawn(conditional, tmp_path / f"{name}.npz", "--weights", name) for name in ("ema", "raw", "short", "wide")
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == 4
    result = run(LAUNCH / "sample.py", conditional, "--npz", tmp_path / "x.npz", "--weights", "long", expect=2)
    assert "--weights" in result.stderr
    assert "there are ema, raw, short, wide" in result.stderr


def test_what_is_measured_on_few_steps_says_so_in_its_name(conditional: Path) -> None:
    few = ["family.sampling.sampler=dpmpp", "family.sampling.steps=5"]
    words = ["evaluation.metrics=[fid,bits_per_dim]", "evaluation.samples=20", "evaluation.split_samples=20"]
    result = json.loads(run(LAUNCH / "evaluate.py", conditional, *words, *few).stdout.splitlines()[-1])
    assert {"fid_dpmpp_5", "bits_per_dim", "bits_per_dim_standard_error"} <= result.keys()
    assert "fid" not in result
    terms = result["bits_per_dim_terms"]
    assert len(terms["vlb_by_timestep"]) == 20
    assert result["bits_per_dim"] == pytest.approx(terms["prior"] + sum(terms["vlb_by_timestep"]), rel=1e-6)
    assert terms["decoder"] == pytest.approx(terms["vlb_by_timestep"][0])


MISTAKES = {
    "an unknown sampler": (("--sampler", "heun"), "ancestral"),
    "more steps than there are": (("--steps", "21"), "sampling.steps: 21 is more than the model's 20 timesteps"),
    "steps that ddim cannot take": (("--sampler", "ddim", "--steps", "19"), "10 or 20 can"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(mistake: str, conditional: Path, tmp_path: Path) -> None:
    flags, sentence = MISTAKES[mistake]
    result = run(LAUNCH / "sample.py", conditional, "--out", tmp_path / "x.png", *flags, expect=2)
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_guidance_of_an_unconditional_model_is_refused(unconditional: Path, tmp_path: Path) -> None:
    result = run(LAUNCH / "sample.py", unconditional, "--out", tmp_path / "x.png", "--guidance", "1", expect=2)
    assert "sampling.guidance" in result.stderr
    assert "unconditional" in result.stderr


def test_a_size_that_the_network_cannot_halve_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    unet = dict(FAMILIES["diffusion"]["unet"], multipliers=[1, 1, 1, 1, 1, 1], attention_resolutions=[])
    recipe = write_recipe(tmp_path, dict(FAMILIES["diffusion"], unet=unet), steps=2)
    result = run(LAUNCH / "train.py", recipe, expect=2)
    assert "multipliers: 6 levels halve the image 5 times" in result.stderr
    assert not (tmp_path / "run").exists()
