"""The mathematics, beside diffusers' tables, numerical integrals and what the papers print."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

from bigtrain.families.diffusion.process import Process, make_process


def pixels(n: int = 3, size: int = 4, seed: int = 0) -> Tensor:
    levels = torch.randint(0, 256, (n, 3, size, size), generator=torch.Generator().manual_seed(seed))
    return levels.double() / 127.5 - 1


def gauss(n: int = 3, size: int = 4, seed: int = 1) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("timesteps", [100, 1000, 4000])
def test_the_linear_schedule_scales_with_the_number_of_timesteps(timesteps: int) -> None:
    process = make_process("linear", timesteps)
    # So that the noise at the end does not depend on how finely the way there is cut: alpha_bar is e^-10.05 at any T.
    assert abs(math.log(process.alpha_bar[-1]) + 10.05) < 1.1
    unscaled = DDPMScheduler(timesteps).alphas_cumprod.double()
    same = timesteps == 1000
    assert torch.allclose(process.alpha_bar, unscaled, rtol=1e-4, atol=0) is same


@pytest.mark.parametrize(("schedule", "name"), [("linear", "linear"), ("cosine", "squaredcos_cap_v2")])
def test_tables_are_float64_and_agree_with_diffusers_to_float32(schedule: str, name: str) -> None:
    process = make_process(schedule, 1000)
    tables = [value for value in vars(process).values() if value.dtype != torch.int64]
    assert len(tables) >= 7
    assert all(table.dtype == torch.float64 and table.isfinite().all() for table in tables)
    theirs = DDPMScheduler(1000, beta_schedule=name).alphas_cumprod.double()
    torch.testing.assert_close(process.alpha_bar, theirs, rtol=1e-3, atol=1e-9)


def test_the_cosine_schedule_keeps_the_digits_that_float32_loses() -> None:
    process = make_process("cosine", 4000)
    f = [math.cos((t / 4000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in (0, 1)]
    assert float(1 - process.alpha_bar[0]) == pytest.approx(1 - f[1] / f[0], rel=1e-10)
    theirs = 1 - DDPMScheduler(4000, beta_schedule="squaredcos_cap_v2").alphas_cumprod.double()
    assert ((theirs / (1 - process.alpha_bar) - 1).abs().max()) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_timestep_has_a_noise_level_of_its_own(dtype: torch.dtype) -> None:
    process = make_process("cosine", 4000)
    t = torch.arange(4000)
    x = process.q_sample(torch.zeros(4000, 1, 1, 1, dtype=dtype), t, torch.ones(4000, 1, 1, 1, dtype=dtype))
    assert x.dtype == dtype
    # The very last ones are noise to within float32's rounding.
    assert len(x.unique()) >= (4000 if dtype == torch.float64 else 3990)
    with pytest.raises(AssertionError, match="too coarse for the noise levels"):
        process.q_sample(torch.zeros(1, 1, 1, 1), t[:1], torch.ones(1, 1, 1, 1, dtype=torch.bfloat16))


def test_too_few_timesteps_for_the_linear_schedule_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"timesteps: the linear schedule.* which 20 makes 1; .*more than 20 timesteps"
    ):
        make_process("linear", 20)


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v"])
def test_the_right_prediction_gives_back_the_image(prediction: str) -> None:
    process, x0, noise = make_process("cosine", 50), pixels(), gauss()
    t = torch.tensor([0, 20, 48])
    x = process.q_sample(x0, t, noise)
    target = process.target(prediction, x0, t, noise)
    torch.testing.assert_close(process.predicted_x0(prediction, target, x, t), x0, rtol=0, atol=1e-9)


def test_min_snr_is_one_weight_of_the_error_in_the_image_whatever_is_predicted() -> None:
    process, t = make_process("linear", 1000), torch.tensor([0, 100, 500, 999])
    x = gauss(4)
    snr = process.alpha_bar[t] / (1 - process.alpha_bar[t])
    for prediction in ("epsilon", "x0", "v"):
        output = gauss(4, seed=3)
        error = process.predicted_x0(prediction, output, x, t) - process.predicted_x0(prediction, output + 0.1, x, t)
        in_x0 = error[:, 0, 0, 0].square()
        weight = process.min_snr_weight(prediction, t, 5.0)
        torch.testing.assert_close(weight * 0.01, snr.clamp(max=5.0) * in_x0, rtol=1e-9, atol=0)


def test_the_posterior_is_bayes_rule() -> None:
    """In one dimension, by numbers: q(x_{t-1} | x_t, x_0) is proportional to q(x_t | x_{t-1}) q(x_{t-1} | x_0)."""
    process, step, x0, x = make_process("linear", 100), 40, 0.3, -0.7
    grid = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    alpha = process.alpha_bar[step] / process.alpha_bar[step - 1]
    before = process.alpha_bar[step - 1]
    log_density = -((x - alpha.sqrt() * grid) ** 2) / (2 * (1 - alpha)) - (grid - before.sqrt() * x0) ** 2 / (
        2 * (1 - before)
    )
    density = log_density.softmax(0)
    mean = (density * grid).sum()
    variance = (density * (grid - mean) ** 2).sum()
    t = torch.tensor([step])
    shaped = lambda value: torch.full((1, 1, 1, 1), value, dtype=torch.float64)  # noqa: E731
    assert float(process.posterior_mean(shaped(x0), shaped(x), t)) == pytest.approx(float(mean), rel=1e-6)
    log_variance = process.log_variance("fixed_small", None, t, shaped(x))
    assert float(log_variance.exp()) == pytest.approx(float(variance), rel=1e-6)


def test_the_learned_variance_lies_between_the_posteriors_and_beta() -> None:
    process, t, like = make_process("cosine", 100), torch.tensor([0, 30, 99]), gauss()
    low, high = (
        process.log_variance("learned", -torch.ones_like(like), t, like),
        process.log_variance("learned", torch.ones_like(like), t, like),
    )
    shape = like.shape
    torch.testing.assert_close(low, process.log_variance("fixed_small", None, t, like).expand(shape))
    torch.testing.assert_close(high[1:], process.log_variance("fixed_large", None, t, like).expand(shape)[1:])
    assert (low <= high).all()


def test_fixed_large_is_beta_except_where_there_is_no_step_before() -> None:
    process = make_process("linear", 1000)
    like = gauss(2)
    found = process.log_variance("fixed_large", None, torch.tensor([0, 999]), like).flatten().exp()
    beta_0, beta_1 = 1e-4, 1e-4 + (0.02 - 1e-4) / 999
    alpha_bar_1 = (1 - beta_0) * (1 - beta_1)
    assert float(found[0]) == pytest.approx(beta_1 * beta_0 / (1 - alpha_bar_1), rel=1e-9)
    assert float(found[1]) == pytest.approx(0.02, rel=1e-9)


def test_respacing_keeps_the_noise_levels_and_the_networks_times() -> None:
    whole = make_process("cosine", 100)
    part = whole.respaced([0, 33, 99])
    assert torch.equal(part.alpha_bar, whole.alpha_bar[[0, 33, 99]])
    assert part.timesteps.tolist() == [0, 33, 99]
    assert float(part.log_beta[1].exp()) == pytest.approx(float(1 - whole.alpha_bar[33] / whole.alpha_bar[0]), rel=1e-9)


# ------------------------------------------------------------------------------------------------ variational bound


def bound(process: Process, x0: Tensor, t: Tensor, predicted_x0: Tensor, variance: str) -> Tensor:
    x = process.q_sample(x0, t, gauss(len(x0)))
    return process.bound_term(x0, x, t, predicted_x0, process.log_variance(variance, None, t, x))


def test_the_bounds_terms_vanish_for_the_true_image_and_grow_with_its_error() -> None:
    process, x0, t = make_process("cosine", 50), pixels(), torch.tensor([1, 25, 49])
    assert bound(process, x0, t, x0, "fixed_small").abs().max() < 1e-9
    assert (bound(process, x0, t, x0, "fixed_large") > 0).all()
    assert (bound(process, x0, t, x0 + 0.2, "fixed_small") > bound(process, x0, t, x0 + 0.1, "fixed_small")).all()


def test_the_bounds_divergence_is_the_normal_distributions_own() -> None:
    process, t = make_process("linear", 50), torch.tensor([20])
    x0, guess, x = pixels(1), pixels(1, seed=5), gauss(1)
    log_variance = process.log_variance("fixed_large", None, t, x)
    true = torch.distributions.Normal(
        process.posterior_mean(x0, x, t), (process.log_variance("fixed_small", None, t, x) / 2).exp()
    )
    ours = torch.distributions.Normal(process.posterior_mean(guess, x, t), (log_variance / 2).exp())
    expected = torch.distributions.kl_divergence(true, ours).sum()
    torch.testing.assert_close(process.bound_term(x0, x, t, guess, log_variance)[0], expected)


def test_the_prior_term_is_small_but_not_nothing() -> None:
    process, x0 = make_process("linear", 1000), pixels()
    end = torch.distributions.Normal(process.alpha_bar[-1].sqrt() * x0, (1 - process.alpha_bar[-1]).sqrt())
    expected = torch.distributions.kl_divergence(end, torch.distributions.Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(process.prior_term(x0), expected, rtol=1e-6, atol=0)
