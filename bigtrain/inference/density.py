"""Pictures of a density over the points of a plane."""

import torch
from torch import Tensor

from bigtrain.families.abilities import Density
from bigtrain.families.phases import Networks

DENSITY_SIDE = 256
"""Pixels of a side of a picture during training."""
_AT_A_TIME = 2**14


@torch.no_grad()
def density_picture(family: Density, networks: Networks, side: int, device: torch.device) -> Tensor:
    """Grey, uint8 [1, 1, side, side] on the CPU: white where there is no density, black where it is largest within the family's
    window."""
    left, right, bottom, top = family.window
    middles = (torch.arange(side, device=device) + 0.5) / side
    x, y = left + (right - left) * middles, top - (top - bottom) * middles
    points = torch.cartesian_prod(y, x).flip(1).to(torch.get_default_dtype())
    nats = torch.cat([family.log_density(networks, part) for part in points.split(_AT_A_TIME)])
    if not nats.isfinite().any():
        raise FloatingPointError("the density is nowhere finite: the weights have diverged")
    shares = (nats - nats[nats.isfinite()].amax()).exp().nan_to_num(nan=0.0)
    return (255 * (1 - shares)).round().to(torch.uint8).view(1, 1, side, side).cpu()
