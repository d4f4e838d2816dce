"""RealNVP of the authors' code, written anew in float64: that is TensorFlow 1, which cannot be installed beside today's torch.

github.com/tensorflow/models, research/real_nvp at commit 2a04fd5: `real_nvp_multiscale_dataset.py` (resnet, residual_block,
masked_conv_aff_coupling, conv_ch_aff_coupling, rec_masked_conv_coupling, RealNVP) and `real_nvp_utils.py` (conv_layer,
batch_norm, squeeze_2x2, squeeze_2x2_ordered). Images lie as n, h, w, c, weights as height, width, in, out, and variables have
their names; batch norms take the batch's own moments, as theirs in training.
"""

import math
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

Variables = Mapping[str, Tensor]
EPSILON = 1e-4
DATA_CONSTRAINT = 0.9


def conv(v: Variables, name: str, x: Tensor) -> Tensor:
    """'SAME', by explicit sums over the window, with normalised weights."""
    weights = v[f"{name}/weights"]
    weights = weights / weights.square().sum((0, 1, 2)).sqrt()
    weights = weights * v.get(f"{name}/magnitude", torch.ones(()))
    pad = weights.shape[0] // 2
    padded = F.pad(x, (0, 0, pad, pad, pad, pad))
    rows, columns = x.shape[1:3]
    size = range(weights.shape[0])
    out = sum(padded[:, i : i + rows, j : j + columns] @ weights[i, j] for i in size for j in size)
    return out + v.get(f"{name}/biases", torch.zeros(()))


def batch_norm(v: Variables, name: str, x: Tensor) -> Tensor:
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2), correction=0)
    return (x - mean) / (var + EPSILON).sqrt() + v[f"{name}/beta"]


def resnet(v: Variables, name: str, x: Tensor, blocks: int) -> Tensor:
    res = conv(v, f"{name}/h_in", x)
    out = conv(v, f"{name}/skip_in", res)
    for block in range(blocks):
        h = batch_norm(v, f"{name}/block_{block}/bn_in", res).relu()
        h = conv(v, f"{name}/block_{block}/h_0", h)
        h = batch_norm(v, f"{name}/block_{block}/bn_0", h).relu()
        res = res + conv(v, f"{name}/block_{block}/out", h)
        out = out + conv(v, f"{name}/skip_{block}", res)
    return conv(v, f"{name}/out", batch_norm(v, f"{name}/bn_pre_out", out).relu())


def masked_coupling(v: Variables, name: str, x: Tensor, mask_in: int, blocks: int) -> tuple[Tensor, Tensor]:
    height, width = x.shape[1:3]
    mask = (mask_in + torch.arange(height)[:, None] + torch.arange(width)) % 2
    mask = mask.double()[None, :, :, None].expand(len(x), -1, -1, -1)
    res = batch_norm(v, f"{name}/bn_in", x * mask) * 2
    res = torch.cat([res, -res, mask], 3).relu()
    shift, log_rescaling = resnet(v, f"{name}/resnet", res, blocks).chunk(2, 3)
    log_rescaling = v[f"{name}/rescaling_scale"] * log_rescaling.tanh() * (1 - mask)
    res = (x + shift * (1 - mask)) * log_rescaling.exp()
    seen = res * (1 - mask)
    mean, var = seen.mean((0, 1, 2)), seen.var((0, 1, 2), correction=0) + EPSILON
    res = (res - mean * (1 - mask)) * (-0.5 * var.log() * (1 - mask)).exp()
    return res, log_rescaling - 0.5 * var.log() * (1 - mask)


def channel_coupling(v: Variables, name: str, x: Tensor, change_bottom: bool, blocks: int) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, 3)
    given, canvas = (first, second) if change_bottom else (second, first)
    res = batch_norm(v, f"{name}/bn_in", given)
    shift, log_rescaling = resnet(v, f"{name}/resnet", torch.cat([res, -res], 3).relu(), blocks).chunk(2, 3)
    log_rescaling = v[f"{name}/scale"] * log_rescaling.tanh()
    res = (canvas + shift) * log_rescaling.exp()
    mean, var = res.mean((0, 1, 2)), res.var((0, 1, 2), correction=0) + EPSILON
    res = (res - mean) * (-0.5 * var.log()).exp()
    log_diff = log_rescaling - 0.5 * var.log()
    parts, logs = ([given, res], [0 * log_diff, log_diff])
    return torch.cat(parts if change_bottom else parts[::-1], 3), torch.cat(logs if change_bottom else logs[::-1], 3)


def squeeze(x: Tensor) -> Tensor:
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, 4 * c)


def unsqueeze(x: Tensor) -> Tensor:
    n, h, w, c = x.shape
    return x.reshape(n, h, w, c // 4, 2, 2).permute(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * w, c // 4)


def squeeze_ordered(x: Tensor) -> Tensor:
    return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 1::2], x[:, 0::2, 1::2], x[:, 1::2, 0::2]], 3)


def scale(v: Variables, x: Tensor, index: int, scales: int, blocks: int) -> tuple[Tensor, Tensor]:
    """z and the sum of log_diff, [n]; recursion_type 2."""
    total = torch.zeros(len(x), dtype=x.dtype)
    for number, mask in enumerate([1, 0, 1] if index < scales - 1 else [1, 0, 1, 0]):
        x, log_diff = masked_coupling(v, f"scale_{index}/coupling_{number}", x, mask, blocks)
        total = total + log_diff.flatten(1).sum(1)
    if index == scales - 1:
        return x.flatten(1), total
    x = squeeze(x)
    for number, change_bottom in ((4, True), (5, False), (6, True)):
        x, log_diff = channel_coupling(v, f"scale_{index}/coupling_{number}", x, change_bottom, blocks)
        total = total + log_diff.flatten(1).sum(1)
    kept, out = squeeze_ordered(unsqueeze(x)).chunk(2, 3)
    z, change = scale(v, kept, index + 1, scales, blocks)
    return torch.cat([out.flatten(1), z], 1), total + change


def bit_per_dim(v: Variables, x: Tensor, noise: Tensor, scales: int, blocks: int) -> Tensor:
    """Of each image, [n], of values 0 .. 255 [n, h, w, c] and noise in [0, 1); theirs is the mean."""
    x = ((2 * (x + noise) / 256 - 1) * DATA_CONSTRAINT + 1) / 2
    logit = x.log() - (1 - x).log()
    pre_logit_scale = torch.tensor(math.log(DATA_CONSTRAINT) - math.log(1 - DATA_CONSTRAINT), dtype=torch.float64)
    cost = F.softplus(logit) + F.softplus(-logit) - F.softplus(-pre_logit_scale)
    z, log_diff = scale(v, logit, 0, scales, blocks)
    prior_ll = -0.5 * (z.square() + math.log(2 * math.pi))
    nats = -(prior_ll.sum(1) + log_diff + cost.flatten(1).sum(1))
    return nats / (x[0].numel() * math.log(2)) + 8
