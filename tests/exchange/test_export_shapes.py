"""Exports draw images in the shape of the data, and grey ones as pictures of mode L."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from bigtrain.data.fields.pictures import to_images
from bigtrain.exchange.export import export, opened
from bigtrain.exchange.pipeline import FamilyPipeline, family_pipeline_of
from bigtrain.families.abilities import Samples
from bigtrain.families.family import Family
from bigtrain.pictures import to_uint8
from tests.asking import asked, sampled
from tests.training.small_steps import small_family, small_networks

PLAIN: dict[str, Any] = {"class_conditional": False, "label_dropout": 0.0, "loss": "simple", "variance": "fixed_large"}
SHAPES = [(1, (16, 16)), (1, (24, 16)), (3, (16, 24))]


def exported(family: Family, folder: Path) -> list[np.ndarray]:
    """Exports the family with small weights; returns the two images that it draws itself."""
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    prepared = family.prepare_sampling(networks, family.sampling, 0)
    images = to_uint8(sampled(family, prepared, torch.tensor([0, 1]), range(2), 0, family.sampling))
    exported = {name: networks[name] for name in family.sampled_components}
    export(folder, family, exported, recipe_yaml="", provenance={})
    return [image.permute(1, 2, 0).numpy() for image in images]


def assert_pictures(pictures: list[Image.Image], channels: int, size: tuple[int, int]) -> None:
    for picture in pictures:
        assert picture.mode == ("L" if channels == 1 else "RGB")
        assert (picture.height, picture.width) == size


@pytest.mark.parametrize(("channels", "size"), SHAPES, ids=str)
def test_plain_diffusers_draws_an_exported_ddpm_in_the_datas_shape(
    channels: int, size: tuple[int, int], tmp_path: Path
) -> None:
    family = small_family("diffusion", size, channels, **PLAIN, unet=_unet(size))
    own = exported(family, tmp_path / "export")
    pipeline = DDPMPipeline.from_pretrained(str(tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    assert_pictures(pipeline(num_inference_steps=5, batch_size=2).images, channels, size)

    ours = family_pipeline_of(DDPMPipeline).from_pretrained(str(tmp_path / "export"))
    ours.set_progress_bar_config(disable=True)
    pictures = ours(count=2, seed=0).images
    assert_pictures(pictures, channels, size)
    assert all(np.array_equal(np.array(a).reshape(b.shape), b) for a, b in zip(pictures, own, strict=True))
    networks, _ = opened(tmp_path / "export", family)
    assert networks["unet"].unet.config.in_channels == channels


@pytest.mark.parametrize(("name", "size"), [("gan", (16, 16)), ("pixel_prior", (8, 4))])
def test_the_exports_own_pipeline_draws_grey_as_grey(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    family = small_family(name, size, channels=1)
    own = exported(family, tmp_path / "export")
    pipeline = FamilyPipeline.from_pretrained(str(tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    pictures = pipeline(class_labels=[0, 1], seed=0).images
    assert_pictures(pictures, 1, size)
    assert all(np.array_equal(np.array(a).reshape(b.shape), b) for a, b in zip(pictures, own, strict=True))
    assert pipeline(class_labels=[0, 1], seed=0, output_type="np").images.shape == (2, *size, 1)


def test_an_export_takes_a_list_or_a_tensor_of_classes_and_says_so(tmp_path: Path) -> None:
    family = small_family("gan", (16, 16), channels=1)
    exported(family, tmp_path / "export")
    pipeline = FamilyPipeline.from_pretrained(str(tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    by_list = pipeline(class_labels=[0, 1], seed=0, output_type="np").images
    for given in (torch.tensor([0, 1]), np.array([0, 1])):
        assert np.array_equal(pipeline(class_labels=given, seed=0, output_type="np").images, by_list)
    for wrong, sentence in (
        (1, "class_labels: give a list, one class for each image"),
        ([], "class_labels: give a list, one class for each image"),
        ([0.5], r"class_labels: \[0.5\] are not all numbers of classes"),
        ([-1], r"class_labels: \[-1\] are not among 0 .."),
    ):
        with pytest.raises(ValueError, match=sentence):
            pipeline(class_labels=wrong, seed=0)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ({"truncatoin": 0.5}, "^truncatoin: is no option of this model; there are truncation, statistics, .*$"),
        ({"truncation": 0}, "^truncation: must be at least 1e-06 \\(given: 0\\)$"),
    ],
)
def test_a_wrong_option_of_an_export_is_one_sentence(option: dict[str, float], sentence: str, tmp_path: Path) -> None:
    exported(small_family("gan", (16, 16), channels=1), tmp_path / "export")
    pipeline = FamilyPipeline.from_pretrained(str(tmp_path / "export"))
    with pytest.raises(ValueError, match=sentence):
        pipeline(class_labels=[0], **option)


def _unet(size: tuple[int, int]) -> dict[str, Any]:
    resolutions = [min(size) // 2]
    return {
        "channels": 8,
        "multipliers": [1, 2],
        "blocks_per_level": 1,
        "attention_resolutions": resolutions,
        "norm_groups": 4,
    }


def test_an_export_of_a_translation_takes_pictures_of_its_inputs_shape_and_says_what_it_wants(tmp_path: Path) -> None:
    family = small_family("translation", (16, 24), channels=3)
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    (usage,) = export(tmp_path / "export", family, {"generator": networks["generator"]}, recipe_yaml="", provenance={})
    assert usage.expression.endswith("(input=[PIL.Image.open('INPUT.png')], seed=0).images")
    pipeline = FamilyPipeline.from_pretrained(str(tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    assert_pictures(pipeline(input=[Image.new("L", (24, 16))] * 2, seed=0).images, 3, (16, 24))
    for wrong, sentence in (
        ([], "input: this model makes an image from it"),
        (Image.new("L", (24, 16)), "input: this model makes an image from it; give a list of PIL images"),
        (torch.zeros(1, 16, 24, dtype=torch.uint8), "give a list of PIL images, or uint8"),
        ([Image.new("P", (24, 16))], "input: has an image of mode P; make it L"),  # its pixels are numbers of colours
        ([Image.new("RGB", (24, 16))], "16 x 24 pixels and 3 channels, and this model was trained on 16 x 24 and 1"),
        ([Image.new("L", (8, 8))], "8 pixels and 1 channels, and this model was trained on 16 x 24 and 1"),
        ([Image.new("L", (24, 16)), Image.new("L", (8, 8))], "input: the images differ in size or in channels"),
    ):
        with pytest.raises(ValueError, match=sentence):
            pipeline(input=wrong, seed=0)


def test_an_export_of_a_translation_makes_of_pictures_what_the_family_makes_of_them(tmp_path: Path) -> None:
    family = small_family("translation", (16, 24), channels=3)
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    export(tmp_path / "export", family, {"generator": networks["generator"]}, recipe_yaml="", provenance={})
    pipeline = FamilyPipeline.from_pretrained(str(tmp_path / "export"))
    pipeline.set_progress_bar_config(disable=True)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 16, 24), dtype=np.uint8)
    inputs = to_images(torch.from_numpy(pixels[..., None]), torch.zeros(3, dtype=torch.bool), torch.device("cpu"))
    samples = family.require(Samples, "the test")
    prepared = samples.prepare_sampling(networks, samples.sampling, 7)
    own = to_uint8(samples.sample(prepared, asked({"input": inputs}, range(3), 7), samples.sampling))
    wanted = own.permute(0, 2, 3, 1).numpy()
    for given in ([Image.fromarray(picture) for picture in pixels], torch.from_numpy(pixels[:, None])):
        drawn = np.stack([np.asarray(picture) for picture in pipeline(input=given, seed=7).images])
        np.testing.assert_array_equal(drawn, wanted)
