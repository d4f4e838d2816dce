"""The sample command refuses flags that it would have no use for, and names the flag that was given."""

import argparse
from pathlib import Path

import pytest

from bigtrain.errors import UserError
from bigtrain.families.autoencoders.vdvae import VDVAESamplingOptions
from bigtrain.inference.sample_flags import add_flags, from_flags
from launch.sample import main as sample
from tests.runs_of import FAMILIES, ROOT, points_index, run, write_recipe

CATEGORIES = dict(
    FAMILIES["vae"],
    network={"kind": "fully_connected", "hidden_features": 8, "latent_size": 2},
    latents={"kind": "concrete", "categories": 3},
    class_conditional=False,
)


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a VAE whose latents are categories."""
    folder = tmp_path_factory.mktemp("vae")
    run(ROOT / "launch" / "train.py", write_recipe(folder, CATEGORIES, steps=1))
    return folder / "run"


@pytest.mark.parametrize(
    "flags", [["--encode", "POINTS", "--traverse", "4"], ["--reconstruct", "POINTS"]], ids=lambda flags: flags[0]
)
def test_an_index_of_points_is_said_to_be_one_where_images_are_asked_for(
    flags: list[str], vae: Path, tmp_path: Path
) -> None:
    points = str(points_index())
    with pytest.raises(UserError) as refused:
        sample([str(vae), "--out", str(tmp_path / "x.png"), *(word.replace("POINTS", points) for word in flags)])
    assert str(refused.value) == (
        f"{flags[0]}: {points} has no images, but point (array), label (label); give an index of images, as the model's own "
        "data are"
    )


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--temperature", "0.5"], "--temperature: latents that are categories have none; leave it at 1"),
        (
            ["--reconstruct", "digits", "--temperature", "1"],
            "--temperature: says nothing of --reconstruct; leave it out",
        ),
        (
            ["--reconstruct", "digits", "--draw-pixels", "true"],
            "--draw-pixels: says nothing of --reconstruct; leave it out",
        ),
        (
            ["--encode", "digits", "--traverse", "4", "--images", "1,2,3"],
            "--images: --traverse varies one image, and 1,2,3 are several; give the number of one",
        ),
        (
            ["--encode", "digits", "--interpolate", "4", "--per-class", "3"],
            "--per-class: says nothing of --encode, whose images --images numbers; leave it out",
        ),
        (
            ["--encode", "digits", "--interpolate", "4", "--temperature", "1"],
            "--temperature: says nothing of --encode; leave it out",
        ),
        (["--manifold", "4", "--temperature", "1"], "--temperature: says nothing of --manifold; leave it out"),
    ],
)
def test_a_flag_without_an_effect_is_refused_by_its_name(
    flags: list[str], sentence: str, vae: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as refused:
        sample([str(vae), "--out", str(tmp_path / "x.png"), *flags])
    assert str(refused.value) == sentence


def sampling_of(defaults: VDVAESamplingOptions, *words: str) -> VDVAESamplingOptions:
    parser = argparse.ArgumentParser()
    add_flags(parser, VDVAESamplingOptions)
    return from_flags(defaults, parser.parse_args(words))


def test_of_flags_that_say_one_thing_in_two_ways_one_is_given_and_replaces_the_recipes_other() -> None:
    same, each = VDVAESamplingOptions(temperature=0.9), VDVAESamplingOptions(temperatures=(0.5, 0.6))
    assert sampling_of(each, "--temperature", "0.9") == same
    assert sampling_of(same, "--temperatures", "[0.5, 0.6]") == each
    assert sampling_of(each, "--draw-pixels", "false").temperatures == (0.5, 0.6)
    with pytest.raises(UserError, match=r"^--temperature and --temperatures: give one of them$"):
        sampling_of(same, "--temperatures", "[0.5, 0.6]", "--temperature", "0.8")
