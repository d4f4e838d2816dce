from pathlib import Path

import pytest
import torch

from bigtrain.cluster import world
from bigtrain.data.index import Index, plain_fields
from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.inference.model import make_family
from bigtrain.inference.sampler import Sampler
from bigtrain.inference.splits import same_on_all
from bigtrain.recipe import load_recipe
from tests.runs_of import ROOT
from tests.toy import Toy, ToyOptions


def sampler(spoil: bool) -> Sampler:
    family = Toy(ToyOptions(kind="toy"), DataSpec((16, 16), 3, ("a", "b"), (1, 1)))
    networks = {"maker": build_network(family, "maker", seed=0)}
    if spoil:
        with torch.no_grad():
            networks["maker"].linear.weight.fill_(float("nan"))
    return Sampler(
        family, family.prepare_sampling(networks, family.sampling, 0), 0, family.sampling, torch.device("cpu")
    )


def test_weights_that_have_diverged_do_not_pass_for_pictures() -> None:
    with pytest.raises(FloatingPointError, match="not finite"):
        sampler(spoil=True).draw(range(2), torch.tensor([0, 1]))


def test_all_samples_are_those_drawn_one_by_one() -> None:
    labels = [0, 1, 1, 0, 1]
    together = sampler(spoil=False).draw_all(labels, batch_size=2)
    alone = [sampler(spoil=False).draw([k], torch.tensor([labels[k]])) for k in range(5)]
    assert torch.equal(together, torch.cat(alone))


def test_labels_of_an_evaluation_do_not_depend_on_how_many_are_asked_for() -> None:
    assert (
        sampler(spoil=False).labels_of(range(40))[20:].tolist()
        == sampler(spoil=False).labels_of(range(20, 40)).tolist()
    )


def test_ranks_with_other_data_at_the_same_path_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(Path("data/train.json"), "train", plain_fields(("a",), (16, 16)), ())
    assert same_on_all(index, "data.train") is index
    monkeypatch.setattr(world, "gather_objects", lambda value: [value, value, "another"])
    with pytest.raises(UserError, match=r"data\.train: data/train\.json is not the same data .*: ranks 2 have others"):
        same_on_all(index, "data.train")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (["a", "b"], r"A\.json, B\.json has no field image, .*: give one of the indexes the name image in data\.train"),
        (
            ["image", "b"],
            r"A\.json, B\.json has no field label, and a diffusion needs a field label .*: train on one index",
        ),
    ],
)
def test_a_field_that_indexes_side_by_side_do_not_have_is_one_sentence(fields: list[str], message: str) -> None:
    recipe = load_recipe(
        ROOT / "recipes" / "ddpm_digits.yaml", ["data.train={a: A.json, b: B.json}", "data.validation=null"]
    )
    spec = DataSpec((16, 16), 1, ("0",), (1,), fields={name: {"kind": "image"} for name in fields})
    with pytest.raises(UserError, match=message):
        make_family(recipe, spec)
