from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.families.abilities import Samples
from bigtrain.families.autoencoders.vqvae import VQVAE, VQVAEOptions
from bigtrain.families.data_spec import CodeLevel, DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch, Networks
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.randomness import Draws
from bigtrain.sizes import size_of
from tests.asking import reconstructed

SPEC = DataSpec((16, 16), 3, ("a", "b"), (30, 34))
AUTOENCODER = {"channels": 8, "residual_channels": 4, "embedding_dim": 4, "codebook_size": 16}


def family(autoencoder: dict | None = None, **options: object) -> VQVAE:
    known = {"kind": "vqvae", "optimizer": {"lr": 1e-3}, "autoencoder": AUTOENCODER | (autoencoder or {})}
    return VQVAE(VQVAEOptions.model_validate(known | options), SPEC)


def networks_of(vqvae: VQVAE) -> Networks:
    return {name: build_network(vqvae, name, seed=0) for name in vqvae.components}


def microbatch(n: int = 8, seed: int = 0) -> Microbatch:
    images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).tanh() * 0.5 - 0.2
    return Microbatch({"image": images}, range(n), Draws(0), torch.device("cpu"), n)


def test_the_loss_is_the_papers_with_the_error_in_units_of_the_datas_variance() -> None:
    vqvae, batch = family(commitment_weight=0.5, pixel_variance=0.3), microbatch()
    networks = networks_of(vqvae)
    vqvae.initialise(networks, [batch])
    losses = vqvae.loss(networks, batch)
    made = networks["autoencoder"](batch["image"])
    mse = (made.images - batch["image"]).square().mean()
    torch.testing.assert_close(losses.total, mse / 0.3 + 0.5 * made.commitment)
    torch.testing.assert_close(losses.terms["nmse"], mse / 0.3)
    by_image = (made.images - batch["image"]).square().mean((1, 2, 3))
    torch.testing.assert_close(losses.terms["psnr"], (10 * torch.log10(4 / by_image)).mean())


def test_the_codebooks_loss_is_there_only_where_they_learn_by_gradient() -> None:
    vqvae, batch = family({"codebook": "gradient", "dead_code_threshold": 0}), microbatch()
    networks = networks_of(vqvae)
    vqvae.initialise(networks, [batch])
    made, losses = networks["autoencoder"](batch["image"]), vqvae.loss(networks, batch)
    torch.testing.assert_close(losses.total, losses.terms["nmse"] + 0.25 * made.commitment + made.codebook_loss)
    losses.total.backward()
    assert networks["autoencoder"].quantisers()["codes"].codebook.grad.any()


def test_the_variance_is_measured_over_all_pixels_of_the_first_images() -> None:
    vqvae, batches = family(), [microbatch(seed=0), microbatch(seed=1)]
    networks = networks_of(vqvae)
    vqvae.initialise(networks, batches)
    expected = torch.cat([batch["image"] for batch in batches]).var(correction=0)
    torch.testing.assert_close(networks["autoencoder"].pixel_variance, expected)


def test_images_of_one_colour_are_refused_where_the_variance_is_to_be_measured() -> None:
    batch = microbatch()
    batch = replace(batch, fields={"image": torch.full_like(batch["image"], 0.3)})
    vqvae = family()
    with pytest.raises(UserError, match=r"family\.pixel_variance"):
        vqvae.initialise(networks_of(vqvae), [batch])
    vqvae = family(pixel_variance=0.25)
    networks = networks_of(vqvae)
    vqvae.initialise(networks, [batch])
    assert vqvae.loss(networks, batch).total.isfinite()


def test_training_brings_the_error_down_and_the_readings_tell_of_the_codebook() -> None:
    vqvae = family()
    networks, batch = networks_of(vqvae), microbatch()
    autoencoder = networks["autoencoder"]
    vqvae.initialise(networks, [batch])
    set_recording(autoencoder, True)
    optimizer = torch.optim.Adam(autoencoder.parameters(), lr=3e-3)
    errors = []
    for _ in range(60):
        losses = vqvae.loss(networks, batch)
        optimizer.zero_grad()
        losses.total.backward()
        optimizer.step()
        commit(autoencoder, torch.tensor(True))
        errors.append(losses.terms["nmse"].item())
    assert errors[-1] < 0.7 * errors[0]
    readings = vqvae.phases[0].reports(networks)
    assert set(readings) == {"perplexity", "usage", "restarts"}
    assert 1 < readings["perplexity"] <= 16


def test_readings_name_their_level_where_there_are_several() -> None:
    vqvae = family({"levels": {"bottom": 2, "top": 2}, "dead_code_threshold": 0})
    readings = vqvae.phases[0].reports(networks_of(vqvae))
    assert set(readings) == {"perplexity/top", "usage/top", "perplexity/bottom", "usage/bottom"}


def test_code_levels_are_what_encoding_gives_and_decoding_it_is_the_reconstruction() -> None:
    vqvae = family({"levels": {"bottom": 2, "top": 4}})
    networks, images = networks_of(vqvae), microbatch()["image"]
    codes = vqvae.encode(networks, images)
    assert dict(vqvae.code_levels) == {"top": CodeLevel(16, (2, 2)), "bottom": CodeLevel(16, (8, 8))}
    assert list(codes) == list(vqvae.code_levels)
    for name, level in vqvae.code_levels.items():
        assert codes[name].dtype == torch.int64
        assert codes[name].shape == (len(images), *level.grid)
    reconstruction: Tensor = reconstructed(vqvae, networks, images)
    assert torch.equal(vqvae.decode(networks, codes), reconstruction)
    assert reconstruction.abs().max() <= 1
    assert not reconstruction.requires_grad


def test_a_tokenizer_says_why_it_draws_nothing_and_what_to_do() -> None:
    assert family().ability(Samples) is None
    assert "launch/encode.py" in family().why_not(Samples)


def test_levels_that_do_not_fit_the_images_are_refused_with_the_key() -> None:
    with pytest.raises(ValueError, match=r"family\.autoencoder\.levels.*data\.image_size"):
        family({"levels": {"codes": 32}})


@pytest.mark.parametrize("name", ["vqvae_digits", "vqvae_cifar10", "vqvae2_imagenet"])
def test_recipes_build_their_family(name: str) -> None:
    from bigtrain.recipe import load_recipe
    from tests.runs_of import ROOT

    recipe = load_recipe(ROOT / "recipes" / f"{name}.yaml")
    spec = DataSpec(size_of(recipe.data.image_size), 3, ("a",), (1000,))
    levels = VQVAE(recipe.family, spec).code_levels
    grids = {name: level.grid[0] for name, level in levels.items()}
    expected = {
        "vqvae_digits": {"codes": 4}, "vqvae_cifar10": {"codes": 8}, "vqvae2_imagenet": {"top": 32, "bottom": 64},
    }  # fmt: skip
    assert grids == expected[name]
