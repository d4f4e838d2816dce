import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.families.abilities import Effort, InitialisedByData
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import build_network
from bigtrain.families.flows.flow import Flow, FlowOptions, FlowSamplingOptions
from bigtrain.families.phases import Microbatch
from bigtrain.networks.layers.discretised import as_numbers
from bigtrain.networks.layers.statistics import commit, set_recording
from bigtrain.randomness import Draws
from tests.training.slopes import slopes

SPEC = DataSpec((8, 8), 1, ("a", "b"), (30, 34))
NETWORK = {"kind": "glow", "levels": 2, "steps": 2, "channels": 6}
NOISES = pytest.mark.parametrize("noise", [{"kind": "uniform"}, {"kind": "variational", "channels": 4}], ids=str)


def family(spec: DataSpec = SPEC, **options: Any) -> Flow:
    known = {"kind": "flow", "optimizer": {"lr": 1e-3}, "network": NETWORK}
    return Flow(FlowOptions.model_validate(known | options), spec)


def networks_of(flow: Flow, spread: float = 0.05) -> dict[str, nn.Module]:
    """Untrained, but moved away from the zeros that it begins with."""
    network = build_network(flow, "flow", seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return {"flow": network}


def microbatch(n: int = 6, draws: Draws | None = None) -> Microbatch:
    values = torch.randint(0, 256, (n, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    fields = {"image": as_numbers(values, torch.float32), "label": torch.arange(n) % 2}
    return Microbatch(fields, range(n), draws or Draws(0), torch.device("cpu"), n)


def float64(flow: Flow, batch: Microbatch) -> tuple[dict[str, nn.Module], Microbatch]:
    image = batch["image"].double()
    return {"flow": networks_of(flow)["flow"].double()}, replace(batch, fields={**batch.fields, "image": image})


# ------------------------------------------------------------------------------------------ the loss, the likelihood


def test_the_loss_is_the_bound_in_nats_a_dimension_and_the_cross_entropy_of_the_class() -> None:
    flow, batch = family(class_conditional=True, network=NETWORK | {"class_weight": 0.3}), microbatch()
    networks = networks_of(flow)
    uniforms = batch.draws.uniform("flow/noise", batch.indices, (1, 8, 8))
    values = (batch["image"] + 1) * 127.5
    encoded = networks["flow"].flow(((values + uniforms) / 256).float(), batch["label"])
    log_normal = torch.distributions.Normal(0.0, 1.0).log_prob(encoded.latents).sum(1)
    nll = 64 * math.log(256) - (log_normal + encoded.log_det).mean()
    losses = flow.loss(networks, batch)
    cross_entropy = nn.functional.cross_entropy(encoded.class_logits, batch["label"])
    torch.testing.assert_close(losses.total, (nll / 64 + 0.3 * cross_entropy).to(losses.total.dtype))
    torch.testing.assert_close(losses.terms["bits_per_dim"], (nll.detach() / (64 * math.log(2))).float())
    assert set(family().loss(networks_of(family()), batch).terms) == {"nll", "bits_per_dim"}


def test_the_probabilities_of_all_images_sum_to_one() -> None:
    """Of images of 2 x 2 pixels and one bit, each the mean of the density over its bins, by many draws of the noise."""
    spec = replace(SPEC, size=(2, 2))
    flow = family(spec, bits=1, network={"kind": "glow", "levels": 1, "steps": 2, "channels": 4})
    networks = networks_of(flow, spread=0.1)
    every = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 4).view(16, 1, 2, 2)
    batch = Microbatch({"image": every}, range(16), Draws(0), torch.device("cpu"), 16)
    inside = flow.likelihood(networks, batch, Effort(samples=400))["nats"].neg().exp().sum()
    # What the flow gives to no image: latents whose image lies outside of [0, 1).
    latents = torch.randn(20_000, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = networks["flow"].flow.inverse(latents, None)
    within = ((y >= 0) & (y < 1)).flatten(1).all(1).double().mean()
    assert 0.001 < within < 0.999
    torch.testing.assert_close(inside, within, rtol=0.1, atol=0)


@NOISES
def test_gradients_are_those_of_finite_differences(noise: dict[str, Any]) -> None:
    flow = family(class_conditional=True, dequantisation=noise, network=NETWORK | {"class_weight": 0.3})
    networks, batch = float64(flow, microbatch(3))
    torch.testing.assert_close(*slopes(flow, networks, batch, 1e-7), rtol=1e-4, atol=1e-6)


@NOISES
def test_more_draws_of_the_noise_give_a_tighter_bound(noise: dict[str, Any]) -> None:
    """On average over draws (Burda et al. 2016, theorem 1)."""
    flow = family(dequantisation=noise, bits=2)
    networks = networks_of(flow)

    def mean_bound(samples: int) -> Tensor:
        seeds = [flow.likelihood(networks, microbatch(draws=Draws(s)), Effort(samples=samples)) for s in range(10)]
        return torch.stack([found["nats"].mean() for found in seeds]).mean()

    one, two, many = mean_bound(1), mean_bound(2), mean_bound(20)
    assert many < two < one
    assert one - many > 1e-3


@pytest.mark.parametrize("samples", [1, 5])
def test_a_samples_bound_does_not_depend_on_its_batch(samples: int) -> None:
    flow, batch = family(class_conditional=True, dequantisation={"kind": "variational"}), microbatch()
    networks = networks_of(flow)
    whole = flow.likelihood(networks, batch, Effort(samples=samples))["nats"]
    assert whole.dtype == torch.float64
    part = replace(batch, fields={name: values[4:] for name, values in batch.fields.items()}, indices=[4, 5])
    torch.testing.assert_close(
        flow.likelihood(networks, part, Effort(samples=samples))["nats"], whole[4:], rtol=1e-6, atol=0
    )


def test_the_protocol_says_that_it_is_a_bound_and_of_what() -> None:
    flow = family(bits=5, dequantisation={"kind": "variational"})
    said = flow.likelihood_protocol(Effort(), 7)
    assert said == {"likelihood": "variational", "likelihood_samples": 1, "bits": 5, "seed": 7}
    assert flow.likelihood_protocol(Effort(samples=64), 0)["likelihood"] == "importance_weighted"
    with pytest.raises(UserError, match="the likelihood of a flow has no use for it"):
        flow.check_effort(Effort(evaluations=3))


# --------------------------------------------------------------------------------------------- samples and latents


@pytest.mark.parametrize("bits", [8, 3])
def test_a_reconstruction_is_the_image(bits: int) -> None:
    flow, batch = family(class_conditional=True, bits=bits), microbatch()
    images = batch["image"]
    levels = torch.floor((images + 1) * 127.5 / 2 ** (8 - bits) + 1e-3)
    expected = levels * (2 / (2**bits - 1)) - 1
    torch.testing.assert_close(flow.reconstruct(networks_of(flow), batch), expected)


def test_the_temperature_is_the_deviation_of_the_latents() -> None:
    flow, batch = family(), microbatch()
    cold = flow.draw_latents(batch, FlowSamplingOptions(temperature=0.5))
    torch.testing.assert_close(cold, 0.5 * flow.draw_latents(batch, FlowSamplingOptions()))
    assert cold.shape == (6, 64)


def test_samples_are_images_of_so_many_levels_and_know_their_class() -> None:
    flow, batch = family(class_conditional=True, bits=3), microbatch()
    networks = networks_of(flow)
    drawn = flow.sample(networks, batch, FlowSamplingOptions())
    levels = (drawn + 1) * 3.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-5)
    assert drawn.min() >= -1
    assert drawn.max() <= 1
    swapped = replace(batch, fields={**batch.fields, "label": 1 - batch["label"]})
    assert not torch.equal(flow.sample(networks, swapped, FlowSamplingOptions()), drawn)


@pytest.mark.parametrize("weight", [torch.nan, 0.0], ids=["nan", "singular"])
def test_weights_that_have_diverged_show_in_the_samples(weight: float) -> None:
    flow = family()
    networks = networks_of(flow)
    with torch.no_grad():
        networks["flow"].flow.levels[0].steps[0].mixing.weight[0] = weight
    assert not flow.likelihood(networks, microbatch(), Effort())["nats"].isfinite().any()
    assert not flow.sample(networks, microbatch(), FlowSamplingOptions()).isfinite().any()


@pytest.mark.parametrize(
    "network",
    [
        NETWORK,
        NETWORK | {"coupling": "additive", "mixing": "lu"},
        {"kind": "realnvp", "channels": 4, "residual_blocks": 1},
    ],
    ids=str,
)
def test_a_trained_flow_is_inverted_to_1e_4_in_float32(network: dict[str, Any]) -> None:
    flow = family(network=network, class_conditional=True)
    networks = {"flow": build_network(flow, "flow", 0)}
    if flow.ability(InitialisedByData) is not None:
        flow.initialise(networks, [microbatch(16)])
    optimizer = torch.optim.Adam(networks["flow"].parameters(), 0.01)
    first = flow.loss(networks, microbatch(16)).total.detach()
    for step in range(60):
        optimizer.zero_grad()
        set_recording(networks["flow"], True)
        total = flow.loss(networks, microbatch(16, Draws(0, step))).total
        total.backward()
        optimizer.step()
        commit(networks["flow"], torch.tensor(True))
    assert total < first - 0.1
    network_of = networks["flow"].eval()
    y, labels = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    with torch.no_grad():
        again = network_of.flow.inverse(network_of.flow(y, labels).latents, labels)
    torch.testing.assert_close(again, y, rtol=0, atol=1e-4)


# ------------------------------------------------------------------------------------------------------- bad input


def test_options_that_make_no_sense_are_refused() -> None:
    for wrong in ({"bits": 9}, {"bits": 0}, {"sampling": {"temperature": 0.0}}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            family(**wrong)
    with pytest.raises(ValueError, match=r"2 levels need a data\.image_size that is divisible by 4, and 8 x 6 is not"):
        family(replace(SPEC, size=(8, 6)))
    with pytest.raises(ValueError, match=r"family\.class_conditional: the data have only one class"):
        family(replace(SPEC, classes=("a",), class_counts=(64,)), class_conditional=True)
    with pytest.raises(ValueError, match=r"family\.network\.class_weight: goes with family\.class_conditional: true"):
        family(network=NETWORK | {"class_weight": 0.1})


def test_an_unconditional_flow_reads_no_labels() -> None:
    assert (tuple(family().reads), tuple(family().conditions)) == (("image",), ())
    assert tuple(family(class_conditional=True).reads) == ("image", "label")
