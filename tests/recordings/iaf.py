"""Inverse autoregressive flows, ported: github.com/openai/iaf at commit 1f09a1b, tf_train.py and tf_utils, TensorFlow 0.x.

TensorFlow of that time does not run today. What its model computes of an image is written down here again, in float64 torch and
with TensorFlow's layouts of weights, so that a test can hold ours beside it. Weights are given by name and shape.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = Callable[[str, tuple[int, ...]], Tensor]


def same(side: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's padding SAME: pixels before and after."""
    total = max((math.ceil(side / stride) - 1) * stride + kernel - side, 0)
    return total // 2, total - total // 2


def conv(
    of: Weights, name: str, x: Tensor, outputs: int, kernel: int = 3, stride: int = 1, mask: Tensor | None = None
) -> Tensor:
    v, g, b = (
        of(f"{name}/V", (kernel, kernel, x.shape[1], outputs)),
        of(f"{name}/g", (outputs,)),
        of(f"{name}/b", (outputs,)),
    )
    v = v if mask is None else v * mask
    w = g.exp() * v / v.square().sum((0, 1, 2)).sqrt()
    padded = F.pad(x, same(x.shape[3], kernel, stride) + same(x.shape[2], kernel, stride))
    return F.conv2d(padded, w.permute(3, 2, 0, 1), stride=stride) + b.view(-1, 1, 1)


def deconv(of: Weights, name: str, x: Tensor, outputs: int, kernel: int = 3) -> Tensor:
    """The gradient of the convolution of the larger image, which is how TensorFlow defines it."""
    v, g, b = (
        of(f"{name}/V", (kernel, kernel, outputs, x.shape[1])),
        of(f"{name}/g", (outputs,)),
        of(f"{name}/b", (outputs,)),
    )
    w = g.exp().view(1, 1, -1, 1) * v / v.square().sum((0, 1, 2)).sqrt()
    side = 2 * x.shape[2]
    large = torch.zeros(len(x), outputs, side, side, dtype=x.dtype, requires_grad=True)
    small = F.conv2d(F.pad(large, same(side, kernel, 2) * 2), w.permute(3, 2, 0, 1), stride=2)
    (y,) = torch.autograd.grad(small, large, x)
    return y + b.view(-1, 1, 1)


def ar_mask(inputs: int, outputs: int, zerodiagonal: bool) -> Tensor:
    mask = torch.ones(3, 3, inputs, outputs, dtype=torch.float64)
    mask[0], mask[1, 0] = 0, 0
    for i in range(inputs):
        for o in range(outputs):
            k_in, k_out = max(inputs // outputs, 1), max(outputs // inputs, 1)
            later = i // k_in > o // k_out
            mask[1, 1, i, o] = 0 if later or (zerodiagonal and i // k_in == o // k_out) else 1
    return mask


def flow(of: Weights, name: str, z: Tensor, context: Tensor, width: int) -> list[Tensor]:
    x, latents = z, z.shape[1]
    for i in range(2):
        x = conv(of, f"{name}/layer_{i}", x, width, mask=ar_mask(x.shape[1], width, False))
        x = F.elu(x + context if i == 0 else x)
    return [conv(of, f"{name}/layer_out_{i}", x, latents, mask=ar_mask(width, latents, True)) for i in range(2)]


def log_normal(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean).square() / logvar.exp())


def forward(
    of: Weights, x: Tensor, noise: Sequence[Tensor], depth: int, num_blocks: int, h_size: int, z_size: int
) -> tuple[Tensor, list[Tensor]]:
    """(what the code calls x after x_dec, before it is clipped; the KL cost of each block [n, z_size, h, w], in the order of
    the top-down pass). `x` is in [-.5, .5]; `noise` in that order."""
    blocks = [(i, j, i > 0 and j == 0) for i in range(depth) for j in range(num_blocks)]
    h, up = conv(of, "x_enc", x, h_size, 5, 2), {}
    for i, j, down in blocks:
        name = f"IAF_{i}_{j}"
        parts = conv(of, f"{name}/up_conv1", F.elu(h), 2 * z_size + 2 * h_size, stride=2 if down else 1)
        mean, logsd, context, features = parts.split([z_size, z_size, h_size, h_size], 1)
        up[name] = mean, logsd, context
        features = conv(of, f"{name}/up_conv3", F.elu(features), h_size)
        h = (h[:, :, ::2, ::2] if down else h) + 0.1 * features
    side, costs = x.shape[2] // 2**depth, []
    h = of("h_top", (h_size,)).view(1, -1, 1, 1).expand(len(x), -1, side, side)
    for (i, j, down), epsilon in zip(reversed(blocks), noise, strict=True):
        name = f"IAF_{i}_{j}"
        parts = conv(of, f"{name}/down_conv1", F.elu(h), 4 * z_size + 2 * h_size)
        pz_mean, pz_logsd, rz_mean, rz_logsd, down_context, h_det = parts.split([z_size] * 4 + [h_size] * 2, 1)
        qz_mean, qz_logsd, up_context = up[name]
        mean, logvar = rz_mean + qz_mean, 2 * (rz_logsd + qz_logsd)
        z = mean + (0.5 * logvar).exp() * epsilon
        logqs = log_normal(z, mean, logvar)
        arw_mean, arw_logsd = (0.1 * each for each in flow(of, f"{name}/ar", z, up_context + down_context, h_size))
        z = (z - arw_mean) / arw_logsd.exp()
        costs.append(logqs + arw_logsd - log_normal(z, pz_mean, 2 * pz_logsd))
        wide = F.elu(torch.cat([z, h_det], 1))
        if down:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3) + 0.1 * deconv(
                of, f"{name}/down_deconv2", wide, h_size
            )
        else:
            h = h + 0.1 * conv(of, f"{name}/down_conv2", wide, h_size)
    return deconv(of, "x_dec", F.elu(h), 3, 5), costs


def counted(depth: int, num_blocks: int, h_size: int = 160, z_size: int = 32) -> int:
    """The number of variables of the code's model, with dec_log_stdv, the scale of p(x|z)."""
    shapes: dict[str, int] = {"dec_log_stdv": 1}

    def of(name: str, shape: tuple[int, ...]) -> Tensor:
        shapes[name] = math.prod(shape)
        return torch.ones(shape, dtype=torch.float64)

    side = 2**depth
    noise = [
        torch.zeros(1, z_size, 2**level, 2**level, dtype=torch.float64)
        for level in range(depth)
        for _ in range(num_blocks)
    ]
    forward(of, torch.zeros(1, 3, side, side, dtype=torch.float64), noise, depth, num_blocks, h_size, z_size)
    return sum(shapes.values())
