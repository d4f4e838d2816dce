from dataclasses import replace
from typing import get_args

import pytest
import torch
import torch.nn.functional as F

from bigtrain.families.abilities import InitialisedByData
from bigtrain.families.adversarial.collapse import SIGN_OF_REAL, singular_values
from bigtrain.families.adversarial.gan import GAN
from bigtrain.families.adversarial.gan_options import GANOptions, GANSamplingOptions
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.networks.layers.normalisation import SpectralNorm
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.objectives.orthogonal import Orthogonal
from bigtrain.objectives.penalties import R1
from bigtrain.options import kind_of, members_of
from bigtrain.pictures import to_uint8
from bigtrain.randomness import Draws
from tests.asking import asked, sampled
from tests.runs_of import FAMILIES

SPEC = DataSpec((16, 16), 3, ("a", "b", "c"), (10, 0, 30))

CPU = torch.device("cpu")


def family(**options: object) -> GAN:
    return GAN(GANOptions.model_validate(dict(FAMILIES["gan"]) | options), SPEC)


def networks_of(gan: GAN) -> dict:
    return {name: build_network(gan, name, seed=0) for name in gan.components}


def microbatch(n: int = 6) -> Microbatch:
    images = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(0)).tanh()
    return Microbatch({"image": images, "label": torch.arange(n) % 3}, range(n), Draws(0, step=5), CPU, n)


DCGAN = {
    "generator": {"kind": "dcgan", "channels": 4, "latent": 6},
    "discriminator": {"kind": "dcgan", "channels": 4},
    "penalties": {},
}


AUTOENCODER = DCGAN | {
    "discriminator": {"kind": "autoencoder", "channels": 4, "halvings": 2, "norm": "none"},
    "objective": {"kind": "energy_based", "margin": 0.5},
}
REFERENCE = DCGAN | {"discriminator": {"kind": "dcgan", "channels": 4, "norm": "virtual", "reference_batch": 5}}
DISCRIMINATION, DEVIATION = (
    DCGAN | {"discriminator": {"kind": "dcgan", "channels": 4, "norm": "none", "minibatch": {"kind": kind}}}
    for kind in ("discrimination", "deviation")
)
TOLD = {"generator": {"kind": "dcgan", "conditioning": "concatenation"}}
CLASSIFIED = {
    "discriminator": {"kind": "dcgan", "channels": 4, "norm": "none"},
    "auxiliary_classifier": {"fake": 0.5, "generator": 0.25},
}


def test_the_hinge_losses_are_the_papers() -> None:
    gan, batch = family(), microbatch()
    networks = networks_of(gan)
    losses = gan.discriminator_loss(networks, batch)
    fake, labels = gan._fakes(networks, batch, "discriminator", gradients=False)
    real_logits = networks["discriminator"](batch["image"], batch["label"])
    fake_logits = networks["discriminator"](fake, labels)
    expected = (1 - real_logits).clamp(min=0).mean() + (1 + fake_logits).clamp(min=0).mean()
    torch.testing.assert_close(losses.total, expected)


GAMES = [kind_of(game) for game in members_of(GANOptions.model_fields["objective"].annotation)]


@pytest.mark.parametrize("kind", GAMES)
def test_every_game_trains_both_networks(kind: str) -> None:
    gan = family(
        **{"energy_based": AUTOENCODER, "feature_matching": DCGAN}.get(kind, {}) | {"objective": {"kind": kind}}
    )
    networks = networks_of(gan)
    for component, loss in (("discriminator", gan.discriminator_loss), ("generator", gan.generator_loss)):
        loss(networks, microbatch()).total.backward()
        assert all(parameter.grad is not None for parameter in networks[component].parameters())


def test_calls_of_the_discriminator_may_be_separate_and_give_the_same() -> None:
    joint, separate = (family(discriminator_calls=calls) for calls in ("joint", "separate"))
    networks = networks_of(joint)
    calls: list[int] = []
    networks["discriminator"].register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    losses = [gan.discriminator_loss(networks, microbatch()).total for gan in (joint, separate)]
    torch.testing.assert_close(*losses)
    assert calls == [12, 6, 6]


def test_penalties_are_added_to_the_discriminators_loss_and_logged() -> None:
    gan = family(penalties={"r1": {"weight": 2.0, "every": 5}, "gradient_penalty": {"weight": 3.0, "every": 2}})
    networks, batch = networks_of(gan), microbatch()  # of step 5
    losses, plain = gan.discriminator_loss(networks, batch), family().discriminator_loss(networks, batch)
    real = batch["image"], batch["label"]
    expected = 2.0 * 5 * R1().value(networks["discriminator"], real, real, gan._draw_uniform)
    torch.testing.assert_close(losses.terms["r1"], expected)
    assert losses.terms["gradient_penalty"] == 0, "not due at step 5"
    torch.testing.assert_close(losses.total, plain.total + expected)
    assert gan.generator_loss(networks, batch).terms == {}


def test_a_game_that_needs_real_logits_in_the_generators_loss_is_given_them() -> None:
    gan = family(objective={"kind": "relativistic_paired"})
    networks = networks_of(gan)
    assert [phase.batch for phase in gan.phases] == ["new", "new"]
    total = gan.generator_loss(networks, microbatch()).total
    fake = gan._fakes(networks, microbatch(), "generator", gradients=False)
    real = networks["discriminator"](microbatch()["image"], microbatch()["label"])
    torch.testing.assert_close(total, (1 + (real - networks["discriminator"](*fake)).exp()).log().mean())


@pytest.mark.parametrize("calls", ["joint", "separate"])
def test_an_auxiliary_classifier_teaches_both_networks_the_classes(calls: str) -> None:
    """Beside a discriminator that is not told the classes."""
    gan = family(**CLASSIFIED | {"discriminator_calls": calls})
    networks, batch = networks_of(gan), microbatch()
    given, discriminator = [], networks["discriminator"]
    discriminator.register_forward_hook(lambda module, args, output: given.append(len(args)))
    fake, labels = gan._fakes(networks, batch, "discriminator", gradients=False)
    real_loss = F.cross_entropy(discriminator(batch["image"]).class_logits, batch["label"])
    fake_loss = F.cross_entropy(discriminator(fake).class_logits, labels)
    losses = gan.discriminator_loss(networks, batch)
    torch.testing.assert_close(losses.terms["classes"], real_loss + 0.5 * fake_loss)
    plain = gan.options.objective.discriminator_loss(discriminator(batch["image"]).logits, discriminator(fake).logits)
    torch.testing.assert_close(losses.total, plain + losses.terms["classes"])
    fake, labels = gan._fakes(networks, batch, "generator", gradients=False)
    told = 0.25 * F.cross_entropy(discriminator(fake).class_logits, labels)
    losses = gan.generator_loss(networks, batch)
    torch.testing.assert_close(losses.terms["classes"], told)
    torch.testing.assert_close(losses.total, told - discriminator(fake).logits.mean())
    assert set(given) == {1}


def test_feature_matching_is_of_features_in_the_generators_phase() -> None:
    gan = family(**DCGAN | {"objective": {"kind": "feature_matching"}})
    networks, batch = networks_of(gan), microbatch()
    (fake,) = gan._fakes(networks, batch, "generator", gradients=False)
    real_features, fake_features = (networks["discriminator"](images).features for images in (batch["image"], fake))
    losses = gan.generator_loss(networks, batch)
    expected = (real_features.mean(0) - fake_features.mean(0)).square().sum()
    torch.testing.assert_close(losses.terms["features"], expected)
    torch.testing.assert_close(losses.total, expected)
    assert set(gan.discriminator_loss(networks, batch).terms) == {"real", "fake", SIGN_OF_REAL}


def test_an_energy_is_the_error_of_an_autoencoder_and_codes_are_pulled_apart() -> None:
    gan = family(**AUTOENCODER)
    networks, batch = networks_of(gan), microbatch()
    (fake,) = gan._fakes(networks, batch, "generator", gradients=False)
    outputs = networks["discriminator"](fake)
    energy = (outputs.reconstruction - fake).square().mean()
    apart = gan.options.objective.features_loss(None, outputs.features)
    assert apart > 0
    torch.testing.assert_close(gan.generator_loss(networks, batch).total, energy + apart)


def test_the_generator_learns_from_the_best_of_its_samples() -> None:
    top_k = {"lowest_share": 0.5, "decay": 0.5, "decay_steps": 5}
    gan, batch = family(penalties={"top_k": top_k}), microbatch()  # of step 5
    networks = networks_of(gan)
    logits = networks["discriminator"](*gan._fakes(networks, batch, "generator", gradients=False))
    total = gan.generator_loss(networks, batch).total
    torch.testing.assert_close(total, -logits.sort(descending=True).values[:3].mean())


def test_lecams_averages_are_state_of_the_discriminator() -> None:
    gan = family(penalties={"lecam": {"weight": 0.5, "start_step": 5}})
    networks, batch = networks_of(gan), microbatch()
    assert {"lecam.means", "lecam.updates"} <= networks["discriminator"].state_dict().keys()
    assert not any(name.startswith("lecam") for name in networks_of(family())["discriminator"].state_dict())
    set_recording(networks["discriminator"], True)
    early = gan.discriminator_loss(networks, replace(batch, draws=Draws(0, step=4)))
    assert early.terms["lecam"] == 0
    commit(networks["discriminator"], torch.tensor(True))
    real, fake = networks["discriminator"].lecam.means
    torch.testing.assert_close((real, fake), (early.terms["real"].detach(), early.terms["fake"].detach()))
    logits = gan._judge(
        networks["discriminator"],
        gan._reals(networks, batch),
        gan._fakes(networks, batch, "discriminator", gradients=False),
    )
    expected = (logits[0].logits - fake).relu().square().mean() + (real - logits[1].logits).relu().square().mean()
    torch.testing.assert_close(gan.discriminator_loss(networks, batch).terms["lecam"], 0.5 * expected)


def test_latent_consistency_moves_z_a_little_in_both_phases() -> None:
    gan = family(penalties={"latent_consistency": {"discriminator": 2.0, "generator": 0.5, "noise": 0.1}})
    networks, batch = networks_of(gan), microbatch()
    discriminator = networks["discriminator"]
    terms = {}
    for phase in ("discriminator", "generator"):
        still = gan._fakes(networks, batch, phase, gradients=False)
        moved = gan._fakes(networks, batch, phase, gradients=False, moved=0.1)
        assert torch.equal(still[1], moved[1])
        assert not torch.equal(still[0], moved[0])
        on_images = (discriminator(*still) - discriminator(*moved)).square().mean()
        terms[phase] = {"discriminator": 2 * on_images, "generator": -0.5 * (still[0] - moved[0]).square().mean()}[
            phase
        ]
    torch.testing.assert_close(
        gan.discriminator_loss(networks, batch).terms["latent_consistency"], terms["discriminator"]
    )
    torch.testing.assert_close(gan.generator_loss(networks, batch).terms, {"latent_consistency": terms["generator"]})


def test_moved_samples_leave_the_generators_statistics_to_the_others() -> None:
    states = []
    for penalties in ({}, {"latent_consistency": {}}):
        gan = family(penalties=penalties)
        networks = networks_of(gan)
        set_recording(networks["generator"], True)
        gan.generator_loss(networks, microbatch()).total.backward()
        commit(networks["generator"], torch.tensor(True))
        states.append(networks["generator"].state_dict())
    assert all(torch.equal(states[1][key], value) for key, value in states[0].items())


def test_a_clip_is_of_the_discriminators_weights() -> None:
    phases = family(objective={"kind": "wasserstein", "clip": 0.01}).phases
    assert [phase.weight_clip for phase in phases] == [0.01, None]


@pytest.mark.parametrize("penalty", ["r1", "gradient_penalty"])
def test_penalties_go_through_the_minibatch_deviation_as_the_authors_take_them(penalty: str) -> None:
    """Progressive growing has it beside WGAN-GP's, StyleGAN beside R1."""
    gan = family(**DEVIATION | {"penalties": {penalty: {}}})
    networks, batch = networks_of(gan), microbatch(8)
    losses = gan.discriminator_loss(networks, batch)
    losses.total.backward()
    assert losses.terms[penalty] > 0
    assert all(parameter.grad is not None for parameter in networks["discriminator"].parameters())


def test_penalties_on_gradients_need_whole_weights() -> None:
    for penalties, expected in (({}, []), ({"r1": {}}, ["penalties.r1"]), ({"r1": {"weight": 0}}, [])):
        assert family(penalties=penalties).phases[0].needs_whole_weights == expected


# ------------------------------------------------------------------------------------------------------ architectures


def test_an_unconditional_gan_reads_no_label() -> None:
    gan = family(**DCGAN)
    assert gan.reads == ("image",)
    assert gan.conditions == ()
    networks, batch = networks_of(gan), microbatch()
    unlabelled = replace(batch, fields={"image": batch["image"]})
    for loss in (gan.discriminator_loss, gan.generator_loss):
        assert loss(networks, unlabelled).total.isfinite()
    assert sampled(gan, networks, torch.tensor([0]), range(4), 0, GANSamplingOptions()).shape == (4, 3, 16, 16)


@pytest.mark.parametrize(("norm", "expected"), [("batch", [6, 6]), ("none", [12]), ("spectral", [12])])
def test_batch_statistics_make_the_calls_separate(norm: str, expected: list[int]) -> None:
    gan = family(**DCGAN | {"discriminator": {"kind": "dcgan", "channels": 4, "norm": norm}})
    networks, calls = networks_of(gan), []
    networks["discriminator"].register_forward_hook(lambda module, args, output: calls.append(len(args[0])))
    gan.discriminator_loss(networks, microbatch())
    assert calls == expected


def test_largest_singular_values_are_reported_where_there_is_spectral_norm() -> None:
    reports = [phase.reports for phase in family(**DCGAN).phases]
    assert reports == [None, None]
    spectral = family(**DCGAN | {"discriminator": {"kind": "dcgan", "channels": 4, "norm": "spectral"}})
    assert list(spectral.phases[0].reports(networks_of(spectral))) == ["singular_value/largest"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"discriminator": {"kind": "dcgan"}}, "discriminator: dcgan takes no classes, but the other network does"),
        ({"generator": {"kind": "dcgan"}}, "generator: dcgan takes no classes, but the other network does"),
        (DCGAN | {"discriminator_calls": "joint"}, "discriminator_calls: joint would mix .* take separate, or leave it out"),
        (DCGAN | {"penalties": {"gradient_penalty": {}}}, "penalties: gradient_penalty bounds .*norm: none or"),
        (DCGAN | {"objective": {"kind": "wasserstein"}}, "objective: wasserstein needs .* set objective.clip"),
        (DCGAN | {"penalties": {"dragan": {}}}, "penalties: dragan bounds .*norm: none or"),
        ({"objective": {"kind": "feature_matching"}}, "objective: feature_matching needs the features of the discriminator, "
         "which one of kind biggan does not give; set discriminator.kind to dcgan or "),
        ({"objective": {"kind": "energy_based"}}, "needs the features and the reconstruction .* to autoencoder"),
        ({"auxiliary_classifier": {}}, "auxiliary_classifier: it needs the class_logits of .* set discriminator.kind to dcgan"),
        (CLASSIFIED | {"objective": {"kind": "energy_based"}}, "no kind gives all of that together"),
        (DCGAN | {"auxiliary_classifier": {}}, "auxiliary_classifier: .* a generator of kind dcgan takes none; set "
         "generator.conditioning to concatenation or batch_norm, or take one that does, or null"),
        ({"discriminator": {"kind": "resnet"}}, "discriminator: resnet takes no classes, but the other network does; set "
         "discriminator.conditioning to projection, or take two that agree"),
        (TOLD | {"discriminator": {"kind": "dcgan"}}, r"take two that agree, or set auxiliary_classifier: \{\} \["),
        (TOLD | {"discriminator": {"kind": "autoencoder"}}, r"agree, or set generator.conditioning: none \["),
        ({"discriminator": {"kind": "autoencoder"}}, r"autoencoder takes no classes, .* take two that agree \["),
        (REFERENCE | {"penalties": {"r1": {}}}, "penalties: r1 bounds the gradient at each image, but with a reference batch a "
         "discriminator has none of one image alone; set discriminator.norm: none or spectral"),
        (DISCRIMINATION | {"penalties": {"gradient_penalty": {}}}, "penalties: gradient_penalty .* with minibatch "
         "discrimination .*set discriminator.minibatch: null or {kind: deviation}"),
        (DCGAN | {"generator_batches": 2, "objective": {"kind": "relativistic_paired"}}, "is set against real images"),
        (DEVIATION | {"discriminator_calls": "joint"}, "discriminator_calls: joint would mix real and fake images"),
        (DEVIATION | {"generator_batches": 2}, "generator_batches: each fake is set against the fakes of its group; leave it"),
        ({"objective": {"kind": "relativistic_average"}, "penalties": {"top_k": {}}}, "penalties: top_k leaves fakes out"),
        ({"penalties": {"consistency": {"shift": 1.5}}}, "less than 1"),
        ({"objective": {"kind": "wasserstein", "clip": 0}}, "greater than or equal to 0"),
        ({"penalties": {"r1": {"weight": -1}}}, "greater than or equal to 0"),
    ],
)  # fmt: skip
def test_options_that_do_not_fit_together_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        family(**options)


@pytest.mark.parametrize("component", ["generator", "discriminator"])
def test_classes_of_which_there_is_one_are_refused(component: str) -> None:
    conditioning = {"generator": {"kind": "mlp"}, "discriminator": {"kind": "mlp"}}
    for network in conditioning.values():
        network["conditioning"] = "concatenation"
    conditioning |= {"auxiliary_classifier": {}} if component == "generator" else {}
    options = GANOptions.model_validate(dict(FAMILIES["gan"]) | {"penalties": {}} | conditioning)
    unlabelled = replace(SPEC, classes=("a",), class_counts=(40,))
    with pytest.raises(
        ValueError, match=r"family\.generator\.conditioning: the data have only one class; set it to none, or"
    ):
        GAN(options, unlabelled)


def test_a_reference_batch_of_the_discriminator_is_the_first_real_images() -> None:
    discriminator = REFERENCE["discriminator"] | {"conditioning": "projection"}
    generator = DCGAN["generator"] | {"conditioning": "batch_norm"}
    gan = family(**REFERENCE | {"discriminator": discriminator, "generator": generator})
    batch = microbatch(3)
    networks = networks_of(gan)
    assert gan.ability(InitialisedByData) is gan
    gan.initialise(networks, [batch, replace(batch, fields={name: field.flip(0) for name, field in batch.items()})])
    reference = networks["discriminator"].reference
    assert torch.equal(reference.samples, torch.cat([batch["image"], batch["image"].flip(0)])[:5])
    assert reference.labels.tolist() == [0, 1, 2, 2, 1]
    assert family(**DCGAN).ability(InitialisedByData) is None


def test_the_generator_may_learn_from_several_batches_of_fakes_that_are_all_different() -> None:
    once, twice = family(**CLASSIFIED), family(**CLASSIFIED | {"generator_batches": 2})
    networks, batch, seen = networks_of(once), microbatch(), []
    networks["discriminator"].register_forward_hook(lambda module, args, output: seen.append(args[0]))
    once.generator_loss(networks, batch)
    twice.generator_loss(networks, batch)
    assert [len(images) for images in seen] == [6, 12]
    assert len(seen[1].unique(dim=0)) == 12
    # The first ones are those of one batch, but for the batch norm that they now share.
    fakes = [gan._fakes(networks, batch, "generator", gradients=False) for gan in (once, twice)]
    assert torch.equal(fakes[0][1], fakes[1][1])
    twice.discriminator_loss(networks, batch)
    assert len(seen[2]) == 12, "6 real and 6 fake"


def test_the_discriminators_loss_reaches_no_weight_of_the_generator() -> None:
    gan = family()
    networks = networks_of(gan)
    gan.discriminator_loss(networks, microbatch()).total.backward()
    assert all(parameter.grad is None for parameter in networks["generator"].parameters())


@pytest.mark.parametrize(("how", "missing"), [("data", {1}), ("uniform", set())])
def test_fake_labels_follow_the_data_or_are_uniform(how: str, missing: set) -> None:
    (labels,) = family(fake_labels=how)._fake_labels(Draws(0), "labels", range(400))
    assert {0, 1, 2} - set(labels.tolist()) == missing
    if how == "data":
        assert 0.65 < (labels == 2).float().mean() < 0.85


def test_orthogonal_regularisation_is_in_the_generators_phase_only() -> None:
    penalties = [phase.weight_penalty for phase in family().phases]
    assert penalties[0] is None
    networks = networks_of(family())
    assert penalties[1](networks) == Orthogonal(weight=1e-4).penalty(networks["generator"])
    for without in (None, {"weight": 0}):
        phases = family(penalties={"orthogonal": without}).phases
        assert [phase.weight_penalty for phase in phases] == [None, None]


@pytest.mark.parametrize(
    "sampling", [{}, {"statistics": "standing", "standing_batches": 2}, {"truncation": 0.5}], ids=str
)
def test_a_sample_depends_on_its_index_and_not_on_its_batch(sampling: dict) -> None:
    gan = family()
    options = GANSamplingOptions(**sampling)
    prepared = gan.prepare_sampling(networks_of(gan), options, seed=3)
    labels = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    whole = sampled(gan, prepared, labels, range(7), 3, options)
    parts = torch.cat([sampled(gan, prepared, labels[i : i + 1], [i], 3, options) for i in range(7)])
    assert (to_uint8(whole).int() - to_uint8(parts).int()).abs().max() <= 1
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-5)


def test_standing_statistics_leave_the_given_network_alone() -> None:
    gan = family()
    networks = networks_of(gan)
    before = {name: value.clone() for name, value in networks["generator"].state_dict().items()}
    prepared = gan.prepare_sampling(networks, GANSamplingOptions(statistics="standing", standing_batches=2), seed=0)
    assert all(torch.equal(networks["generator"].state_dict()[name], value) for name, value in before.items())
    assert not torch.equal(prepared["generator"].norm.running_mean, before["norm.running_mean"])


def test_truncation_draws_the_truncated_normal() -> None:
    z = family().draw_latents(asked({}, range(4000)), GANSamplingOptions(truncation=1.0))
    assert z.abs().max() <= 1.0
    assert z.abs().max() > 0.99
    # The variance of a standard normal cut at +-1: 1 - 2 phi(1) / (2 Phi(1) - 1).
    assert abs(z.var().item() - 0.2912) < 0.01


def test_the_reported_singular_values_are_those_of_the_first_layers() -> None:
    gan = family()
    networks = networks_of(gan)
    for phase, loss in zip(gan.phases, (gan.discriminator_loss, gan.generator_loss), strict=True):
        (name,) = phase.trains
        network = networks[name]
        set_recording(network, True)
        for _ in range(60):
            with torch.no_grad():
                loss(networks, microbatch(3))
            commit(network, torch.tensor(True))
        set_recording(network, False)
        reports = phase.reports(networks)
        first = network.blocks[0].conv1.weight.detach().flatten(1)
        assert float(reports["singular_value/first_block"]) == pytest.approx(
            float(torch.linalg.matrix_norm(first, 2)), rel=0.02
        )
        assert reports["singular_value/largest"] >= reports["singular_value/first_block"]


ARCHITECTURES = [
    (side, kind_of(member), norm)
    for side in ("generator", "discriminator")
    for member in members_of(GANOptions.model_fields[side].annotation)
    for norm in get_args(getattr(member.model_fields.get("norm"), "annotation", None)) or (None,)
]


@pytest.mark.parametrize(("side", "kind", "norm"), ARCHITECTURES)
def test_the_alarm_watches_every_network_with_spectral_norm(side: str, kind: str, norm: str | None) -> None:
    members = members_of(GANOptions.model_fields[side].annotation)
    options = next(member for member in members if kind_of(member) == kind)
    small: dict[str, object] = {"channels": 4, "latent": 4, "latent_per_block": 4, "attention_resolution": None}
    said = {name: value for name, value in small.items() if name in options.model_fields}
    architecture = options.model_validate(said | ({} if norm is None else {"norm": norm}))
    normed = any(isinstance(module, SpectralNorm) for module in architecture.build((32, 32), 3, 2).modules())
    watched = singular_values(side, architecture).get("watched", {})
    assert ("singular_value/largest" in watched) == normed


def test_the_sign_of_real_logits_is_read_where_it_is_the_verdict() -> None:
    for kind in GAMES:
        options = {"energy_based": AUTOENCODER, "feature_matching": DCGAN}.get(kind, {})
        gan = family(**options | {"objective": {"kind": kind}})
        terms = gan.discriminator_loss(networks_of(gan), microbatch()).terms
        read = kind in ("hinge", "non_saturating", "minimax", "maximum_likelihood", "feature_matching")
        assert (SIGN_OF_REAL in terms) == read == (SIGN_OF_REAL in gan.phases[0].limits)


# -- augmentation ---------------------------------------------------------------------------------------------------

AUGMENTATIONS = [{"kind": "diffaug"}, {"kind": "ada", "p": 0.9}]


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["diffaug", "ada"])
def test_all_images_that_the_discriminator_is_given_are_augmented(augmentation: dict) -> None:
    plain, gan, batch = family(), family(augmentation=augmentation), microbatch()
    networks = networks_of(gan)
    fake = gan._fakes(networks, batch, "discriminator", gradients=False)
    seen = {
        stream: gan._seen(networks, batch, stream, inputs)
        for stream, inputs in {"real": gan._reals(networks, batch), "fake": fake, "discriminator/fake": fake}.items()
    }
    assert not torch.equal(seen["real"][0], batch["image"])
    assert not torch.equal(seen["fake"][0], seen["discriminator/fake"][0])
    assert torch.equal(seen["real"][1], batch["label"])
    for loss in ("discriminator_loss", "generator_loss"):
        assert getattr(gan, loss)(networks, batch).total != getattr(plain, loss)(networks, batch).total


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["diffaug", "ada"])
def test_the_generator_learns_through_the_augmentation(augmentation: dict) -> None:
    gan = family(**DCGAN, augmentation=augmentation)
    networks = networks_of(gan)
    gan.generator_loss(networks, microbatch()).total.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in networks["generator"].parameters())


def test_r1_is_of_images_before_they_are_augmented() -> None:
    options = {"augmentation": {"kind": "diffaug", "operations": ["cutout"]}, "penalties": {"r1": {"weight": 2.0}}}
    gan, batch = family(**options), microbatch()
    networks = networks_of(gan)
    images = batch["image"].clone().requires_grad_()
    seen = gan._seen(networks, batch, "discriminator/real", (images, batch["label"]))
    (gradients,) = torch.autograd.grad(networks["discriminator"](*seen).sum(), images)
    assert (gradients == 0).double().mean() > 0.05  # in the cut-out rectangles
    expected = gradients.square().sum((1, 2, 3)).mean()
    torch.testing.assert_close(gan.discriminator_loss(networks, batch).terms["r1"], expected)


def test_the_strength_of_ada_is_state_of_the_discriminator_and_follows_its_logits() -> None:
    gan, batch = family(augmentation={"kind": "ada", "p": 0.5, "every": 1, "kimg": 1}), microbatch()
    networks = networks_of(gan)
    discriminator = networks["discriminator"]
    assert {"augmentation.p", "augmentation.signs", "augmentation.updates"} <= discriminator.state_dict().keys()
    assert not any(name.startswith("augmentation") for name in networks_of(family())["discriminator"].state_dict())
    set_recording(discriminator, True)
    losses = gan.discriminator_loss(networks, batch)
    logits = discriminator(*gan._seen(networks, batch, "discriminator/real", gan._reals(networks, batch)))
    commit(discriminator, torch.tensor(True))
    assert losses.terms["ada_p"] == 0.5
    change = torch.sign(logits.sign().mean() - 0.6).item() * len(logits) / 1000
    assert discriminator.augmentation.p.item() == pytest.approx(0.5 + change)


@pytest.mark.parametrize("kind", ["wasserstein", "relativistic_average", "relativistic_paired", "least_squares"])
def test_ada_needs_logits_whose_sign_means_something(kind: str) -> None:
    fixed = family(objective={"kind": kind}, augmentation={"kind": "ada", "target": None, "p": 0.3})
    assert fixed.options.augmentation.p == 0.3
    with pytest.raises(
        ValueError, match=f"ada adjusts p by the sign of logits, which says nothing with objective: {kind}"
    ):
        family(objective={"kind": kind}, augmentation={"kind": "ada"})


@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=["diffaug", "ada"])
def test_what_is_no_image_is_not_augmented(augmentation: dict) -> None:
    options = GANOptions.model_validate(dict(FAMILIES["gan"]) | {"augmentation": augmentation})
    points = replace(SPEC, fields={"point": {"kind": "array"}})
    with pytest.raises(
        ValueError, match=r"^family\.augmentation: changes images of one channel or three, and the data have no image"
    ):
        GAN(options, points)
