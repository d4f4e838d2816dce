"""Rows of what a model makes of data and of latents, and what is said where it cannot."""

from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.errors import UserError
from bigtrain.families.abilities import EncodesLatents, Latents, Likelihood, Reconstructs
from bigtrain.inference.rows import COLUMNS, LatentRows, find_given, redrawn_rows, rows_of
from bigtrain.pictures import to_uint8
from bigtrain.recipe import load_recipe
from tests.asking import asked, sampled
from tests.families_table import CASES
from tests.runs_of import FAMILIES, write_recipe
from tests.training.small_steps import small_family, small_networks

CPU = torch.device("cpu")


def test_rows_show_inputs_above_outputs_above_targets() -> None:
    index = Index.read(digits_index("validation", (16, 16)))
    recipe_data = load_recipe(
        "recipes/ddpm_digits.yaml", ["data.derive.input.kind=edges", "data.derive.input.of=image"]
    ).data
    split = find_given(recipe_data, "validation", "--inputs")
    assert split.samples == index.samples

    def negatives(numbers: np.ndarray, batch: Batch) -> Tensor:
        return -on_device(batch, split.fields, CPU)["input"]

    rows = rows_of(split, 15, CPU, [negatives], ["input"], ["input"], ["image"])
    assert rows.shape == (2 * 3 * COLUMNS, 1, 16, 16)
    given, made, target = (rows[row * COLUMNS : (row + 1) * COLUMNS] for row in range(3))
    assert torch.equal(made, 255 - given)
    assert not torch.equal(given, target)
    assert (rows[-COLUMNS // 2 :] == 255).all(), "missing ones are white"


def test_interpolation_walks_in_equal_steps_from_one_sample_to_the_next() -> None:
    gan = small_family("gan")
    latents = gan.require(Latents, "")
    networks = latents.prepare_sampling(
        {name: network.eval() for name, network in small_networks(gan).items()}, latents.sampling, 0
    )
    rows = LatentRows(latents, networks, latents.sampling, 5, CPU).interpolated([3, 7], 4)
    ends = to_uint8(sampled(gan, networks, torch.tensor([3, 3, 7, 7]), range(4), 5, latents.sampling))
    assert rows.shape == (8, 3, 16, 16)
    assert (rows[[0, 3, 4, 7]].int() - ends.int()).abs().max() <= 1
    begin, end = torch.randn(2, 1, 6).expand(2, 5, 6).double()
    walked = latents.interpolated(begin, end, torch.linspace(0, 1, 5))
    torch.testing.assert_close(walked[1:] - walked[:-1], (end - begin)[:4] / 4)


def test_an_image_is_above_what_is_drawn_with_ever_more_of_its_latents() -> None:
    family = small_family("vdvae", channels=1)
    networks = {name: network.eval() for name, network in small_networks(family).items()}
    model = SimpleNamespace(family=family, weights=networks, device=CPU)
    split = Index.read(digits_index("validation", (16, 16)))
    rows = redrawn_rows(model, family.sampling, split, 10, seed=3).unflatten(0, (-1, COLUMNS)).int()
    assert len(rows) == 1 + 1 + len(family.level_sizes)
    assert [(row - after).abs().float().mean() > 1 for row, after in pairwise(rows)] == [True] * (len(rows) - 1)
    again = redrawn_rows(model, family.sampling, split, 10, seed=4).unflatten(0, (-1, COLUMNS)).int()
    assert torch.equal(rows[0], again[0])
    assert not torch.equal(rows[1], again[1])


OTHER = {
    "temperature": 0.5, "temperatures": (0.5, 0.5, 0.5), "draw_pixels": True,
    "truncation": 0.5, "statistics": "standing", "standing_batches": 1, "standing_batch_size": 2,
}  # fmt: skip
"""A value of each sampling option that is not its default."""


@pytest.mark.parametrize("family", [name for name, case in CASES.items() if Latents in case.abilities])
def test_the_options_that_say_how_latents_are_drawn_are_known(family: str) -> None:
    latents = small_family(family).require(Latents, "")
    drawn = latents.draw_latents(asked({}, range(2)), latents.sampling_class())
    for name in latents.sampling_class.model_fields:
        other = latents.draw_latents(asked({}, range(2)), latents.sampling_class(**{name: OTHER[name]}))
        assert torch.equal(other, drawn) == (name not in latents.drawing_options), name


def test_a_model_of_very_many_latents_has_no_traversals() -> None:
    family = small_family("vdvae", network={**FAMILIES["vdvae"]["network"], "latent_channels": 8})
    with pytest.raises(
        UserError, match=r"--traverse: makes a row for each latent, and this model has 2184 \(at most 1000\)"
    ):
        LatentRows(family, {}, family.sampling, 0, CPU).traversals(2, 3)


def test_a_traversal_varies_one_latent_a_row() -> None:
    gan = small_family("gan")
    latents = gan.require(Latents, "")
    networks = {name: network.eval() for name, network in small_networks(gan).items()}
    drawn: list[Tensor] = []

    class Spy(torch.nn.Module):
        def forward(self, z: Tensor, labels: Tensor) -> Tensor:
            drawn.append(z)
            return networks["generator"](z, labels)

    spied = {"generator": Spy()}
    LatentRows(latents, spied, latents.sampling, 0, CPU).traversals(2, 3)
    assert len(drawn) == latents.latent_size
    for number, z in enumerate(drawn):
        assert z[:, number].tolist() == [-3, 0, 3]
        others = [column for column in range(latents.latent_size) if column != number]
        assert (z[:, others] == z[:1, others]).all()
    with pytest.raises(UserError, match=f"is for two latents, and this model has {latents.latent_size}"):
        LatentRows(latents, networks, latents.sampling, 0, CPU).manifold(0, 3)


def test_what_a_family_lacks_is_one_sentence_that_names_those_that_have_it() -> None:
    gan = small_family("gan")
    assert gan.ability(Reconstructs) is None
    with pytest.raises(UserError, match=r"^runs/a: a gan cannot reconstruct images; family\.kind: .*vqvae.* can$"):
        gan.require(Reconstructs, "runs/a")
    with pytest.raises(UserError, match=r"give likelihoods; family\.kind: .*diffusion.*prior"):
        gan.require(Likelihood, "runs/a")
    assert gan.ability(EncodesLatents) is None
    assert small_family("vqvae").ability(Latents) is None, "what lacks samples lacks those that are decoded too"


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("train.json", "--inputs: train.json"),
        ("validation", "data.validation names no index"),
    ],
)
def test_a_split_that_is_not_there_is_named_by_its_flag(where: str, sentence: str, tmp_path: Path) -> None:
    data = load_recipe(write_recipe(tmp_path, FAMILIES["toy"]), ["data.validation=null"]).data
    with pytest.raises(UserError, match=sentence):
        find_given(data, where, "--inputs")
