"""The mathematics of diffusion is OpenAI's, by values of improved-diffusion (tests/recordings/improved_diffusion_process.py).

Lists agree to 1e-9 of each number or of 1, tensors to 1e-9 of their norm. Two things differ on purpose. The bound's
decoder takes the normal distribution function exactly, where theirs is an approximation: their values with the exact function
are ours to 1e-9, and those as published to 1e-3. And where a shortened process has a timestep just between two, ours is the
even one, theirs what rounding has left of a sum.
"""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bigtrain.families.abilities import Effort
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.diffusion.diffusion import Diffusion, DiffusionSamplingOptions
from bigtrain.families.diffusion.diffusion_options import DiffusionOptions
from bigtrain.families.diffusion.process import Process, make_process
from bigtrain.families.diffusion.samplers import visited_timesteps
from bigtrain.families.phases import Microbatch
from tests import asking
from tests.asking import sampled
from tests.recordings.improved_diffusion_process import (
    BOUNDS,
    LOSS_STEPS,
    LOSS_TIMES,
    LOSSES,
    SAMPLES,
    SHAPE,
    TIMES,
    images,
    network,
    noise,
    outputs_of,
)
from tests.recordings.summary import assert_excerpt, assert_summaries, read, summary

RECORDING = read("improved_diffusion_process")
PUBLISHED_DECODER = 1e-3
"""How far, relatively, a bound may be off by their approximation."""
UNET = {"channels": 4, "multipliers": [1], "attention_resolutions": [], "norm_groups": 2}


@dataclass
class RecordedDraws:
    """The noise of the recording by the step that draws it, and the first of the times that are spread over a batch."""

    seed: int = 0
    device: torch.device | None = None

    def normal(self, stream: str, indices: Any, shape: tuple[int, ...], sampler_step: int = 0) -> Tensor:
        return noise(sampler_step)[list(indices)]

    def uniform(self, stream: str, indices: Any, sampler_step: int = 0) -> Tensor:
        return torch.zeros(len(indices), dtype=torch.float64)

    def numbers(self, indices: Any) -> Tensor:
        return torch.tensor(list(indices))


class Formula(nn.Module):
    """The recording's formula in place of the network; keeps the times that it is asked for and what it has put out."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.times: list[float] = []
        self.last = torch.empty(0)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.times.append(float(t[0]))
        self.last = network(x, t, self.outputs).requires_grad_()
        return self.last


@pytest.fixture(autouse=True)
def _in_float64() -> None:
    torch.set_default_dtype(torch.float64)


def family(schedule: str, steps: int, **options: Any) -> Diffusion:
    given = {"kind": "diffusion", "unet": UNET, "optimizer": {"lr": 1.0}, "rescale_timesteps": True}
    given |= {"schedule": schedule, "timesteps": steps} | options
    return Diffusion(DiffusionOptions.model_validate(given), DataSpec((SHAPE[-1], SHAPE[-1]), 3, ("one",), (1,)))


def batch(indices: list[int]) -> Microbatch:
    return Microbatch({"image": images()[indices]}, indices, RecordedDraws(), torch.device("cpu"), len(images()))


def assert_close(ours: Any, recorded: Any, relative: float = 1e-9, absolute: float = 1e-9) -> None:
    torch.testing.assert_close(torch.as_tensor(ours), torch.tensor(recorded), rtol=relative, atol=absolute)


# ------------------------------------------------------------------------------------------------------------ tables


def process_of(name: str) -> Process:
    """By "SCHEDULE STEPS" or "SCHEDULE STEPS RESPACING"."""
    schedule, steps, *respacing = name.split()
    process = make_process(schedule, int(steps))
    return process.respaced(visited(process, respacing[0])) if respacing else process


def visited(process: Process, respacing: str) -> list[int]:
    sampler = "ddim" if respacing.startswith("ddim") else "ancestral"
    return visited_timesteps(sampler, process, int(respacing.removeprefix("ddim")))


@pytest.mark.parametrize("name", RECORDING["tables"])
def test_the_schedules_have_openais_tables(name: str) -> None:
    process = process_of(name)
    tables = {
        "log_alpha_bar": process.alpha_bar.log(),
        "log_one_minus_alpha_bar": (1 - process.alpha_bar).log(),
        "log_beta": process.log_beta,
        "log_posterior_of_x0": process.posterior_of_x0.log(),
        "log_posterior_of_x": process.posterior_of_x[1:].log(),
        "log_posterior_variance": process.log_posterior_variance,
    }
    assert process.posterior_of_x[0] == 0
    assert_summaries({key: summary(key, table) for key, table in tables.items()}, RECORDING["tables"][name])


@pytest.mark.parametrize("name", sorted(set(RECORDING["respacings"]) - {"1000 27"}))
def test_shortened_processes_visit_openais_timesteps(name: str) -> None:
    steps, respacing = name.split()
    assert visited(make_process("linear", int(steps)), respacing) == RECORDING["respacings"][name]


def test_a_timestep_between_two_may_be_their_other_one() -> None:
    """27 of 1000 steps are every 38.42...th, and the one in the middle is at 499.5."""
    ours, theirs = visited(make_process("linear", 1000), "27"), RECORDING["respacings"]["1000 27"]
    different = [number for number, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1]]
    assert different == [13]
    assert (ours[13], theirs[13]) == (500, 499)


# ----------------------------------------------------------------------------------------------------- distributions


def noised(schedule: str) -> tuple[Process, Tensor, Tensor, Tensor]:
    """A process, x_0, t and x_t."""
    process, t = make_process(schedule, 1000), torch.tensor(TIMES)
    return process, images(), t, process.q_sample(images(), t, noise(0))


@pytest.mark.parametrize("schedule", RECORDING["distributions"])
def test_noised_images_and_their_posteriors_are_openais(schedule: str) -> None:
    recorded = RECORDING["distributions"][schedule]
    process, x0, t, x = noised(schedule)
    assert_excerpt(x, recorded["q_sample"], "x_t")
    assert_excerpt(process.posterior_mean(x0, x, t), recorded["posterior_mean"], "mean")
    log_variance = process.log_variance("fixed_small", None, t, x).expand(SHAPE)
    assert_excerpt(log_variance, recorded["log_posterior_variance"], "log variance")


def test_the_prior_term_is_openais() -> None:
    """Of the linear schedule, to all of its digits; of the cosine one theirs has lost most of them."""
    for schedule, relative in ("linear", 1e-9), ("cosine", 1e-6):
        bits = make_process(schedule, 1000).prior_term(images()) / math.log(2) / math.prod(SHAPE[1:])
        assert_close(bits, RECORDING["distributions"][schedule]["prior_bits"], relative, absolute=0)


@pytest.mark.parametrize("schedule", RECORDING["distributions"])
@pytest.mark.parametrize("name", [name for name in RECORDING["distributions"]["linear"] if name.startswith("p ")])
def test_a_step_backwards_has_openais_mean_and_variance(schedule: str, name: str) -> None:
    _, variance, prediction, clipped = name.split()
    process, _, t, x = noised(schedule)
    # Of 1000 steps the rescaled times, which the network sees, are the timesteps.
    output, interpolation = network(x, t).chunk(2, dim=1)
    x0 = process.predicted_x0(prediction, output, x, t)
    x0 = x0.clamp(-1, 1) if clipped == "clipped" else x0
    log_variance = process.log_variance(variance, interpolation, t, x).expand(SHAPE)
    recorded = RECORDING["distributions"][schedule][name]
    found = {"x0": summary("x0", x0), "log_variance": summary("log_variance", log_variance)}
    assert_summaries(found, {key: recorded[key] for key in found})
    assert_excerpt(process.posterior_mean(x0, x, t), recorded["mean"], "mean")


# ------------------------------------------------------------------------------------------------------------ losses


def losses_of(name: str) -> tuple[dict[str, Tensor], Tensor]:
    """Each image's loss and terms, as of a microbatch of its own, and the gradients in the network's output."""
    case = LOSSES[name]
    diffusion = family(
        case["schedule"],
        LOSS_STEPS,
        prediction="x0" if case["flags"].get("predict_xstart") else "epsilon",
        loss=name.partition("_")[0],
        variance=case["variance"],
    )
    model, found, gradients = Formula(outputs_of(case["variance"])), [], []
    for index in range(len(images())):
        losses = diffusion.denoising_loss({"unet": model}, batch([index]))
        losses.total.backward()
        found.append({"loss": losses.total.detach(), **losses.terms})
        gradients.append(model.last.grad)
    assert model.times == [time * 1000 / LOSS_STEPS for time in LOSS_TIMES]
    return {key: torch.stack([each[key].detach() for each in found]) for key in found[0]}, torch.cat(gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_their_gradients_are_openais(name: str) -> None:
    recorded, published = RECORDING["losses"][name], RECORDING["losses_as_published"][name]
    found, gradient = losses_of(name)
    assert_close(found["loss"], recorded["loss"])
    assert_excerpt(gradient, recorded["gradient"], "gradient")
    assert_close(found["loss"], published["loss"], relative=PUBLISHED_DECODER)
    assert_close(found["loss"][1:], published["loss"][1:])


def test_the_hybrid_losss_terms_are_openais() -> None:
    found, recorded = losses_of("hybrid")[0], RECORDING["losses"]["hybrid"]
    assert_close(found["simple"], recorded["mse"])
    # Theirs is logged as it is added, ours in bits per dimension.
    assert_close(found["vlb"] / 1000, recorded["vb"])


@pytest.mark.parametrize("name", BOUNDS)
def test_the_variational_bound_is_openais_term_by_term(name: str) -> None:
    case, recorded, published = BOUNDS[name], RECORDING["bounds"][name], RECORDING["bounds_as_published"][name]
    learned = {"loss": "hybrid"} if case["variance"] == "learned" else {}
    diffusion = family(case["schedule"], case["steps"], variance=case["variance"], **learned)
    networks = {"unet": Formula(outputs_of(case["variance"]))}
    nats = diffusion.likelihood(networks, batch(list(range(len(images())))), Effort())
    bits = {key: value / math.log(2) / diffusion.dimensions for key, value in nats.items()}
    assert_close(bits["vlb_by_timestep"], recorded["by_timestep"])
    assert_close(bits["decoder"], [terms[0] for terms in recorded["by_timestep"]])
    assert_close(bits["prior"], recorded["prior"])
    assert_close(bits["nats"], recorded["total"])
    assert_close(bits["nats"], published["total"], relative=PUBLISHED_DECODER)


# ---------------------------------------------------------------------------------------------------------- samplers


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_are_openais_step_by_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, recorded = SAMPLES[name], RECORDING["samples"][name]
    learned = {"loss": "hybrid"} if case["variance"] == "learned" else {}
    diffusion = family(case["schedule"], case["steps"], variance=case["variance"], **learned)
    monkeypatch.setattr(asking, "Draws", RecordedDraws)
    model, path = Formula(outputs_of(case["variance"])), []
    model.register_forward_pre_hook(lambda module, args: path.append(args[0]))
    sampling = DiffusionSamplingOptions(
        sampler=name.partition("_")[0], steps=int(case["respacing"].removeprefix("ddim"))
    )
    labels = torch.zeros(SHAPE[0], dtype=torch.int64)
    sample = sampled(diffusion, {"unet": model}, labels, range(SHAPE[0]), 0, sampling)
    assert model.times == recorded["seen"]
    # The network sees what every step but the last has made; it first sees noise.
    ours = {str(step): summary("path", x) for step, x in enumerate([*path[1:], sample])}
    assert_summaries(ours, {str(step): numbers for step, numbers in enumerate(recorded["path"])})
    assert_excerpt(sample, recorded["sample"], "sample")
