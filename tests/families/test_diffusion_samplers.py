"""Our samplers beside diffusers' schedulers, step by step, and what must hold of the way there."""

from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from bigtrain.families.diffusion.process import make_process
from bigtrain.families.diffusion.samplers import ancestral, ddim, dpmpp, visited_timesteps

NAMES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
SHAPE = (2, 3, 4, 4)


def gauss(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def denoised(x: Tensor, time: float) -> Tensor:
    """Something like a denoiser: it depends on the image and the time, and stays in range."""
    return torch.tanh(x * (0.5 + time / 1000) + 0.1)


def exact(scheduler: Any, schedule: str, timesteps: int) -> Any:
    """The scheduler with float64 tables in place of its own float32 ones, which differ by some 1e-4."""
    scheduler.alphas_cumprod = make_process(schedule, timesteps).alpha_bar
    for name, value in (
        ("alpha_t", scheduler.alphas_cumprod.sqrt()),
        ("sigma_t", (1 - scheduler.alphas_cumprod).sqrt()),
    ):
        if hasattr(scheduler, name):
            setattr(scheduler, name, value)
    return scheduler


def ours(name: str, schedule: str, chosen: list[int], variance: str = "fixed_small") -> list[Tensor]:
    process = make_process(schedule, 1000).respaced(chosen)
    path: list[Tensor] = []

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        path.append(x)
        return denoised(x, float(process.timesteps[t[0]])), torch.tanh(x)

    if name == "ancestral":
        path.append(ancestral(process, denoise, gauss(0), variance, lambda t: gauss(chosen[t])))
    else:
        path.append({"ddim": ddim, "dpmpp": dpmpp}[name](process, denoise, gauss(0)))
    return path


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 1000])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned"])
def test_ancestral_steps_are_diffusers(schedule: str, steps: int, variance: str, monkeypatch: Any) -> None:
    process = make_process(schedule, 1000)
    chosen = visited_timesteps("ancestral", process, steps)
    scheduler = exact(
        DDPMScheduler(
            1000,
            beta_schedule=NAMES[schedule],
            variance_type="learned_range" if variance == "learned" else variance,
            prediction_type="sample",
            timestep_spacing="linspace",
        ),
        schedule,
        1000,
    )
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == chosen[::-1]
    x, path = gauss(0), ours("ancestral", schedule, chosen, variance)
    for before, t in zip(path, chosen[::-1], strict=False):
        torch.testing.assert_close(before, x, rtol=1e-5, atol=1e-5)
        output = denoised(x, t)
        if variance == "learned":
            output = torch.cat([output, torch.tanh(x)], 1)
        monkeypatch.setattr(
            "diffusers.schedulers.scheduling_ddpm.randn_tensor",
            lambda *args, t=t, **kwargs: torch.cat([gauss(t), gauss(t)], 1)[:, :3],
        )
        x = scheduler.step(output, t, x).prev_sample
    torch.testing.assert_close(path[-1], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [10, 50])
def test_ddim_steps_are_diffusers(schedule: str, steps: int) -> None:
    chosen = visited_timesteps("ddim", make_process(schedule, 1000), steps)
    scheduler = exact(
        DDIMScheduler(1000, beta_schedule=NAMES[schedule], prediction_type="sample", clip_sample=False), schedule, 1000
    )
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == chosen[::-1]
    x, path = gauss(0), ours("ddim", schedule, chosen)
    for before, t in zip(path, chosen[::-1], strict=False):
        torch.testing.assert_close(before, x, rtol=1e-5, atol=1e-5)
        x = scheduler.step(denoised(x, t), t, x).prev_sample
    torch.testing.assert_close(path[-1], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_dpmpp_steps_are_diffusers(schedule: str, steps: int) -> None:
    process = make_process(schedule, 1000)
    chosen = visited_timesteps("dpmpp", process, steps)
    scheduler = exact(
        DPMSolverMultistepScheduler(
            1000, beta_schedule=NAMES[schedule], prediction_type="sample", final_sigmas_type="zero"
        ),
        schedule,
        1000,
    )
    scheduler.set_timesteps(timesteps=chosen[::-1])
    sigmas = ((1 - process.alpha_bar) / process.alpha_bar).sqrt()[chosen].flip(0)
    scheduler.sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    x, path = gauss(0), ours("dpmpp", schedule, chosen)
    for before, t in zip(path, chosen[::-1], strict=False):
        torch.testing.assert_close(before, x, rtol=1e-5, atol=1e-5)
        x = scheduler.step(denoised(x, t), t, x).prev_sample
    torch.testing.assert_close(path[-1], x.to(path[-1].dtype), rtol=1e-5, atol=1e-5)


def test_ancestral_and_dpmpp_begin_at_the_last_time_and_end_at_the_first() -> None:
    """diffusers' default would begin 50 steps at 980 of 1000, in noise that the network never saw at that time."""
    for schedule in NAMES:
        process = make_process(schedule, 1000)
        for sampler in ("ancestral", "dpmpp"):
            for steps in (2, 10, 20, 250, 999, 1000):
                chosen = visited_timesteps(sampler, process, steps)
                assert len(chosen) == len(set(chosen)) == steps
                assert chosen == sorted(chosen)
                assert (chosen[0], chosen[-1]) == (0, 999)


def test_ddim_visits_every_kth_time_from_zero() -> None:
    assert visited_timesteps("ddim", make_process("linear", 1000), 50) == list(range(0, 1000, 20))
    assert visited_timesteps("ddim", make_process("cosine", 4000), None) == list(range(4000))


@pytest.mark.parametrize(
    ("sampler", "steps", "message"),
    [
        ("ancestral", 1001, "sampling.steps: 1001 is more than the model's 1000 timesteps"),
        ("ddim", 900, "sampling.steps: ddim visits every k-th of the 1000 timesteps.* 500 or 1000 can"),
    ],
)
def test_steps_that_the_timesteps_do_not_hold_are_named(sampler: Any, steps: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visited_timesteps(sampler, make_process("linear", 1000), steps)


def test_twenty_steps_of_dpmpp_come_closer_to_the_whole_way_than_twenty_of_ddim() -> None:
    """For a normal distribution of known width, whose denoiser is exact and whose samples are x_T, scaled."""
    for schedule in NAMES:
        process = make_process(schedule, 1000)

        def sample(name: str, steps: int | None, process: Any = process) -> Tensor:
            part = process.respaced(visited_timesteps(name, process, steps))

            def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, None]:
                alpha_bar = part.alpha_bar[t][:, None, None, None]
                return alpha_bar.sqrt() * 0.04 / (1 - 0.96 * alpha_bar) * x, None

            return {"ddim": ddim, "dpmpp": dpmpp}[name](part, denoise, gauss(0))

        whole = sample("dpmpp", None)
        few, fewer = (float((sample(name, 20) - whole).abs().max()) for name in ("dpmpp", "ddim"))
        assert few < fewer / 2


class NoLookAtTheDevice(TorchDispatchMode):
    """Fails where a tensor's value would come to the host: on a GPU the host would have to wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        assert not name.startswith(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")), name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpmpp"])
def test_no_step_of_a_sampler_waits_for_the_device(name: str) -> None:
    process = make_process("cosine", 1000).respaced([0, 300, 600, 999])

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x), torch.tanh(x)

    with NoLookAtTheDevice():
        if name == "ancestral":
            ancestral(process, denoise, gauss(0), "learned", gauss)
        else:
            {"ddim": ddim, "dpmpp": dpmpp}[name](process, denoise, gauss(0))
