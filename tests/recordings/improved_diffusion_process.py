"""iDDPM's mathematics, recorded: python tests/recordings/improved_diffusion_process.py PATH_OF_THE_AUTHORS_CHECKOUT

github.com/openai/improved-diffusion at commit 1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5; guided-diffusion has the same, and
guidance by a classifier besides. In float64, with a formula in place of the network: tables of the schedules, timesteps of
shortened processes, q(x_t | x_0) and its posterior, p(x_{t-1} | x_t), losses and their gradients, the variational bound, and
the paths of ancestral sampling and of DDIM.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.recordings.formula import pattern
from tests.recordings.summary import excerpt, open_checkout, summary, write
from tests.recordings.unet_steps import Float64Torch, compute_in_float64

REPOSITORY = "github.com/openai/improved-diffusion"
COMMIT = "1bc7bbbdc414d83d4abf2ad8cc1446dc36c4e4d5"

SHAPE = (4, 3, 2, 2)
SCHEDULES = [("linear", 1000), ("linear", 4000), ("cosine", 1000), ("cosine", 4000)]
RESPACINGS = [(1000, "25"), (1000, "27"), (1000, "50"), (1000, "100"), (1000, "250"), (4000, "100"), (4000, "250")]
RESPACINGS += [(1000, "ddim25"), (1000, "ddim50"), (1000, "ddim250"), (4000, "ddim50")]
TIMES = [0, 1, 400, 999]
"""Of the images, in a process of 1000 steps."""
LOSS_STEPS = 100
LOSS_TIMES = [0, 25, 50, 75]
VARIANCES = {"fixed_small": {"sigma_small": True}, "fixed_large": {}, "learned": {"learn_sigma": True}}
LOSSES: dict[str, dict[str, Any]] = {
    "simple": {"schedule": "linear", "variance": "fixed_large", "flags": {}},
    "simple_x0": {"schedule": "cosine", "variance": "fixed_small", "flags": {"predict_xstart": True}},
    "hybrid": {"schedule": "cosine", "variance": "learned", "flags": {"rescale_learned_sigmas": True}},
    "vlb": {"schedule": "linear", "variance": "learned", "flags": {"use_kl": True}},
    "vlb_fixed": {"schedule": "cosine", "variance": "fixed_large", "flags": {"use_kl": True}},
}
BOUNDS: dict[str, dict[str, Any]] = {
    "linear": {"schedule": "linear", "steps": 50, "variance": "learned"},
    "cosine": {"schedule": "cosine", "steps": 25, "variance": "fixed_large"},
}
SAMPLES: dict[str, dict[str, Any]] = {
    "ancestral": {"schedule": "cosine", "steps": 1000, "respacing": "10", "variance": "learned"},
    "ancestral_fixed": {"schedule": "linear", "steps": 4000, "respacing": "10", "variance": "fixed_large"},
    "ddim": {"schedule": "linear", "steps": 1000, "respacing": "ddim20", "variance": "fixed_small"},
    "ddim_cosine": {"schedule": "cosine", "steps": 4000, "respacing": "ddim25", "variance": "learned"},
}


def images() -> Tensor:
    """SHAPE, on the grid of 256 levels in [-1, 1], with both ends of it."""
    return pattern("images", SHAPE, 1.2).clamp(-1, 1).add(1).mul(127.5).round() / 127.5 - 1


def noise(number: int) -> Tensor:
    """SHAPE; of a training step 0, of the bound t, of sampling the timestep that it is drawn at and 0 for where it begins."""
    return pattern(f"noise {number}", SHAPE, 1.7)


def network(x: Tensor, t: Tensor, outputs: int = 6) -> Tensor:
    """In place of a network: x [n, 3, 2, 2], t [n] -> a prediction and, of 6 outputs, what interpolates a variance."""
    time = t.double()[:, None, None, None] / 1000
    prediction = torch.tanh(x * (0.5 + time)) + pattern("network", x.shape[1:], 0.2)
    return torch.cat([prediction, torch.sin(3 * x + time)], dim=1)[:, :outputs]


def outputs_of(variance: str) -> int:
    return 6 if variance == "learned" else 3


class WithNoise(Float64Torch):
    """torch whose randn_like gives the noise of these numbers, one after the other."""

    def __init__(self, numbers: Iterator[int]) -> None:
        super().__init__("torch")
        self.numbers = numbers

    def randn_like(self, x: Tensor) -> Tensor:
        return noise(next(self.numbers))


@contextmanager
def noise_of(numbers: list[int]) -> Iterator[None]:
    from improved_diffusion import gaussian_diffusion

    before, gaussian_diffusion.th = gaussian_diffusion.th, WithNoise(iter(numbers))
    yield
    gaussian_diffusion.th = before


@contextmanager
def exact_distribution_function() -> Iterator[None]:
    """Theirs is an approximation by tanh, with an error up to 2e-4."""
    from improved_diffusion import losses

    before, losses.approx_standard_normal_cdf = losses.approx_standard_normal_cdf, torch.special.ndtr
    yield
    losses.approx_standard_normal_cdf = before


def diffusion(schedule: str, steps: int, variance: str, respacing: str = "", **flags: Any) -> Any:
    from improved_diffusion.script_util import create_gaussian_diffusion

    flags = {"noise_schedule": schedule, "timestep_respacing": respacing, "rescale_timesteps": True} | flags
    return create_gaussian_diffusion(steps=steps, **VARIANCES[variance], **flags)


def tables(process: Any) -> dict[str, list[float]]:
    """Logarithms, in which small numbers count; step 0 of the posterior's second coefficient is 0 and has none."""
    recorded = {
        "log_alpha_bar": process.alphas_cumprod,
        "log_one_minus_alpha_bar": 1 - process.alphas_cumprod,
        "log_beta": process.betas,
        "log_posterior_of_x0": process.posterior_mean_coef1,
        "log_posterior_of_x": process.posterior_mean_coef2[1:],
    }
    logs = {name: torch.from_numpy(table).log() for name, table in recorded.items()}
    logs["log_posterior_variance"] = torch.from_numpy(process.posterior_log_variance_clipped)
    return {name: summary(name, table) for name, table in logs.items()}


def record_tables() -> dict[str, Any]:
    recorded = {f"{schedule} {steps}": tables(diffusion(schedule, steps, "learned")) for schedule, steps in SCHEDULES}
    for steps, respacing in (1000, "250"), (4000, "ddim50"):
        recorded[f"cosine {steps} {respacing}"] = tables(diffusion("cosine", steps, "learned", respacing))
    return recorded


def record_respacings() -> dict[str, list[int]]:
    from improved_diffusion.respace import space_timesteps

    return {f"{steps} {respacing}": sorted(space_timesteps(steps, respacing)) for steps, respacing in RESPACINGS}


def record_distributions(schedule: str) -> dict[str, Any]:
    """q(x_t | x_0), q(x_{t-1} | x_t, x_0), and p(x_{t-1} | x_t) of every kind."""
    x0, t = images(), torch.tensor(TIMES)
    process = diffusion(schedule, 1000, "learned")
    x = process.q_sample(x0, t, noise(0))
    mean, _, log_variance = process.q_posterior_mean_variance(x0, x, t)
    recorded: dict[str, Any] = {
        "q_sample": excerpt(x),
        "posterior_mean": excerpt(mean),
        "log_posterior_variance": excerpt(log_variance),
        "prior_bits": process._prior_bpd(x0).tolist(),
    }
    for variance in VARIANCES:
        for prediction in "epsilon", "x0":
            process = diffusion(schedule, 1000, variance, predict_xstart=prediction == "x0")
            model = partial(network, outputs=outputs_of(variance))
            for clip in True, False:
                p = process.p_mean_variance(model, x, t, clip_denoised=clip)
                recorded[f"p {variance} {prediction} {'clipped' if clip else 'unclipped'}"] = {
                    "x0": summary("x0", p["pred_xstart"]),
                    "mean": excerpt(p["mean"]),
                    "log_variance": summary("log_variance", p["log_variance"]),
                }
    return recorded


def record_loss(schedule: str, variance: str, flags: dict[str, Any]) -> dict[str, Any]:
    """Each image's loss, and the gradient of their sum in the network's output."""
    process, outputs = diffusion(schedule, LOSS_STEPS, variance, **flags), []

    def model(x: Tensor, t: Tensor) -> Tensor:
        outputs.append(network(x, t, outputs_of(variance)).requires_grad_())
        return outputs[-1]

    terms = process.training_losses(model, images(), torch.tensor(LOSS_TIMES), noise=noise(0))
    terms["loss"].sum().backward()
    (output,) = outputs
    return {**{name: term.tolist() for name, term in terms.items()}, "gradient": excerpt(output.grad)}


def record_bound(schedule: str, steps: int, variance: str) -> dict[str, Any]:
    """Bits per dimension; in the order of t, in which theirs is reversed."""
    process = diffusion(schedule, steps, variance)
    with noise_of(list(reversed(range(steps)))):
        found = process.calc_bpd_loop(partial(network, outputs=outputs_of(variance)), images())
    return {
        "total": found["total_bpd"].tolist(),
        "prior": found["prior_bpd"].tolist(),
        "by_timestep": found["vb"].flip(1).tolist(),
    }


def record_sample(schedule: str, steps: int, respacing: str, variance: str) -> dict[str, Any]:
    """The image after every step, and the timesteps that the network saw."""
    process, seen = diffusion(schedule, steps, variance, respacing), []

    def model(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t[0].item())
        return network(x, t, outputs_of(variance))

    loop = "ddim_sample_loop_progressive" if respacing.startswith("ddim") else "p_sample_loop_progressive"
    with noise_of(list(reversed(process.timestep_map))):
        path = [out["sample"] for out in getattr(process, loop)(model, SHAPE, noise=noise(0), device="cpu")]
    return {"seen": seen, "path": [summary("path", x) for x in path], "sample": excerpt(path[-1])}


def each(record: Callable[..., Any], cases: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {name: record(**case) for name, case in cases.items()}


def main() -> None:
    open_checkout(COMMIT)
    from improved_diffusion import gaussian_diffusion

    compute_in_float64(th=gaussian_diffusion)
    torch.set_num_threads(1)
    recording: dict[str, Any] = {
        "repository": REPOSITORY,
        "commit": COMMIT,
        "tables": record_tables(),
        "respacings": record_respacings(),
        "distributions": {schedule: record_distributions(schedule) for schedule in ("linear", "cosine")},
        "losses_as_published": each(record_loss, LOSSES),
        "bounds_as_published": each(record_bound, BOUNDS),
        "samples": each(record_sample, SAMPLES),
    }
    with exact_distribution_function():
        recording |= {"losses": each(record_loss, LOSSES), "bounds": each(record_bound, BOUNDS)}
    write(__file__, recording)


if __name__ == "__main__":
    main()
