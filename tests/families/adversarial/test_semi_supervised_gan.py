from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bigtrain.families.abilities import Effort
from bigtrain.families.adversarial.semi_supervised_gan import SemiSupervisedGAN, SemiSupervisedGANOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.objectives.known_labels import loss_of_known
from bigtrain.options import kind_of, members_of
from bigtrain.randomness import Draws
from tests.asking import asked
from tests.runs_of import FAMILIES

CLASSES = ("a", "b", "c")
CPU = torch.device("cpu")
DISCRIMINATORS: Any = members_of(SemiSupervisedGANOptions.model_fields["discriminator"].annotation)
KNOWN = torch.tensor([0, -1, 2, -1, -1, 1])


def spec(classes: tuple[str, ...] = CLASSES) -> DataSpec:
    fields = {
        "image": {"kind": "image"},
        "label": {"kind": "label"},
        "known_label": {"kind": "known_label", "share": 0.25},
    }
    return DataSpec((16, 16), 1, classes, (16,) * len(classes), fields=fields)


def family(**options: object) -> SemiSupervisedGAN:
    return SemiSupervisedGAN(
        SemiSupervisedGANOptions.model_validate(dict(FAMILIES["semi_supervised_gan"]) | options), spec()
    )


def networks_of(gan: SemiSupervisedGAN) -> dict[str, Any]:
    return {name: build_network(gan, name, seed=0) for name in gan.components}


def microbatch(n: int = 6) -> Microbatch:
    images = torch.randn(n, 1, 16, 16, generator=torch.Generator().manual_seed(0)).tanh()
    return Microbatch({"image": images, "known_label": KNOWN[:n]}, range(n), Draws(0, step=5), CPU, n)


def test_the_discriminator_minimises_equations_of_the_paper() -> None:
    gan, batch = family(label_weight=0.5), microbatch()
    networks = networks_of(gan)
    fake = networks["generator"](batch.draws.normal("discriminator/z", batch.indices, (6,)))
    real_logits, fake_logits = (
        # K + 1 logits, the last of fakes
        F.pad(networks["discriminator"](images).class_logits, (0, 1)).double()
        for images in (batch["image"], fake)
    )
    p_real, p_fake = real_logits.softmax(1), fake_logits.softmax(1)
    of_all = -(1 - p_real[:, -1]).log().mean() - p_fake[:, -1].log().mean()
    known = KNOWN >= 0
    given_real = p_real[:, :-1] / (1 - p_real[:, -1:])
    of_known = -given_real[known, KNOWN[known]].log().sum() / (6 * 12 / 48)
    losses = gan.discriminator_loss(networks, batch)
    torch.testing.assert_close(losses.total.double(), of_all + 0.5 * of_known, rtol=1e-5, atol=1e-6)
    losses.total.backward()
    assert all(parameter.grad is not None for parameter in networks["discriminator"].parameters())


def test_without_the_game_only_known_labels_teach() -> None:
    gan, batch = family(game_weight=0.0), microbatch()
    networks = networks_of(gan)
    on_real = networks["discriminator"](batch["image"])
    expected = loss_of_known(on_real.class_logits, KNOWN, 12 / 48)
    torch.testing.assert_close(gan.discriminator_loss(networks, batch).total, expected)


def test_the_loss_of_known_labels_is_that_of_the_global_batch_in_any_parts() -> None:
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parts = [loss_of_known(logits[begin : begin + 2], KNOWN[begin : begin + 2], 0.25) for begin in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, loss_of_known(logits, KNOWN, 0.25))
    assert loss_of_known(logits, torch.full((6,), -1), 0.25) == 0


def test_scores_are_log_probabilities_of_classes_that_do_not_depend_on_other_images() -> None:
    gan = family()
    networks = {name: network.eval() for name, network in networks_of(gan).items()}
    images = microbatch()["image"]
    scores = gan.class_scores(networks, asked({"image": images}, range(6)), Effort())
    assert scores.dtype == torch.float64
    assert scores.shape == (6, 3)
    torch.testing.assert_close(scores.exp().sum(1), torch.ones(6, dtype=torch.float64))
    alone = gan.class_scores(networks, asked({"image": images[:1]}, range(1)), Effort())
    torch.testing.assert_close(alone, scores[:1])


JUDGES = [{"kind": "dcgan", "norm": "spectral"}, *({"kind": kind_of(each)} for each in DISCRIMINATORS)]


@pytest.mark.parametrize("judge", JUDGES, ids=lambda judge: "-".join(judge.values()))
def test_every_discriminator_that_tells_classes_can_tell_fakes_too(judge: dict[str, str]) -> None:
    more = {} if judge["kind"] in ("dcgan", "mlp") else {"conditioning": "none"}
    gan = family(discriminator=judge | more, augmentation={"kind": "diffaug"})
    networks = networks_of(gan)
    assert gan.discriminator_loss(networks, microbatch()).total.isfinite()
    assert gan.generator_loss(networks, microbatch()).total.isfinite()
    reports = gan.phases[0].reports
    assert reports is None or "singular_value/largest" in reports(networks)
    assert (reports is not None) == (judge["kind"] == "resnet" or "norm" in judge)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"discriminator": {"kind": "dcgan", "norm": "virtual"}}, "discriminator.norm: the class of an image"),
        (
            {"discriminator": {"kind": "dcgan", "minibatch": {"kind": "deviation"}}},
            "discriminator.minibatch: the class",
        ),
        (
            {"auxiliary_classifier": {}},
            "auxiliary_classifier: the networks of semi_supervised_gan are not told classes",
        ),
        ({"objective": {"kind": "hinge"}}, "objective"),
        ({"label_weight": 0}, "label_weight"),
    ],
)
def test_what_does_not_fit_is_one_sentence(options: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        family(**options)


def test_data_of_one_class_have_nothing_to_tell() -> None:
    options = SemiSupervisedGANOptions.model_validate(FAMILIES["semi_supervised_gan"])
    with pytest.raises(ValueError, match="only one class"):
        SemiSupervisedGAN(options, spec(("a",)))
