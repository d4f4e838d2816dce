"""The diffusion process in the papers' notation: schedules, q(x_t | x_0), posteriors, losses, the variational bound.

Ho, Jain & Abbeel 2020 (DDPM, arXiv:2006.11239), Nichol & Dhariwal 2021 (iDDPM, arXiv:2102.09672), Salimans & Ho 2022
(predicting v, arXiv:2202.00512), Hang et al. 2023 (min-SNR, arXiv:2303.09556). Times count from 0 here: t = 0 is the papers'
t = 1. Tables are float64, because in float32 1 - alpha_bar loses its digits where alpha_bar is near 1; values gathered from
them are cast to the precision of the images, at least float32.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from bigtrain.networks.layers.discretised import normal_log_probability

Schedule = Literal["linear", "cosine"]
Prediction = Literal["epsilon", "x0", "v"]
Variance = Literal["fixed_small", "fixed_large", "learned"]


class Process:
    """Tables [S] of a process of S steps; `timesteps` are their numbers in the process that the network was trained on.

    beta_t, alpha_t = 1 - beta_t, alpha_bar_t = alpha_0 ... alpha_t (Ho et al. 2020, section 2).
    """

    def __init__(self, alpha_bar: Tensor, timesteps: Tensor) -> None:
        """`alpha_bar`: float64 [S], decreasing in (0, 1); `timesteps`: int64 [S], increasing; both on one device."""
        self.alpha_bar = alpha_bar
        self.timesteps = timesteps
        self.alpha_bar_before = torch.cat([alpha_bar.new_ones(1), alpha_bar[:-1]])
        alpha = alpha_bar / self.alpha_bar_before
        beta = 1 - alpha
        # The posterior q(x_{t-1} | x_t, x_0), Ho et al. 2020, eq. 6 and 7.
        self.posterior_of_x0 = beta * self.alpha_bar_before.sqrt() / (1 - alpha_bar)
        self.posterior_of_x = (1 - self.alpha_bar_before) * alpha.sqrt() / (1 - alpha_bar)
        variance = beta * (1 - self.alpha_bar_before) / (1 - alpha_bar)
        # The posterior variance of step 0 is 0 and has no logarithm. Step 1's is used for it, here and in fixed_large, as in
        # both papers' code.
        self.log_posterior_variance = torch.cat([variance[1:2], variance[1:]]).log()
        self.log_beta = beta.log()
        self.log_large_variance = torch.cat([variance[1:2], beta[1:]]).log()

    @property
    def steps(self) -> int:
        return len(self.alpha_bar)

    def on(self, device: torch.device) -> "Process":
        """The same tables on a device."""
        return Process(self.alpha_bar.to(device), self.timesteps.to(device))

    def respaced(self, chosen: list[int]) -> "Process":
        """The process with only the `chosen` steps, increasing, and the betas that follow from them (iDDPM, section 4)."""
        index = torch.tensor(chosen, device=self.alpha_bar.device)
        return Process(self.alpha_bar[index], self.timesteps[index])

    # -- forward ----------------------------------------------------------------------------------------------------

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) noise (Ho et al. 2020, eq. 4); all [n, C, h, w], t int64 [n]."""
        signal, deviation = self._signal_and_deviation(t, noise)
        return signal * x0 + deviation * noise

    def target(self, prediction: Prediction, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The network's target for this kind of prediction."""
        if prediction == "epsilon":
            return noise
        if prediction == "x0":
            return x0.to(noise.dtype)
        signal, deviation = self._signal_and_deviation(t, noise)
        return signal * noise - deviation * x0

    def min_snr_weight(self, prediction: Prediction, t: Tensor, gamma: float) -> Tensor:
        """Weights [n] of the squared error, float64: min(SNR, gamma) for an error in x_0 (Hang et al. 2023, section 3.4)."""
        snr = self.alpha_bar[t] / (1 - self.alpha_bar[t])
        # An error of 1 in epsilon is an error of 1 / sqrt(SNR) in x_0, and in v of 1 / sqrt(SNR + 1).
        in_x0 = {"epsilon": snr, "x0": torch.ones_like(snr), "v": snr + 1}[prediction]
        return snr.clamp(max=gamma) / in_x0

    # -- backward ---------------------------------------------------------------------------------------------------

    def predicted_x0(self, prediction: Prediction, output: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """x_0 that follows from the network's `output` at x_t (Ho et al. 2020, eq. 15; Salimans & Ho 2022, appendix D)."""
        if prediction == "x0":
            return output
        signal, deviation = self._signal_and_deviation(t, x)
        if prediction == "epsilon":
            return (x - deviation * output) / signal
        return signal * x - deviation * output

    def moved_x0(self, score: Tensor, t: Tensor) -> Tensor:
        """How far x_0 moves where a `score` [n, C, h, w] is added to that of x_t: by (1 - alpha_bar_t) / sqrt(alpha_bar_t)
        times it, as the noise is -sqrt(1 - alpha_bar_t) times the score (Dhariwal & Nichol 2021, algorithm 2)."""
        return self._at((1 - self.alpha_bar) / self.alpha_bar.sqrt(), t, score) * score

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The mean of q(x_{t-1} | x_t, x_0) (Ho et al. 2020, eq. 7)."""
        return self._at(self.posterior_of_x0, t, x) * x0 + self._at(self.posterior_of_x, t, x) * x

    def log_variance(self, variance: Variance, interpolation: Tensor | None, t: Tensor, like: Tensor) -> Tensor:
        """The log variance of p(x_{t-1} | x_t), [n, 1, 1, 1], or [n, C, h, w] where it is learned, in the dtype of `like`.

        fixed_small is the posterior's; fixed_large is beta, but the posterior's at t = 0 (Ho et al. 2020, section 3.2).
        learned: between the posterior's, at `interpolation` [n, C, h, w] -1, and beta, at 1 (iDDPM, eq. 15; the network's
        range as in OpenAI's code).
        """
        if variance == "fixed_small":
            return self._at(self.log_posterior_variance, t, like)
        if variance == "fixed_large":
            return self._at(self.log_large_variance, t, like)
        assert interpolation is not None, "a learned variance needs the second half of the network's output"
        share = (interpolation + 1) / 2
        return torch.lerp(self._at(self.log_posterior_variance, t, like), self._at(self.log_beta, t, like), share)

    # -- the variational bound ----------------------------------------------------------------------------------------

    def bound_term(self, x0: Tensor, x: Tensor, t: Tensor, predicted_x0: Tensor, log_variance: Tensor) -> Tensor:
        """L_{t-1} of each sample, or L_0 at t = 0 (Ho et al. 2020, eq. 5; iDDPM, eq. 4 to 7): nats [n], summed over pixels.

        `x0` has one of the 256 levels in [-1, 1] at each pixel, of which L_0 takes the probability.
        """
        true_log_variance = self._at(self.log_posterior_variance, t, x)
        mean = self.posterior_mean(predicted_x0, x, t)
        error = (self.posterior_mean(x0, x, t) - mean).square()
        difference = true_log_variance - log_variance
        divergence = (difference.exp() - 1 - difference + error * (-log_variance).exp()) / 2
        decoder = -normal_log_probability(x0, mean, log_variance / 2)
        return torch.where((t == 0)[:, None, None, None], decoder, divergence).flatten(1).sum(1)

    def prior_term(self, x0: Tensor) -> Tensor:
        """L_T of each sample, KL(q(x_T | x_0) || N(0, 1)): nats [n], summed over pixels."""
        alpha_bar = self.alpha_bar[-1]
        # log1p, because log(1 - alpha_bar) loses its digits where alpha_bar is nearly zero.
        terms = alpha_bar * x0.double().square() - alpha_bar - torch.log1p(-alpha_bar)
        return terms.flatten(1).sum(1) / 2

    def _signal_and_deviation(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        return self._at(self.alpha_bar.sqrt(), t, like), self._at((1 - self.alpha_bar).sqrt(), t, like)

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        assert like.dtype in (torch.float32, torch.float64), f"{like.dtype} is too coarse for the noise levels"
        return table[t].to(like.dtype)[:, None, None, None]


def make_process(schedule: Schedule, timesteps: int) -> Process:
    """linear: beta from 1e-4 to 0.02 at T = 1000, scaled by 1000 / T (Ho et al. 2020, section 4; OpenAI's code).

    cosine: alpha_bar_t = f(t) / f(0), f(t) = cos^2((t / T + 0.008) / 1.008 x pi / 2), beta at most 0.999 (iDDPM, eq. 17).
    Raises ValueError, naming the key, if T is too small for the schedule.
    """
    if schedule == "linear":
        scale = 1000 / timesteps
        if 0.02 * scale >= 1:
            raise ValueError(
                f"timesteps: the linear schedule's last beta is 20 / timesteps, which {timesteps} makes {0.02 * scale:.3g}; it "
                "must be below 1: take more than 20 timesteps, or schedule: cosine"
            )
        beta = torch.linspace(1e-4 * scale, 0.02 * scale, timesteps, dtype=torch.float64)
    else:
        along = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        f = torch.cos((along + 0.008) / 1.008 * math.pi / 2).square()
        beta = (1 - f[1:] / f[:-1]).clamp(max=0.999)
    return Process((1 - beta).cumprod(0), torch.arange(timesteps))
