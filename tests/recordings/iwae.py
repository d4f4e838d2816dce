"""Importance-weighted autoencoders, ported: github.com/yburda/iwae at commit 8fdcbab, iwae.py and nnet.py, Theano.

Theano does not run today. The logarithms of the importance weights of one image's draws, in float64 torch.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Callable[[str, tuple[int, ...]], Tensor]


def linear(of: Weights, name: str, x: Tensor, outputs: int) -> Tensor:
    return x @ of(f"{name}/W", (x.shape[1], outputs)) + of(f"{name}/b", (outputs,))


def hidden(of: Weights, name: str, x: Tensor, width: int) -> Tensor:
    for layer in range(2):
        x = linear(of, f"{name}/{layer}", x, width).tanh()
    return x


def mean_sigma(of: Weights, name: str, x: Tensor, width: int, outputs: int) -> tuple[Tensor, Tensor]:
    h = hidden(of, name, x, width)
    return linear(of, f"{name}/mean", h, outputs), linear(of, f"{name}/sigma", h, outputs).exp()


def log_normal(samples: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    squares = ((samples - mean) / sigma).square() + 2 * sigma.log()
    return -math.log(2 * math.pi) * samples.shape[1] / 2 - squares.sum(1) / 2


def log_weights(
    of: Weights, x: Tensor, noise: Sequence[Tensor], latents: Sequence[int], widths: Sequence[int]
) -> Tensor:
    """[n], of images [n, pixels] of zeros and ones, with noise of each layer of latents, that next to the image first."""
    samples, total = [x], torch.zeros(len(x), dtype=x.dtype)
    for layer, (size, width, epsilon) in enumerate(zip(latents, widths, noise, strict=True)):
        mean, sigma = mean_sigma(of, f"q{layer}", samples[-1], width, size)
        samples.append(sigma * epsilon + mean)
        total = total - log_normal(samples[-1], mean, sigma)
    for layer in range(1, len(latents)):
        mean, sigma = mean_sigma(of, f"p{layer}", samples[layer + 1], widths[layer], latents[layer - 1])
        total = total + log_normal(samples[layer], mean, sigma)
    white = linear(of, "p0/mean", hidden(of, "p0", samples[1], widths[0]), x.shape[1]).sigmoid()
    total = total + (x * white.log() + (1 - x) * (1 - white).log()).sum(1)
    return total - math.log(2 * math.pi) * latents[-1] / 2 - samples[-1].square().sum(1) / 2


def gradients(log_ws: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of the importance-weighted objective of one image's k draws: of log w, weighted by the normalised weights."""
    weights = (log_ws - log_ws.max()).exp()
    weights = (weights / weights.sum()).detach()
    return dict(zip(parameters, torch.autograd.grad((weights * log_ws).sum(), list(parameters.values())), strict=True))
