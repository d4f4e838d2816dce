"""Diffusion as a family: its options, its losses, its samples, its likelihood and what leaves it."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMPipeline
from pydantic import ValidationError
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.families.abilities import DiffusersPipeline, Effort
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.diffusion.diffusion import Diffusion
from bigtrain.families.diffusion.diffusion_options import DiffusionOptions, scheduler_of
from bigtrain.families.diffusion.network_times import stratified_timesteps
from bigtrain.families.diffusion.samplers import DiffusionSamplingOptions, visited_timesteps
from bigtrain.families.family import build_network
from bigtrain.families.phases import Microbatch
from bigtrain.networks.diffusion.unet import UNet
from bigtrain.randomness import Draws
from bigtrain.recipe import load_recipe
from bigtrain.sizes import size_of
from tests.asking import sampled
from tests.families.diffusion.test_diffusion_samplers import NoLookAtTheDevice

PROBLEM = DataSpec((16, 16), 3, ("a", "b", "c"), (10, 0, 30))
UNET = {"channels": 8, "multipliers": [1, 2], "blocks_per_level": 1, "attention_resolutions": [8], "norm_groups": 4}
SMALL: dict[str, Any] = {"kind": "diffusion", "unet": UNET, "timesteps": 25, "optimizer": {"lr": 0.001}}
GUIDED = {"class_conditional": True, "label_dropout": 0.25}
HYBRID = {"loss": "hybrid", "variance": "learned"}

CPU = torch.device("cpu")


def family(**options: Any) -> Diffusion:
    return Diffusion(DiffusionOptions.model_validate(SMALL | options), PROBLEM)


def network_of(diffusion: Diffusion, scale: float = 0.05) -> dict[str, nn.Module]:
    """As if it had learned something: other weights in place of the zeros."""
    network = build_network(diffusion, "unet", seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return {"unet": network}


def microbatch(indices: Sequence[int] = range(8), global_batch_size: int = 8, seed: int = 0) -> Microbatch:
    levels = torch.randint(0, 256, (global_batch_size, 3, 16, 16), generator=torch.Generator().manual_seed(seed))
    images = (levels.to(torch.get_default_dtype()) / 127.5 - 1)[list(indices)]
    labels = (torch.arange(global_batch_size) % 3)[list(indices)]
    return Microbatch({"image": images, "label": labels}, indices, Draws(0, step=5), CPU, global_batch_size)


class Spy(nn.Module):
    """Keeps what a network is asked, and answers with a given output."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        self.asked.append((x, t, labels))
        return self.answer(x)


# ---------------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "hybrid"}, "loss: hybrid .* variance is fixed_small; set variance: learned"),
        ({"variance": "learned"}, "variance: learned cannot be trained by loss: simple.* set loss: hybrid"),
        ({"label_dropout": 0.1}, "label_dropout: there are no labels to drop; set class_conditional: true"),
        ({"timesteps": 20}, "timesteps: the linear schedule"),
        ({"sampling": {"guidance": 1.0}}, "sampling.guidance: 1.0 needs .* unconditional"),
        ({"sampling": {"guidance": 1.0}, "class_conditional": True}, "guidance: .* trained without label_dropout"),
        ({"sampling": {"steps": 26}}, "sampling.steps: 26 is more than the model's 25 timesteps"),
        ({"sampling": {"sampler": "euler"}}, "'ancestral', 'ddim' or 'dpmpp'"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        family(**options)


def test_a_size_that_the_unet_cannot_halve_is_refused_before_a_network_is_built() -> None:
    options = DiffusionOptions.model_validate(SMALL | {"unet": UNET | {"multipliers": [1, 1, 1, 1, 1, 1]}})
    with pytest.raises(ValueError, match="multipliers: 6 levels"):
        Diffusion(options, PROBLEM)


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"guidance": 2.0}, "sampling.guidance"),
        ({"sampler": "ddim", "steps": 24}, "ddim visits every k-th of the 25"),
        ({"sampler": "ddim", "steps": 2}, "set sampling.spacing: trailing"),
        ({"sampler": "ancestral", "spacing": "trailing"}, "sampling.spacing: trailing is a spacing of ddim"),
    ],
)
def test_the_sampling_options_of_a_command_are_checked_too(sampling: dict[str, Any], message: str) -> None:
    diffusion = family()
    with pytest.raises(UserError, match=message):
        diffusion.prepare_sampling(network_of(diffusion), DiffusionSamplingOptions(**sampling), seed=0)


@pytest.mark.parametrize("recipe", ["ddpm_digits", "ddpm_cifar10", "iddpm_cifar10", "ddpm_imagenet64"])
def test_the_recipes_are_whole_and_evaluate_in_few_steps(recipe: str) -> None:
    loaded = load_recipe(Path(__file__).parents[3] / "recipes" / f"{recipe}.yaml")
    assert loaded.family.sampling.steps == 20
    spec = DataSpec(size_of(loaded.data.image_size), 3, ("a", "b"), (1, 1))
    assert Diffusion(loaded.family, spec).components["unet"].averaged


# ------------------------------------------------------------------------------------------------------------ times


@pytest.mark.parametrize(("whole", "timesteps"), [(8, 1000), (128, 1000), (64, 40), (2048, 1000)])
def test_times_are_spread_evenly_over_the_global_batch(whole: int, timesteps: int) -> None:
    for step in range(20):
        t = stratified_timesteps(Draws(3, step=step), range(whole), whole, timesteps)
        counts = torch.bincount(t * 4 // timesteps, minlength=4)
        assert (counts - whole / 4).abs().max() <= 1
        assert t.min() >= 0
        assert t.max() < timesteps


def test_a_samples_time_depends_on_its_index_alone_and_every_time_occurs() -> None:
    whole = stratified_timesteps(Draws(3, step=7), range(16), 16, 1000)
    parts = [stratified_timesteps(Draws(3, step=7), [index], 16, 1000) for index in range(16)]
    assert torch.equal(whole, torch.cat(parts))
    first = torch.cat([stratified_timesteps(Draws(3, step=step), [5], 16, 40) for step in range(1000)])
    counts = torch.bincount(first, minlength=40)
    assert counts.min() > 5
    assert counts.max() < 60


def test_bf16_training_sees_every_noise_level() -> None:
    """The trap: alpha_bar rounded to bf16 leaves some 190 levels of 1000, and no noise at all in the first ten."""
    diffusion = family(timesteps=1000)
    spy = Spy(torch.zeros_like)
    images = torch.zeros(1000, 3, 4, 4)
    batch = Microbatch({"image": images}, range(1000), Draws(0, step=5), CPU, 1000)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = diffusion.denoising_loss({"unet": spy}, batch)
    x, t, _ = spy.asked[0]
    assert x.dtype == losses.total.dtype == torch.float32
    assert sorted(t.tolist()) == list(range(1000))
    noise = batch.draws.normal("denoising/noise", range(1000), (3, 4, 4))
    deviation = (x / noise).flatten(1).double().mean(1)
    assert len(deviation.unique()) == 1000
    torch.testing.assert_close(deviation, (1 - diffusion.process.alpha_bar[t]).sqrt(), rtol=1e-5, atol=0)


def test_rescaled_timesteps_run_to_a_thousand_whatever_t_is() -> None:
    diffusion = family(timesteps=4000, rescale_timesteps=True)
    spy = Spy(torch.zeros_like)
    diffusion.denoising_loss({"unet": spy}, microbatch())
    t = stratified_timesteps(Draws(0, step=5), range(8), 8, 4000)
    assert torch.equal(spy.asked[0][1], t * 0.25)
    sampling = DiffusionSamplingOptions(sampler="dpmpp", steps=2)
    sampled(diffusion, {"unet": spy}, torch.zeros(1, dtype=torch.int64), [0], 0, sampling)
    assert [float(asked[1]) for asked in spy.asked[1:]] == [3999 * 0.25, 0.0]


# ----------------------------------------------------------------------------------------------------------- losses


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_simple_loss_is_the_squared_error_of_what_is_predicted(prediction: str) -> None:
    diffusion, batch = family(prediction=prediction), microbatch()
    noise = batch.draws.normal("denoising/noise", range(8), (3, 16, 16))
    t = stratified_timesteps(batch.draws, range(8), 8, 25)
    losses = diffusion.denoising_loss({"unet": Spy(torch.zeros_like)}, batch)
    expected = diffusion.process.target(prediction, batch["image"], t, noise).square().mean()
    torch.testing.assert_close(losses.total, expected)


def test_min_snr_weighs_each_sample() -> None:
    diffusion, batch = family(prediction="x0", loss="min_snr"), microbatch()
    t = stratified_timesteps(batch.draws, range(8), 8, 25)
    weight = diffusion.process.min_snr_weight("x0", t, 5.0)
    assert len(weight.unique()) > 4
    losses = diffusion.denoising_loss({"unet": Spy(torch.zeros_like)}, batch)
    expected = (weight[:, None, None, None] * batch["image"].square()).mean()
    torch.testing.assert_close(losses.total, expected.float())


def test_the_hybrid_loss_teaches_the_mean_by_the_simple_loss_alone_and_the_variance_by_the_bound_alone() -> None:
    diffusion, batch = family(**HYBRID), microbatch()
    output = (0.1 * torch.randn(8, 6, 16, 16, generator=torch.Generator().manual_seed(0))).requires_grad_()
    losses = diffusion.denoising_loss({"unet": Spy(lambda x: output)}, batch)
    torch.testing.assert_close(losses.total, losses.terms["simple"] + 0.001 * losses.terms["vlb"])
    total, simple, bound = (
        torch.autograd.grad(value, output, retain_graph=True, allow_unused=True)[0]
        for value in (losses.total, losses.terms["simple"], losses.terms["vlb"])
    )
    torch.testing.assert_close(total[:, :3], simple[:, :3])
    assert not bound[:, :3].any()
    assert not simple[:, 3:].any()
    torch.testing.assert_close(total[:, 3:], 0.001 * bound[:, 3:])
    assert bound[:, 3:].isfinite().all()


def test_the_bound_as_a_loss_is_in_the_mean_the_likelihoods_own_without_its_prior() -> None:
    """With a network that knows the image to within a tenth, over all the times at once."""
    torch.set_default_dtype(torch.float64)
    diffusion = family(prediction="x0", loss="vlb", variance="fixed_large")
    levels = torch.full((25, 3, 16, 16), 160.0) / 127.5 - 1
    batch = Microbatch({"image": levels}, range(25), Draws(0), CPU, 25)
    networks = {"unet": Spy(lambda x: torch.full_like(x, levels[0, 0, 0, 0]) + 0.1)}
    loss = diffusion.denoising_loss(networks, batch).total
    bound = diffusion.likelihood(networks, batch, Effort(None))
    bits = (bound["nats"] - bound["prior"]).mean() / diffusion.dimensions / math.log(2)
    assert float(loss) == pytest.approx(float(bits), rel=0.02)


def test_quartiles_average_over_ranks_to_the_loss_of_their_times() -> None:
    diffusion = family(**HYBRID)
    networks = network_of(diffusion)
    whole = diffusion.denoising_loss(networks, microbatch())
    halves = [diffusion.denoising_loss(networks, microbatch(part)) for part in (range(4), range(4, 8))]
    torch.testing.assert_close((halves[0].total + halves[1].total) / 2, whole.total)
    for name, value in whole.terms.items():
        torch.testing.assert_close((halves[0].terms[name] + halves[1].terms[name]) / 2, value)
    quartiles = [whole.terms[f"quartile_{number}"] for number in (1, 2, 3, 4)]
    torch.testing.assert_close(sum(quartiles) / 4, whole.total)


def test_labels_are_dropped_sample_by_sample_into_the_null_class() -> None:
    diffusion, spy = family(**GUIDED), Spy(torch.zeros_like)
    seen = []
    for step in range(50):
        batch = microbatch()
        diffusion.denoising_loss({"unet": spy}, replace(batch, draws=Draws(0, step=step)))
        seen.append(spy.asked[-1][2] == 3)
        kept = ~seen[-1]
        assert torch.equal(spy.asked[-1][2][kept], batch["label"][kept])
    dropped = torch.stack(seen)
    assert 0.18 < dropped.float().mean() < 0.32
    assert any(0 < int(row.sum()) < 8 for row in dropped)


def test_only_a_model_that_is_told_the_class_samples_by_class() -> None:
    assert list(family().conditions) == []
    assert list(family(class_conditional=True).conditions) == ["label"]


def test_an_unconditional_network_is_told_no_class() -> None:
    spy = Spy(torch.zeros_like)
    family().denoising_loss({"unet": spy}, microbatch())
    assert spy.asked[0][2] is None


@pytest.mark.parametrize(
    "options", [HYBRID | GUIDED, {"loss": "min_snr", "prediction": "v"}], ids=["hybrid", "min_snr"]
)
def test_a_training_step_looks_at_no_value_on_the_device(options: dict[str, Any]) -> None:
    diffusion, batch = family(**options), microbatch()
    networks = network_of(diffusion)
    with NoLookAtTheDevice():
        diffusion.denoising_loss(networks, batch).total.backward()


def test_a_float64_run_stays_float64() -> None:
    torch.set_default_dtype(torch.float64)
    diffusion = family(**HYBRID | GUIDED)
    losses = diffusion.denoising_loss(network_of(diffusion), microbatch())
    assert {losses.total.dtype, *(term.dtype for term in losses.terms.values())} == {torch.float64}


# --------------------------------------------------------------------------------------------------------- sampling

SAMPLINGS: list[dict[str, Any]] = [
    {"sampler": "ancestral"},
    {"sampler": "ancestral", "steps": 7, "guidance": 1.5},
    {"sampler": "ddim", "steps": 9},
    {"sampler": "ddim", "steps": 4, "spacing": "trailing"},
    {"sampler": "dpmpp", "steps": 10, "guidance": 0.5},
]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("options", [{}, HYBRID], ids=["fixed", "learned"])
def test_a_sample_depends_on_its_index_and_not_on_its_batch(sampling: dict[str, Any], options: dict[str, Any]) -> None:
    """With a learned variance too, on which diffusers' DDIM fails. In float64: the first step magnifies roundings."""
    torch.set_default_dtype(torch.float64)
    diffusion, how = family(**GUIDED | options), DiffusionSamplingOptions(**sampling)
    prepared = diffusion.prepare_sampling(network_of(diffusion), how, seed=3)
    labels = torch.tensor([0, 1, 2])
    whole = sampled(diffusion, prepared, labels, range(3), 3, how)
    assert whole.shape == (3, 3, 16, 16)
    assert whole.abs().max() <= 1
    parts = torch.cat([sampled(diffusion, prepared, labels[i : i + 1], [i], 3, how) for i in range(3)])
    torch.testing.assert_close(whole, parts, rtol=0, atol=1e-9)
    assert not torch.allclose(whole, sampled(diffusion, prepared, labels, range(3), 4, how), atol=1e-2)


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_sampling_looks_at_no_value_on_the_device(sampling: dict[str, Any]) -> None:
    diffusion, how = family(**HYBRID | GUIDED), DiffusionSamplingOptions(**sampling)
    prepared = diffusion.prepare_sampling(network_of(diffusion), how, seed=3)
    looks: list[None] = []

    class Guarded(nn.Module):
        """From the first evaluation of the network to the last."""

        def forward(self, *inputs: Any) -> Tensor:
            if not looks:
                guard.__enter__()
            looks.append(None)
            return prepared["unet"](*inputs)

    guard = NoLookAtTheDevice()
    try:
        sampled(diffusion, {"unet": Guarded()}, torch.arange(3), range(3), 3, how)
    finally:
        guard.__exit__(None, None, None)
    assert len(looks) == (how.steps or 25)


def test_dropout_is_off_in_samples_and_the_given_network_stays_as_it_was() -> None:
    diffusion = family(unet=UNET | {"dropout": 0.5})
    networks = network_of(diffusion)
    how = DiffusionSamplingOptions(sampler="dpmpp", steps=5)
    prepared = diffusion.prepare_sampling(networks, how, seed=0)
    labels = torch.zeros(2, dtype=torch.int64)
    assert torch.equal(*(sampled(diffusion, prepared, labels, range(2), 0, how) for _ in range(2)))
    assert networks["unet"].training


def test_guidance_is_one_call_of_twice_the_batch_and_pushes_away_from_no_class() -> None:
    diffusion = family(**GUIDED, prediction="x0")
    unet = network_of(diffusion)["unet"].eval()
    spy = Spy(lambda x: torch.cat([torch.full_like(x[:4], 0.3), torch.full_like(x[:4], 0.1)]))
    few = {"sampler": "ddim", "steps": 2, "spacing": "trailing"}
    how = DiffusionSamplingOptions(**few, guidance=2.0)
    labels = torch.tensor([0, 1, 2, 0])
    images = sampled(diffusion, {"unet": spy}, labels, range(4), 0, how)
    assert len(spy.asked) == 2
    assert all(asked[2].tolist() == [0, 1, 2, 0, 3, 3, 3, 3] for asked in spy.asked)
    # (1 + w) 0.3 - w 0.1
    torch.testing.assert_close(images, torch.full_like(images, 0.7))
    none, zero = DiffusionSamplingOptions(**few), DiffusionSamplingOptions(**few, guidance=0.0)
    assert torch.equal(*(sampled(diffusion, {"unet": unet}, labels, range(4), 0, way) for way in (none, zero)))


# ------------------------------------------------------------------------------------------------------- likelihood


def test_the_bound_is_its_prior_and_its_terms_by_time() -> None:
    diffusion = family(**HYBRID)
    batch = replace(microbatch(), draws=Draws(0))
    found = diffusion.likelihood({"unet": network_of(diffusion)["unet"].eval()}, batch, Effort(None))
    assert {name: (tuple(value.shape), value.dtype) for name, value in found.items()} == {
        "nats": ((8,), torch.float64), "prior": ((8,), torch.float64), "decoder": ((8,), torch.float64),
        "vlb_by_timestep": ((8, 25), torch.float64),
    }  # fmt: skip
    torch.testing.assert_close(found["nats"], found["prior"] + found["vlb_by_timestep"].sum(1))
    assert torch.equal(found["decoder"], found["vlb_by_timestep"][:, 0])
    assert (found["vlb_by_timestep"] > 0).all()
    assert diffusion.dimensions == 768


def test_a_samples_bound_depends_on_its_number_alone() -> None:
    diffusion = family(**HYBRID)
    networks = {"unet": network_of(diffusion)["unet"].eval()}
    whole = diffusion.likelihood(networks, replace(microbatch(), draws=Draws(0)), Effort(10))
    parts = [
        diffusion.likelihood(networks, replace(microbatch([index]), draws=Draws(0)), Effort(10)) for index in range(8)
    ]
    for name, value in whole.items():
        torch.testing.assert_close(value, torch.cat([part[name] for part in parts]), rtol=1e-4, atol=1e-3)


def test_fewer_evaluations_estimate_the_same_bound() -> None:
    diffusion = family()
    networks = {"unet": network_of(diffusion)["unet"].eval()}
    batch = replace(microbatch(global_batch_size=32, indices=range(32)), draws=Draws(0))
    whole, parts = diffusion.likelihood(networks, batch, Effort(None)), diffusion.likelihood(networks, batch, Effort(9))
    difference = parts["nats"] - whole["nats"]
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(32)
    assert torch.equal((parts["vlb_by_timestep"] > 0).sum(1), torch.full((32,), 9))
    every = diffusion.likelihood(networks, batch, Effort(25))
    torch.testing.assert_close(every["nats"], whole["nats"], rtol=0, atol=0)


@pytest.mark.parametrize("evaluations", [1, 26])
def test_a_bound_of_evaluations_that_there_are_not_is_refused_by_its_key(evaluations: int) -> None:
    diffusion = family()
    message = f"evaluation.likelihood_evaluations: .* 25 timesteps .* 2 .. 25 evaluations, not {evaluations}"
    with pytest.raises(UserError, match=message):
        diffusion.likelihood(network_of(diffusion), microbatch(), Effort(evaluations))
    with pytest.raises(UserError, match=message):
        diffusion.likelihood_protocol(Effort(evaluations), seed=0)


def test_the_protocol_says_how_the_bound_was_estimated() -> None:
    whole = {"likelihood": "variational", "bits": 8, "evaluations": 25, "timesteps": 25, "seed": 7}
    assert family().likelihood_protocol(Effort(None), seed=7) == whole
    assert family().likelihood_protocol(Effort(9), seed=7) == whole | {"evaluations": 9}


def test_a_network_that_knows_the_image_pays_for_its_last_step_alone() -> None:
    diffusion = family(timesteps=100, schedule="cosine", prediction="x0")
    level = 200 / 127.5 - 1
    batch = Microbatch({"image": torch.full((2, 3, 16, 16), level)}, range(2), Draws(0), CPU, 2)
    found = diffusion.likelihood({"unet": Spy(lambda x: torch.full_like(x, level))}, batch, Effort(None))
    assert found["vlb_by_timestep"][:, 1:].abs().max() < 1e-6
    deviation = float((diffusion.process.log_posterior_variance[0] / 2).exp())
    inside = math.erf(1 / 255 / deviation / math.sqrt(2))
    assert float(found["decoder"][0]) == pytest.approx(-768 * math.log(inside), rel=1e-4)


# ----------------------------------------------------------------------------------------------------------- export


@pytest.mark.parametrize(
    "options", [{}, HYBRID | {"timesteps": 100, "schedule": "cosine", "rescale_timesteps": True}], ids=["ddpm", "iddpm"]
)
def test_plain_diffusers_loads_and_samples_an_unconditional_model(options: dict[str, Any], tmp_path: Path) -> None:
    diffusion = family(**options)
    networks = network_of(diffusion)
    plain = diffusion.to_diffusers(networks)
    assert plain is not None
    plain.save_pretrained(tmp_path)
    pipeline = DDPMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(num_inference_steps=5, output_type="np").images.shape == (1, 16, 16, 3)
    assert isinstance(networks["unet"], UNet)
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 24])
    expected = networks["unet"].eval()(x, diffusion._network_time(t))
    torch.testing.assert_close(pipeline.unet(x, t).sample, expected, rtol=1e-5, atol=1e-5)
    back = diffusion.from_diffusers(pipeline)["unet"].eval()(x, diffusion._network_time(t))
    assert torch.equal(back, expected)
    ours = diffusion.process.alpha_bar.float()
    torch.testing.assert_close(pipeline.scheduler.alphas_cumprod, ours, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, None),
        ({"variance": "fixed_large", "timesteps": 100}, None),
        (HYBRID | {"timesteps": 100, "schedule": "cosine", "rescale_timesteps": True}, None),
        ({"timesteps": 100, "schedule": "cosine", "prediction": "v"}, 20),
    ],
    ids=["ddpm", "fixed_large", "iddpm", "v"],
)
def test_plain_diffusers_given_our_noise_draws_our_images(
    options: dict[str, Any], steps: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    diffusion, how = family(**options), DiffusionSamplingOptions(steps=steps)
    networks = {"unet": network_of(diffusion)["unet"].eval()}
    ours = sampled(diffusion, networks, torch.zeros(2, dtype=torch.int64), range(2), 3, how)
    pipeline = diffusion.to_diffusers(networks)
    assert pipeline is not None
    pipeline.set_progress_bar_config(disable=True)
    chosen = visited_timesteps("ancestral", diffusion.process, steps)
    times = iter([0, *chosen[::-1]])

    def noise(*arguments: Any, **how: Any) -> Tensor:
        return Draws(3).normal("sample/noise", range(2), (3, 16, 16), sampler_step=next(times))

    monkeypatch.setattr("diffusers.pipelines.ddpm.pipeline_ddpm.randn_tensor", noise)
    monkeypatch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", noise)
    images = pipeline(batch_size=2, num_inference_steps=len(chosen), output_type="pt").images
    assert images.flatten(1).std() > 0.1
    torch.testing.assert_close(images * 2 - 1, ours, rtol=0, atol=2e-2)


def test_a_class_conditional_model_is_nothing_for_the_plain_pipeline() -> None:
    assert not family(**GUIDED).require(DiffusersPipeline, "it").sampled_by_diffusers
    assert family().require(DiffusersPipeline, "it").sampled_by_diffusers


@pytest.mark.parametrize(
    ("sampling", "name"),
    [
        ({}, ""),
        ({"sampler": "ancestral", "steps": 25}, ""),
        ({"sampler": "ancestral", "steps": 10}, "ancestral_10"),
        ({"sampler": "dpmpp", "steps": 5, "guidance": 1.0}, "dpmpp_5_guided_1"),
        ({"sampler": "ddim", "steps": 5, "spacing": "trailing", "guidance": 0.25}, "ddim_5_trailing_guided_0.25"),
        ({"guidance": 3.0}, "guided_3"),
    ],
)
def test_a_cheaper_way_of_sampling_is_in_the_name_of_what_is_measured(sampling: dict[str, Any], name: str) -> None:
    diffusion = family(**GUIDED, sampling=sampling)
    assert diffusion.sampling_name(diffusion.sampling) == name


def test_the_plain_scheduler_has_the_variance_of_the_recipe_and_starts_at_the_last_time() -> None:
    scheduler = scheduler_of(family(variance="fixed_large").options)
    assert scheduler.config["variance_type"] == "fixed_large"
    scheduler.set_timesteps(10)
    assert int(scheduler.timesteps[0]) == 24
