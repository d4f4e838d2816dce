"""What class-conditional models say of the class of a sample: p(sample | class), by the same draws for every class."""

import re
from dataclasses import replace

import pytest
import torch

from bigtrain.families.abilities import Classifies, Effort, Likelihood
from bigtrain.families.family import Family
from bigtrain.families.phases import Networks
from tests.families_table import CASES
from tests.training.small_steps import microbatch, small_family, small_networks


def made(name: str) -> tuple[Family, Networks]:
    family = small_family(name)
    return family, {key: network.requires_grad_(False).eval() for key, network in small_networks(family).items()}


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if {Classifies, Likelihood} <= case.abilities])
def test_scores_are_likelihoods_given_each_class_by_the_same_draws(name: str) -> None:
    family, networks = made(name)
    likelihood, classifies = family.require(Likelihood, "the test"), family.require(Classifies, "the test")
    batch = microbatch(family, family.phases[0], samples=2)
    unlabelled = replace(batch, fields={key: value for key, value in batch.fields.items() if key != "label"})
    scores = classifies.class_scores(networks, unlabelled, Effort())
    assert scores.shape == (2, 10)
    assert scores.dtype == torch.float64
    for label in (0, 7):
        given = replace(batch, fields={**batch.fields, "label": torch.full((2,), label)})
        assert torch.equal(scores[:, label], -likelihood.likelihood(networks, given, Effort())["nats"])
    assert "label" not in classifies.classified_given
    protocol = classifies.classification_protocol(Effort(), seed=0)
    assert protocol["classified_by"].startswith("p(sample | class)")
    assert protocol["likelihood"] == likelihood.likelihood_protocol(Effort(), seed=0)["likelihood"]


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        (
            "vae",
            {"class_conditional": False},
            "this vae was trained without classes; train with family.class_conditional",
        ),
        ("vae", {"likelihood": {"kind": "bernoulli"}}, "likelihood"),
        ("gan", {}, "a gan cannot tell the classes of samples; family.kind: .*noisy_classifier"),
    ],
)
def test_a_model_that_cannot_tell_classes_says_why(name: str, options: dict[str, object], reason: str) -> None:
    family = small_family(name, **options)
    assert family.ability(Classifies) is None
    assert re.search(reason, family.why_not(Classifies)), family.why_not(Classifies)
