"""Images in latent space: the difference that a class or an attribute makes, and what is between two of them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bigtrain.data.digits import digits_index
from bigtrain.data.fields.array import AttributesField
from bigtrain.data.index import Index
from bigtrain.errors import UserError
from bigtrain.families.abilities import EncodesLatents
from bigtrain.inference.editing import LatentSplit, Shift
from bigtrain.inference.rows import LatentRows
from launch.sample import main as sample
from tests.training.small_steps import small_family, small_networks

CPU = torch.device("cpu")
WITH_ATTRIBUTES: Any = SimpleNamespace(
    fields={"looks": AttributesField("looks", (), ("Hat", "Smiling"))}, classes=("a", "b"), where="faces.json"
)


@pytest.fixture(scope="module")
def latent_split() -> LatentSplit:
    split = Index.read(digits_index("validation", (16, 16)))
    vae = small_family("vae", (16, 16), channels=1)
    return LatentSplit(vae, {name: network.eval() for name, network in small_networks(vae).items()}, split, 0, CPU)


def test_a_shift_is_the_difference_of_the_mean_latents_times_its_factor(latent_split: LatentSplit) -> None:
    whole = latent_split.of_numbers(range(latent_split.split.samples))
    is_3, is_5 = (whole.fields["label"] == label for label in (3, 5))
    z = whole.latents.double()
    expected = 1.5 * (z[is_3].mean(0) - z[~is_3].mean(0)) - 2 * (z[is_5].mean(0) - z[~is_5].mean(0))
    shifts = [Shift.read(text, latent_split.split) for text in ("class:3=1.5", "class:5=-2")]
    for batch_size in (64, 7):
        torch.testing.assert_close(latent_split.differences(shifts, batch_size), expected, rtol=1e-5, atol=1e-6)


def test_images_are_found_by_their_numbers_in_any_order(latent_split: LatentSplit) -> None:
    whole, some = latent_split.of_numbers(range(20)), latent_split.of_numbers([17, 3])
    torch.testing.assert_close(some.latents, whole.latents[[17, 3]])
    assert some.numbers.tolist() == [17, 3]
    assert len(latent_split.some(10).latents) == 10
    with pytest.raises(UserError, match=r"--images: .* has the samples 0 \.\. 299, not 300"):
        latent_split.of_numbers([300])


def test_a_row_goes_from_one_images_reconstruction_to_the_others(latent_split: LatentSplit) -> None:
    vae = latent_split.family.require(EncodesLatents, "")
    rows = LatentRows(vae, latent_split.networks, vae.sampling, 0, CPU)
    chosen = latent_split.of_numbers([3, 7])
    row = rows.between(*chosen.latents, 4, 5)
    assert torch.equal(row[[0, -1]], rows.decoded(chosen.latents, [4, 4]))


def test_an_attribute_is_found_by_its_name_and_counts_above_zero() -> None:
    shift = Shift.read("attribute:Smiling=0.5", WITH_ATTRIBUTES)
    assert (shift.field, shift.number, shift.factor) == ("looks", 1, 0.5)
    assert shift.has(torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, 0.0]])).tolist() == [False, True, False]


def test_a_class_is_asked_for_by_its_position_as_elsewhere() -> None:
    assert Shift.read("class:index:1=1", WITH_ATTRIBUTES).number == 1
    assert Shift.read("class:b=1", WITH_ATTRIBUTES).number == 1


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("attribute:Beard=1", r"^--shift: faces\.json has no attribute Beard \(its attributes: Hat, Smiling\)$"),
        ("class:c=1", r"class 'c': there is no such class \(there are 2: a, b"),
        ("Smiling=1", "is not attribute:NAME=FACTOR or class:NAME=FACTOR"),
        ("attribute:Smiling=nan", "is not attribute:NAME=FACTOR"),
        ("attribute:Smiling", "is not attribute:NAME=FACTOR"),
    ],
)
def test_a_shift_that_is_not_there_is_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Shift.read(text, WITH_ATTRIBUTES)


def test_data_without_attributes_say_so(latent_split: LatentSplit) -> None:
    with pytest.raises(
        UserError, match=r"has no attribute Smiling \(it has none at all; class:NAME=FACTOR takes a class"
    ):
        Shift.read("attribute:Smiling=1", latent_split.split)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--shift", "class:3=1"], "--shift: is of images of a split; give --encode"),
        (["--encode", "train"], "--encode: give --shift WHAT=FACTOR, --interpolate N or --traverse N as well"),
        (["--encode", "train", "--shift", "class:3=1", "--per-class", "3"], "--per-class: says nothing of --shift"),
        (["--encode", "train", "--shift", "class:3=1"], "a gan cannot encode images into latents"),
    ],
)
def test_flags_that_contradict_each_other_or_the_model_are_sentences(
    flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(Path(__file__).parents[1] / "fixtures" / "a3de763")
    with pytest.raises(UserError, match=sentence):
        sample(["runs/gan", "--out", str(tmp_path / "x.png"), *flags])
