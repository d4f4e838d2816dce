"""An export is a diffusers folder in every way that people try: saved again, loaded by fewer arguments, called by diffusers'
own names, in half precision, or opened network by network."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DiffusionPipeline, UNet2DModel

from bigtrain.exchange.card import CARD, EVALUATION, PICTURE
from bigtrain.inference.model import open_model
from launch.evaluate import main as evaluate
from launch.export import main as export
from launch.sample import main as sample

OLD = Path(__file__).parents[1] / "fixtures" / "a3de763"
CPU = torch.device("cpu")
FAMILIES = ("gan", "diffusion", "ddpm", "prior")
"""diffusion is class-conditional, ddpm is not."""


@pytest.fixture(scope="module", autouse=True)
def hub_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """diffusers copies each folder's pipeline.py into its cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    shutil.copytree(OLD, folder / "old")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "old")
        for family in FAMILIES:
            export([f"runs/{family}", str(folder / family)])
    return folder


def load(folder: Path, **options: Any) -> Any:
    pipeline: Any = DiffusionPipeline.from_pretrained(str(folder), trust_remote_code=True, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_ours(folder: Path, **options: Any) -> Any:
    """Of a folder that plain diffusers would load by its own pipeline, too."""
    return load(folder, custom_pipeline=str(folder), **options)


def draw(pipeline: Any, **options: Any) -> np.ndarray:
    labels = "label" in pipeline.family.conditions
    given = {"class_labels": [0, 1]} if labels else {"count": 2}
    images: np.ndarray = pipeline(**{"seed": 5, "output_type": "np"} | given | options).images
    return images


@pytest.mark.parametrize("family", FAMILIES)
def test_an_export_that_was_loaded_is_saved_whole(family: str, exports: Path, tmp_path: Path) -> None:
    loaded = load_ours(exports / family)
    loaded.save_pretrained(str(tmp_path / "again"))
    given, saved = (
        {str(path.relative_to(folder)) for path in folder.rglob("*")}
        for folder in (exports / family, tmp_path / "again")
    )
    assert given - {CARD, PICTURE, EVALUATION} == saved
    assert np.array_equal(draw(load_ours(tmp_path / "again")), draw(loaded))
    opened = open_model(tmp_path / "again", CPU)
    assert opened.fingerprint == open_model(exports / family, CPU).fingerprint


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "ddpm"])
def test_trust_is_all_that_loading_needs(family: str, exports: Path) -> None:
    assert np.array_equal(draw(load(exports / family)), draw(load_ours(exports / family)))


def test_without_trust_nothing_of_the_folder_runs(exports: Path) -> None:
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(str(exports / "diffusion"))
    open_model(exports / "diffusion", CPU)  # which needs no pipeline.py


def test_bigtrains_commands_run_no_code_of_a_folder(exports: Path, tmp_path: Path) -> None:
    for family in FAMILIES:
        copy = tmp_path / family
        loaded = load_ours(exports / family)
        loaded.save_pretrained(str(copy))
        (copy / "pipeline.py").write_text("raise SystemExit('executed')\n")
        (copy / "manifest.json").unlink()
        sample([str(copy), "--npz", str(tmp_path / f"{family}.npz"), "--per-class", "1"])


def test_an_unconditional_export_still_loads_with_plain_diffusers(exports: Path) -> None:
    pipeline = DDPMPipeline.from_pretrained(str(exports / "ddpm"))
    assert type(load(exports / "ddpm")) is DDPMPipeline
    assert pipeline(batch_size=1, num_inference_steps=2).images


@pytest.mark.parametrize("family", ["diffusion", "ddpm"])
def test_the_network_of_a_diffusion_model_opens_alone(family: str, exports: Path) -> None:
    plain = UNet2DModel.from_pretrained(str(exports / family), subfolder="unet")
    ours = open_model(exports / family, CPU)
    conditional = family == "diffusion"
    x, t = torch.randn(2, ours.family.spec.channels, *ours.family.spec.size), torch.tensor([3, 1])
    labels = torch.tensor([0, 1]) if conditional else None
    with torch.no_grad():
        assert torch.allclose(plain(x, t, labels).sample, ours.weights["unet"](x, t, labels), atol=1e-5)


def test_diffusers_own_names_are_taken(exports: Path) -> None:
    pipeline = load(exports / "diffusion")
    ours = draw(pipeline, sampler="dpmpp", steps=3, guidance=1.5)
    theirs = draw(pipeline, sampler="dpmpp", num_inference_steps=3, guidance_scale=2.5)
    assert np.array_equal(ours, theirs)
    generator = torch.Generator().manual_seed(5)
    assert np.array_equal(
        ours, draw(pipeline, sampler="dpmpp", steps=3, guidance=1.5, seed=None, generator=[generator])
    )
    images, *rest = pipeline(class_labels=[1], return_dict=False, num_inference_steps=2)
    assert (len(images), rest) == (1, [])
    assert len(pipeline(class_labels=torch.tensor([0, 1, 1]), batch_size=2, num_inference_steps=2).images) == 3
    assert len(load_ours(exports / "ddpm")(batch_size=3, num_inference_steps=2).images) == 3


@pytest.mark.parametrize(
    ("family", "given", "sentence"),
    [
        ("gan", {"num_inference_steps": 3}, "num_inference_steps: is no option of this model; there are truncation, "),
        ("gan", {"guidance_scale": 3.0}, "guidance_scale: is no option of this model"),
        ("diffusion", {"num_inference_steps": 3, "steps": 3}, "steps by another name, and both are given"),
        ("diffusion", {"guidance_scale": 0.5}, "guidance: must be at least 0"),
        (
            "diffusion",
            {"seed": None, "generator": [torch.Generator(), torch.Generator()]},
            "give one, whose seed keys all images",
        ),
        ("diffusion", {"seed": 5, "generator": torch.Generator()}, "seed and generator: give one of them"),
        ("gan", {"seed": 1.5}, "seed: 1.5 is not a whole number"),
        ("gan", {"seed": "1"}, "seed: '1' is not a whole number"),
    ],
)
def test_what_a_model_has_not_is_one_sentence(family: str, given: dict[str, Any], sentence: str, exports: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        draw(load(exports / family), **given)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_draws_about_the_same(family: str, dtype: torch.dtype, exports: Path) -> None:
    exact = draw(load_ours(exports / family))
    loaded = load_ours(exports / family, torch_dtype=dtype)
    moved = load_ours(exports / family).to(dtype)
    for pipeline in (loaded, moved):
        images = draw(pipeline)
        assert images.shape == exact.shape
        if family != "prior":  # whose codes may be drawn otherwise
            assert np.abs(images - exact).mean() < 0.05
        assert pipeline.computes_in == dtype
        floating = {tensor.dtype for network in pipeline.networks.values() for tensor in network.state_dict().values()}
        assert floating - {torch.int64} == {torch.float32}, "weights and statistics"
    if family in ("gan", "prior"):  # diffusers' own components have been rounded
        assert np.array_equal(draw(moved.to(torch.float32)), exact)


def test_a_precision_of_other_bits_is_refused(exports: Path) -> None:
    with pytest.raises(ValueError, match=r"torch_dtype=torch\.float64: .*float32, bfloat16 or float16"):
        draw(load_ours(exports / "gan").to(torch.float64))


def test_images_that_are_not_finite_are_refused(exports: Path) -> None:
    pipeline = load(exports / "gan").to(torch.float16)
    with torch.no_grad():
        for parameter in pipeline.model.networks["generator"].parameters():
            parameter.mul_(1e6)
    with pytest.raises(FloatingPointError, match=r"not finite: in torch\.float16; compute in bfloat16 or float32"):
        draw(pipeline)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [({"safe_serialization": False}, "holds no pickle"), ({"push_to_hub": True}, "save the folder first")],
)
def test_what_would_break_the_folder_is_refused(
    given: dict[str, Any], sentence: str, exports: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        load(exports / "gan").save_pretrained(str(tmp_path / "out"), **given)


def test_an_export_that_was_saved_again_is_evaluated(exports: Path, tmp_path: Path) -> None:
    load(exports / "gan").save_pretrained(str(tmp_path / "again"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(exports / "old")
        settings = ["evaluation.samples=40", "evaluation.features=features.pt", "evaluation.metrics=[fd]"]
        evaluate([str(tmp_path / "again"), *settings])
    assert list((tmp_path / "again" / "evaluations").glob("step_*.json"))
