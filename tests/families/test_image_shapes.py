"""Every family learns and draws images in their own shape: grey stays grey, and 24 x 16 stays 24 x 16."""

from typing import Any

import pytest
import torch

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, Samples
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import Family
from bigtrain.training.cost.step import step_cost
from tests.asking import sampled
from tests.training.small_steps import microbatch, run_phase, small_family, small_networks

SHAPES = [
    ("gan", 1, (16, 16)),
    ("vqvae", 1, (16, 16)),
    ("vqvae", 1, (24, 16)),
    ("vqvae", 3, (8, 16)),
    ("vae", 1, (16, 16)),
    ("vae", 1, (24, 16)),
    ("vae", 3, (6, 10)),
    ("vdvae", 1, (16, 16)),
    ("vdvae", 3, (16, 16)),
    ("pixel_prior", 1, (8, 8)),
    ("pixel_prior", 1, (8, 4)),
    ("pixel_prior", 3, (4, 8)),
    ("diffusion", 1, (16, 16)),
    ("diffusion", 1, (24, 16)),
    ("diffusion", 3, (16, 20)),
    ("code_prior", 1, (24, 16)),
]
DRAWN = [case for case in SHAPES if case[0] != "code_prior"]
LIKELIHOODS = [case for case in SHAPES if case[0] not in ("gan", "vqvae")]
CHEAP: dict[str, dict[str, Any]] = {"diffusion": {"sampling": {"steps": 5}}}


def family_of(name: str, channels: int, size: tuple[int, int]) -> Family:
    # Level i of a UNet has maps of the size / 2^i; the shorter side counts.
    unet = {"channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [min(size) // 2]}
    options = {"unet": unet | {"norm_groups": 4}} if name == "diffusion" else {}
    return small_family(name, size, channels, **options, **CHEAP.get(name, {}))


@pytest.mark.parametrize(("name", "channels", "size"), SHAPES, ids=str)
def test_a_step_on_images_of_this_shape_reaches_every_weight(name: str, channels: int, size: tuple[int, int]) -> None:
    family = family_of(name, channels, size)
    networks = small_networks(family)
    for phase in family.phases:
        if "autoencoder" in networks:
            family.initialise(networks, [microbatch(family, phase, samples=8)])
        results = run_phase(family, networks, phase)
        assert all(value.isfinite().all() for value in results.values() if value.is_floating_point())
        reached = {name for name, value in results.items() if name.startswith("gradient of") and value.any()}
        weights = {f"{key}.{name}" for key in phase.trains for name, _ in networks[key].named_parameters()}
        assert reached == {f"gradient of {name}" for name in weights}


@pytest.mark.parametrize(("name", "channels", "size"), DRAWN, ids=str)
def test_what_is_drawn_or_decoded_has_the_shape_of_the_data(name: str, channels: int, size: tuple[int, int]) -> None:
    family = family_of(name, channels, size)
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    labels = torch.tensor([3, 1])
    if family.ability(Samples) is not None:
        prepared = family.prepare_sampling(networks, family.sampling, 0)
        images = sampled(family, prepared, labels, range(2), 0, family.sampling)
    else:
        batch = microbatch(family, family.phases[0], samples=2)
        family.initialise(networks, [batch])
        codes = family.encode(networks, batch["image"])
        assert {level: (len(labels), *known.grid) for level, known in family.code_levels.items()} == {
            level: tuple(grid.shape) for level, grid in codes.items()
        }
        images = family.decode(networks, codes)
    assert images.shape == (2, channels, *size)
    assert images.abs().max() <= 1
    assert images.std() > 0


@pytest.mark.parametrize(("name", "channels", "size"), LIKELIHOODS, ids=str)
def test_likelihoods_are_per_dimension_of_these_images_or_codes(
    name: str, channels: int, size: tuple[int, int]
) -> None:
    family = family_of(name, channels, size)
    height, width = size
    expected = (height // 2) * (width // 2) if name == "code_prior" else channels * height * width
    assert family.dimensions == expected
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    batch = microbatch(family, family.phases[0], samples=2)
    evaluations = 3 if name == "diffusion" else None
    assert family.likelihood(networks, batch, Effort(evaluations))["nats"].shape == (2,)


@pytest.mark.parametrize(("name", "channels", "size"), SHAPES, ids=str)
def test_the_plan_counts_these_images_or_codes(name: str, channels: int, size: tuple[int, int]) -> None:
    height, width = size
    codes = 8 * ((height // 2) * (width // 2) + (height // 4) * (width // 4))
    bytes_of_a_sample = codes if name == "code_prior" else 4 * channels * height * width
    family = family_of(name, channels, size)
    label = 8 if "label" in family.reads else 0
    assert step_cost(family, 3, "fp32").batch == 3 * (bytes_of_a_sample + label)


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("gan", (24, 16), {}, r"data\.image_size: BigGAN makes squares, not 24 x 16; choose one of 16, 32, 64"),
        ("gan", (24, 24), {}, r"data\.image_size: BigGAN has no network for 24; choose one of 16, 32, 64"),
        ("vqvae", (24, 18), {}, r"multiply to 4, which does not divide data\.image_size, 24 x 18; change one of them"),
        (
            "vae",
            (16, 17),
            {},
            r"multipliers: 2 levels need a data\.image_size that is divisible by 2, and 16 x 17 is not; take fewer levels or",
        ),
        (
            "diffusion",
            (16, 17),
            {},
            r"data\.image_size 16 x 17 is not divisible by 2; take fewer levels or another size",
        ),
        (
            "diffusion",
            (24, 16),
            {"unet": {"channels": 8, "multipliers": [1, 2], "attention_resolutions": [12], "norm_groups": 4}},
            r"no level has maps of 12 pixels; at data\.image_size 24 x 16 there are 16, 8 \(of the shorter side\)",
        ),
    ],
)
def test_a_size_that_does_not_fit_is_said_in_one_sentence(
    name: str, size: tuple[int, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((ValueError, UserError), match=message):
        small_family(name, size, **options)


@pytest.mark.parametrize(("size", "written"), [((16, 16), 16), ((24, 16), [24, 16])])
def test_the_description_of_the_data_is_read_back(size: tuple[int, int], written: int | list[int]) -> None:
    spec = DataSpec(size, 1, ("a", "b"), (3, 4), {"codes": CodeLevel(5, (6, 4))}, "f" * 64)
    assert spec.to_json()["image_size"] == written
    assert DataSpec.from_json(spec.to_json()) == spec


def test_a_description_from_before_there_was_grey_is_of_squares_in_colour() -> None:
    spec = DataSpec.from_json({"image_size": 8, "classes": ["a"], "class_counts": [3]})
    assert (spec.size, spec.channels) == ((8, 8), 3)
