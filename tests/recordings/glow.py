"""Glow of the authors' code, written anew in float64: that is TensorFlow 1, which cannot be installed beside today's torch.

github.com/openai/glow at commit 91b2c57: `model.py` (revnet2d_step, f, split2d, prior, _f_loss) and `tfops.py` (actnorm,
conv2d, conv2d_zeros, linear_zeros, squeeze2d, gaussian_diag). Images lie as n, h, w, c, weights as height, width, in, out, and
variables have their names, so that nothing but the formulas is ours as well.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

Variables = Mapping[str, Tensor]


def actnorm(v: Variables, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    logs = v[f"{name}/actnorm_scale/logs"] * 3
    return (x + v[f"{name}/actnorm_center/b"]) * logs.exp(), logs.sum() * x.shape[1] * x.shape[2]


def conv(x: Tensor, w: Tensor) -> Tensor:
    """'VALID', by explicit sums over the window."""
    high, wide = w.shape[:2]
    rows, columns = x.shape[1] - high + 1, x.shape[2] - wide + 1
    windows = [x[:, i : i + rows, j : j + columns] @ w[i, j] for i in range(high) for j in range(wide)]
    return torch.stack(windows).sum(0)


def add_edge_padding(x: Tensor) -> Tensor:
    n, h, w, c = x.shape
    padded = torch.zeros(n, h + 2, w + 2, c + 1, dtype=x.dtype)
    padded[..., -1] = 1
    padded[:, 1:-1, 1:-1, :-1] = x
    padded[:, 1:-1, 1:-1, -1] = 0
    return padded


def conv2d(v: Variables, name: str, x: Tensor) -> Tensor:
    w = v[f"{name}/W"]
    x = add_edge_padding(x) if w.shape[0] == 3 else x
    return actnorm(v, name, conv(x, w))[0]


def conv2d_zeros(v: Variables, name: str, x: Tensor) -> Tensor:
    return (conv(add_edge_padding(x), v[f"{name}/W"]) + v[f"{name}/b"]) * (v[f"{name}/logs"] * 3).exp()


def linear_zeros(v: Variables, name: str, x: Tensor) -> Tensor:
    return (x @ v[f"{name}/W"] + v[f"{name}/b"]) * (v[f"{name}/logs"] * 3).exp()


def squeeze2d(x: Tensor) -> Tensor:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, 4 * c)


def log_normal(x: Tensor, mean: Tensor, logsd: Tensor) -> Tensor:
    logps = -0.5 * (math.log(2 * math.pi) + 2 * logsd + (x - mean) ** 2 / (2 * logsd).exp())
    return logps.flatten(1).sum(1)


def revnet2d_step(v: Variables, name: str, z: Tensor, affine: bool) -> tuple[Tensor, Tensor]:
    z, logdet = actnorm(v, name, z)
    w = v[f"{name}/invconv/W"]
    z = z @ w
    logdet = logdet + torch.linalg.det(w).abs().log() * z.shape[1] * z.shape[2]
    half = z.shape[3] // 2
    z1, z2 = z[..., :half], z[..., half:]
    h = conv2d(v, f"{name}/f1/l_1", z1).relu()
    h = conv2d(v, f"{name}/f1/l_2", h).relu()
    h = conv2d_zeros(v, f"{name}/f1/l_last", h)
    if not affine:
        return torch.cat([z1, z2 + h], 3), logdet
    scale = torch.sigmoid(h[..., 1::2] + 2)
    z2 = (z2 + h[..., 0::2]) * scale
    return torch.cat([z1, z2], 3), logdet + scale.log().flatten(1).sum(1)


def bits_x(
    v: Variables, x: Tensor, noise: Tensor, y: Tensor, levels: int, depth: int, n_bits: int, affine: bool
) -> Tensor:
    """The bits of each subpixel, [n], of values x 0 .. 255 [n, h, w, c], noise in [0, 1), one-hot classes y [n, classes]."""
    n_bins = 2.0**n_bits
    z = torch.floor(x / 2 ** (8 - n_bits)) / n_bins - 0.5 + noise / n_bins
    objective = torch.full((len(x),), -math.log(n_bins) * x[0].numel(), dtype=torch.float64)
    z = squeeze2d(z)
    for level in range(levels):
        for step in range(depth):
            z, logdet = revnet2d_step(v, f"{level}/{step}", z, affine)
            objective = objective + logdet
        if level < levels - 1:
            half = z.shape[3] // 2
            z1, z2 = z[..., :half], z[..., half:]
            h = conv2d_zeros(v, f"pool{level}/conv", z1)
            objective = objective + log_normal(z2, h[..., 0::2], h[..., 1::2])
            z = squeeze2d(z1)
    n_z = z.shape[3]
    h = conv2d_zeros(v, "prior/p", torch.zeros(*z.shape[:3], 2 * n_z, dtype=z.dtype))
    h = h + linear_zeros(v, "prior/y_emb", y)[:, None, None]
    objective = objective + log_normal(z, h[..., :n_z], h[..., n_z:])
    return -objective / (math.log(2) * x[0].numel())
