"""The oracle of cached sampling: a whole forward for every position, and draws written anew, one number at a time."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.networks.autoregressive.pixelcnn import PixelCNN


@torch.no_grad()
def sample_naively(
    network: PixelCNN,
    uniforms: Tensor,
    labels: Tensor | None = None,
    condition: Tensor | None = None,
    *,
    positions: int | None = None,
    **sampling: Any,
) -> Tensor:
    """As `bigtrain.networks.autoregressive.pixelcnn_sampling.sample`. `positions`: stop after so many, the rest stays 0."""
    height, width = network.grid
    channels = network.output.channels
    shape = (len(uniforms), channels, height, width) if network.over_pixels else (len(uniforms), height, width)
    values = torch.zeros(shape, dtype=torch.int64)
    for position in range(positions if positions is not None else height * width):
        row, column = divmod(position, width)
        # The channels of a pixel depend on each other: one forward for each.
        for channel in range(channels):
            logits = network.logits(values, labels, condition)[:, row, column]
            for number in range(len(uniforms)):
                u = uniforms[number, position].tolist()
                if not network.over_pixels:
                    values[number, row, column] = draw(logits[number], u[0], **sampling)
                elif network.output.draws == channels:
                    values[number, channel, row, column] = draw(logits[number, channel], u[channel], **sampling)
                else:
                    earlier = values[number, :, row, column]
                    values[number, channel, row, column] = draw_logistic(
                        logits[number], u, channel, earlier, **sampling
                    )
    return values


def probabilities(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> np.ndarray:
    """One sharpened distribution [values], by sorting and adding up."""
    scaled = logits.double().numpy() / temperature
    weights = np.exp(scaled - scaled.max())
    order = np.argsort(-weights, kind="stable")
    if top_k is not None:
        weights[order[top_k:]] = 0
    weights /= weights.sum()
    if top_p is not None:
        kept, mass = 0, 0.0
        while mass < top_p and kept < len(order):
            mass += weights[order[kept]]
            kept += 1
        weights[order[kept:]] = 0
    return weights / weights.sum()


def draw(logits: Tensor, u: float, **sampling: Any) -> int:
    mass = 0.0
    for value, probability in enumerate(probabilities(logits, **sampling)):
        mass += probability
        if mass > u:
            return value
    raise AssertionError("the probabilities sum to less than u")


def draw_logistic(logits: Tensor, u: list[float], channel: int, earlier: Tensor, temperature: float = 1.0) -> int:
    """One channel of a pixel from [10, mixtures]: weights, means, log scales, coefficients (G on R, B on R, B on G); or grey
    from [3, mixtures]: weights, means, log scales."""
    k = draw(logits[0], u[0], temperature=temperature)
    if len(logits) == 3:
        return logistic(logits[1, k].item(), logits[2, k].item(), u[1], temperature)
    red, green = (earlier[:2].double() / 127.5 - 1).tolist()
    on_red, blue_on_red, blue_on_green = logits[7:, k].tanh().tolist()
    mean = logits[1 + channel, k].item() + (0, on_red * red, blue_on_red * red + blue_on_green * green)[channel]
    return logistic(mean, logits[4 + channel, k].item(), u[1 + channel], temperature)


def logistic(mean: float, log_scale: float, u: float, temperature: float) -> int:
    scale = math.exp(max(-7.0, log_scale)) * temperature
    x = mean + scale * math.log(u / (1 - u))
    return round((min(1.0, max(-1.0, x)) + 1) * 127.5)
