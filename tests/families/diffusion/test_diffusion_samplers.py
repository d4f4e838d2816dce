"""Our samplers beside diffusers' schedulers, step by step, and what must hold of the way there."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bigtrain.families.diffusion.process import make_process
from bigtrain.families.diffusion.samplers import ancestral, ddim, dpmpp, visited_process, visited_timesteps

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
@pytest.mark.parametrize(
    ("steps", "spacing"), [(20, "leading"), (50, "leading"), (2, "trailing"), (10, "trailing"), (50, "trailing")]
)
def test_ddim_steps_are_diffusers(schedule: str, steps: int, spacing: Any) -> None:
    chosen = visited_timesteps("ddim", make_process(schedule, 1000), steps, spacing)
    scheduler = exact(
        DDIMScheduler(
            1000,
            beta_schedule=NAMES[schedule],
            prediction_type="sample",
            clip_sample=False,
            timestep_spacing=spacing,
        ),
        schedule,
        1000,
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


def test_trailing_steps_are_any_number_of_times_down_from_the_last() -> None:
    process = make_process("cosine", 1000)
    for steps in range(2, 1001):
        chosen = visited_timesteps("ddim", process, steps, "trailing")
        assert len(chosen) == len(set(chosen)) == steps
        assert chosen == sorted(chosen)
        assert (chosen[0] >= 0, chosen[-1]) == (True, 999)
    scheduler = DDIMScheduler(1000, timestep_spacing="trailing")
    for steps in (3, 7, 30, 300):
        scheduler.set_timesteps(steps)
        assert scheduler.timesteps.tolist() == visited_timesteps("ddim", process, steps, "trailing")[::-1]


@pytest.mark.parametrize(
    ("sampler", "steps", "spacing", "message"),
    [
        ("ancestral", 1001, "leading", "sampling.steps: 1001 is more than the model's 1000 timesteps"),
        (
            "ddim",
            900,
            "leading",
            "sampling.steps: ddim visits every k-th of the 1000 timesteps.* 500 or 1000 are possible",
        ),
        ("ddim", 10, "leading", "timestep 900 of 1000, .*alpha_bar 0.024.* set sampling.spacing: trailing"),
        ("dpmpp", 10, "trailing", "sampling.spacing: trailing is a spacing of ddim, not of dpmpp"),
    ],
)
def test_steps_that_the_timesteps_do_not_hold_are_named(sampler: Any, steps: int, spacing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visited_timesteps(sampler, make_process("cosine", 1000), steps, spacing)


def test_dpmpp_visits_the_times_that_are_nearest_to_even_steps() -> None:
    """By the plain search over all differences, which the package does without."""
    for schedule in NAMES:
        process = make_process(schedule, 4000)
        lambdas = torch.log(process.alpha_bar / (1 - process.alpha_bar)) / 2
        for steps in (5, 20):
            wanted = torch.linspace(float(lambdas[0]), max(float(lambdas[-1]), -5.0), steps, dtype=torch.float64)
            nearest = (wanted[:, None] - lambdas).abs().argmin(1).tolist()
            assert visited_timesteps("dpmpp", process, steps)[:-1] == nearest[:-1]


def test_a_way_is_computed_once_for_all_batches() -> None:
    how = ("cosine", 100, "dpmpp", 7, "leading", torch.device("cpu"))
    first = visited_process(*how)
    assert visited_process(*how) is first
    assert first.timesteps.tolist() == visited_timesteps("dpmpp", make_process("cosine", 100), 7)


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

    def __init__(self) -> None:
        super().__init__()
        self.methods = NoLookByMethod()

    def __enter__(self) -> Any:
        self.methods.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> Any:
        super().__exit__(*error)
        return self.methods.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        assert not name.startswith(("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")), name
        if name.startswith(("index.", "index_put", "_unsafe_index", "_index_put")):
            masks = [index for index in args[1] if index is not None and index.dtype in (torch.bool, torch.uint8)]
            assert not masks, f"{name} by a mask: its length is a value"
        return func(*args, **(kwargs or {}))


class NoLookByMethod(TorchFunctionMode):
    """What reads a tensor's memory on the CPU without an operation, or moves it there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        assert name not in ("tolist", "numpy", "cpu", "__array__"), name
        return func(*args, **(kwargs or {}))


LOOKS: dict[str, Callable[[Tensor], Any]] = {
    "float": float,
    "if": bool,
    "tolist": lambda x: x.tolist(),
    "numpy": lambda x: x.numpy(),
    "asarray": lambda x: np.asarray(x),
    "cpu": lambda x: x.cpu(),
    "mask": lambda x: x.expand(3)[x.expand(3) > 0],
    "assignment by a mask": lambda x: x.repeat(3).__setitem__(x.repeat(3) > 0, torch.zeros(3)),
    "nonzero": lambda x: x.nonzero(),
}


@pytest.mark.parametrize("look", LOOKS)
def test_the_guard_sees_every_look(look: str) -> None:
    x = torch.ones(1)
    LOOKS[look](x)
    with pytest.raises(AssertionError), NoLookAtTheDevice():
        LOOKS[look](x)


@pytest.mark.parametrize("name", ["ancestral", "ddim", "dpmpp"])
def test_no_step_of_a_sampler_waits_for_the_device(name: str) -> None:
    """From the first evaluation of the network to the end: the host's tables are read before."""
    process = make_process("cosine", 1000).respaced([0, 300, 600, 999])
    guard, calls = NoLookAtTheDevice(), []

    def denoise(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        if not calls:
            guard.__enter__()
        calls.append(t)
        return torch.tanh(x), torch.tanh(x)

    try:
        if name == "ancestral":
            ancestral(process, denoise, gauss(0), "learned", gauss)
        else:
            {"ddim": ddim, "dpmpp": dpmpp}[name](process, denoise, gauss(0))
    finally:
        guard.__exit__(None, None, None)
    assert len(calls) == 4
