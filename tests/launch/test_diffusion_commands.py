"""Diffusion models through the commands: metrics named by their sampler, exports that plain diffusers loads, averages by
name."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.inference.model import open_model
from tests.runs_of import FAMILIES, ROOT, run, write_recipe

LAUNCH = ROOT / "launch"
UNCONDITIONAL = {"class_conditional": False, "label_dropout": 0.0, "loss": "simple", "variance": "fixed_large"}


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a class-conditional model with two more averages, trained for four steps."""
    folder = tmp_path_factory.mktemp("conditional")
    recipe = write_recipe(folder, FAMILIES["diffusion"], steps=4)
    run(LAUNCH / "train.py", recipe, "ema.extra={short: {decay: 0.5}, wide: {sigma_rel: 0.1}}")
    return folder / "run"


@pytest.fixture(scope="module")
def unconditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unconditional")
    run(LAUNCH / "train.py", write_recipe(folder, FAMILIES["diffusion"] | UNCONDITIONAL, steps=4, sample_every=4))
    return folder / "run"


@pytest.fixture(scope="module")
def exported(unconditional: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The export of the unconditional run, and the stderr of the command."""
    folder = tmp_path_factory.mktemp("exported") / "export"
    return folder, run(LAUNCH / "export.py", unconditional, folder).stderr


@pytest.fixture
def propagating() -> Iterator[None]:
    """diffusers' warnings go where pytest listens."""
    from diffusers.utils import logging

    logging.disable_progress_bar()
    logging.enable_propagation()
    yield
    logging.disable_propagation()


CLASSES = ("--classes", "0,1", "--per-class", "2")


def drawn(source: Path, name: Path, *flags: str) -> np.ndarray:
    run(LAUNCH / "sample.py", source, "--npz", name, "--seed", "5", *flags)
    return np.load(name)["arr_0"]


def as_uint8(images: np.ndarray) -> np.ndarray:
    return np.round(images * 255).astype(np.uint8)


def test_plain_diffusers_loads_an_unconditional_export_and_says_nothing_of_what_is_ours(
    exported: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture, propagating: None
) -> None:
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(str(exported[0]))
    assert type(pipeline) is DDPMPipeline
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=20, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert images.shape == (1, 16, 16, 1)

    shutil.copytree(exported[0], tmp_path / "other")
    index = json.loads((tmp_path / "other" / "model_index.json").read_text())
    (tmp_path / "other" / "model_index.json").write_text(json.dumps(index | {"family": "unheard of"}))
    DDPMPipeline.from_pretrained(str(tmp_path / "other"))
    assert "family" in caplog.text, "diffusers says nothing of what it does not know: this test tells nothing"


def test_an_unconditional_export_draws_what_its_run_draws(
    unconditional: Path, exported: tuple[Path, str], tmp_path: Path
) -> None:
    from diffusers import DiffusionPipeline

    folder = str(exported[0])
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    ours = drawn(unconditional, tmp_path / "run.npz", "--per-class", "1")
    assert len(np.unique(ours)) > 10
    assert np.array_equal(ours, drawn(exported[0], tmp_path / "export.npz", "--per-class", "1"))
    assert np.array_equal(as_uint8(pipeline(count=len(ours), seed=5, output_type="np").images), ours)
    few = drawn(unconditional, tmp_path / "few.npz", "--per-class", "1", "--sampler", "dpmpp", "--steps", "5")
    images = pipeline(count=len(few), seed=5, output_type="np", sampler="dpmpp", steps=5).images
    assert np.array_equal(as_uint8(images), few)
    with pytest.raises(ValueError, match="count: this model is not class-conditional"):
        pipeline(class_labels=[0])
    with pytest.raises(ValueError, match=r"torch_dtype=torch\.float64: .* float32"):
        pipeline.to(torch.float64)(count=1)


def test_the_hints_of_export_can_be_run(exported: tuple[Path, str]) -> None:
    import diffusers

    hints = [line.partition("use: ")[2] for line in exported[1].splitlines() if "use: " in line]
    assert len(hints) == 2
    for hint in hints:
        assert len(eval(hint, vars(diffusers))) == 1


def test_exports_of_both_kinds_can_be_open_at_once(
    exported: tuple[Path, str], unconditional: Path, conditional: Path, tmp_path: Path
) -> None:
    """diffusers runs every folder's pipeline.py in the same module."""
    from diffusers import DiffusionPipeline

    def opened(folder: Path) -> Any:
        return DiffusionPipeline.from_pretrained(str(folder), custom_pipeline=str(folder), trust_remote_code=True)

    run(LAUNCH / "export.py", conditional, tmp_path / "conditional")
    kinds = [opened(exported[0]), opened(tmp_path / "conditional"), opened(exported[0])]
    assert [pipeline.family.options.class_conditional for pipeline in kinds] == [False, True, False]


DAMAGE = {
    "no weights": lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink(),
    "a pickle instead": lambda folder: (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(
        folder / "unet" / "diffusion_pytorch_model.bin"
    ),
    "half of the weights": lambda folder: halve(folder / "unet" / "diffusion_pytorch_model.safetensors"),
    "no network": lambda folder: shutil.rmtree(folder / "unet"),
    "no scheduler": lambda folder: shutil.rmtree(folder / "scheduler"),
    "half of a configuration": lambda folder: halve(folder / "unet" / "config.json"),
    "half of the index": lambda folder: halve(folder / "model_index.json"),
    "another pipeline": lambda folder: (folder / "model_index.json").write_text('{"_class_name": "NoPipeline"}'),
}


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_export_is_a_user_error(damage: str, exported: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(exported[0], tmp_path / "export")
    open_model(tmp_path / "export", torch.device("cpu"))
    DAMAGE[damage](tmp_path / "export")
    with pytest.raises(UserError, match="the export is incomplete or damaged"):
        open_model(tmp_path / "export", torch.device("cpu"))


@pytest.mark.slow
def test_a_class_conditional_export_draws_what_its_run_draws(conditional: Path, tmp_path: Path) -> None:
    from diffusers import DiffusionPipeline

    run(LAUNCH / "export.py", conditional, tmp_path / "export")
    flags = (*CLASSES, "--sampler", "dpmpp", "--steps", "5", "--guidance", "1")
    ours = drawn(conditional, tmp_path / "run.npz", *flags)
    assert np.array_equal(ours, drawn(tmp_path / "export", tmp_path / "export.npz", *flags))
    folder = str(tmp_path / "export")
    pipeline = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    sampling = {"sampler": "dpmpp", "steps": 5, "guidance": 1.0}
    images = pipeline(class_labels=[0, 0, 1, 1], seed=5, output_type="np", **sampling).images
    assert np.array_equal(as_uint8(images), ours)


@pytest.mark.slow
def test_further_averages_are_sampled_by_name(conditional: Path, tmp_path: Path) -> None:
    pictures = {
        name: drawn(conditional, tmp_path / f"{name}.npz", *CLASSES, "--weights", name)
        for name in ("ema", "raw", "short", "wide")
    }
    assert len({picture.tobytes() for picture in pictures.values()}) == 4
    result = run(LAUNCH / "sample.py", conditional, "--npz", tmp_path / "x.npz", "--weights", "long", expect=2)
    assert "--weights" in result.stderr
    assert "there are: ema, raw, short, wide" in result.stderr


@pytest.mark.slow
def test_what_is_measured_on_few_steps_says_so_in_its_name(conditional: Path) -> None:
    few = ["family.sampling.sampler=dpmpp", "family.sampling.steps=5"]
    words = ["evaluation.metrics=[fd,bits_per_dim]", "evaluation.samples=20", "evaluation.split_samples=20"]
    result = json.loads(run(LAUNCH / "evaluate.py", conditional, *words, *few).stdout.splitlines()[-1])
    assert {"fd_classifier_dpmpp_5", "bits_per_dim", "bits_per_dim_standard_error"} <= result.keys()
    assert "fd_classifier" not in result
    bound = {"likelihood": "variational", "bits": 8, "evaluations": 20, "timesteps": 20, "seed": 0}
    assert bound.items() <= result["protocol"]["bits_per_dim"].items()
    terms = result["bits_per_dim_terms"]
    assert len(terms["vlb_by_timestep"]) == 20
    assert result["bits_per_dim"] == pytest.approx(terms["prior"] + sum(terms["vlb_by_timestep"]), rel=1e-6)
    assert terms["decoder"] == pytest.approx(terms["vlb_by_timestep"][0])


USER_ERRORS = {
    "an unknown sampler": (("--sampler", "heun"), "ancestral"),
    "more steps than there are": (("--steps", "21"), "sampling.steps: 21 is more than the model's 20 timesteps"),
    "steps that ddim cannot take": (("--sampler", "ddim", "--steps", "19"), "10 or 20 are possible"),
    "steps that begin in an image": (("--sampler", "ddim", "--steps", "2"), "set sampling.spacing: trailing"),
}


@pytest.mark.parametrize("case", USER_ERRORS)
def test_a_user_error_is_one_sentence_and_exit_code_2(case: str, conditional: Path, tmp_path: Path) -> None:
    flags, sentence = USER_ERRORS[case]
    result = run(LAUNCH / "sample.py", conditional, "--out", tmp_path / "x.png", *flags, expect=2)
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr


def test_more_evaluations_than_timesteps_are_refused_by_their_key(conditional: Path) -> None:
    words = ["evaluation.metrics=[bits_per_dim]", "evaluation.likelihood_evaluations=21"]
    result = run(LAUNCH / "evaluate.py", conditional, *words, expect=2)
    assert "evaluation.likelihood_evaluations" in result.stderr
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
