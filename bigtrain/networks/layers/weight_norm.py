"""Weight-normalised convolutions with data-dependent initialisation (Salimans & Kingma 2016, arXiv:1602.07868), padded as
TensorFlow's "SAME" pads: of a stride of 2 and even sides, a pixel less on the left than on the right.

    y = e^g (v / |v|) * x + b

where |v| is over all of an output's weights. `initialise` chooses g and b so that each output has mean 0 and a given deviation
over the first images, of all ranks.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.networks.layers.normalisation import without_autocast

_CONSTANT = 1e-8
"""The variance of an output that counts as none: its inputs are all the same, so its deviation cannot be chosen."""


class WeightNormConv(nn.Module):
    """[n, inputs, h, w] -> [n, outputs, h / stride, w / stride]. `mask` [outputs, inputs, k, k]: the weights that there are.

    `initialising`: whether a forward chooses g and b by its input; `deviation`: which they then give.
    `precise`: computed without autocast, for what bf16 would round.
    """

    initialising = False
    mask: Tensor | None

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        deviation: float = 0.1,
        mask: Tensor | None = None,
        precise: bool = False,
    ) -> None:
        super().__init__()
        self.stride, self.deviation, self.precise = stride, deviation, precise
        self.weight = nn.Parameter(torch.empty(self._shape(inputs, outputs, kernel)))
        self.log_gain, self.bias = nn.Parameter(torch.zeros(outputs)), nn.Parameter(torch.zeros(outputs))
        self.register_buffer("mask", mask, persistent=False)
        nn.init.normal_(self.weight, std=0.05)
        before = (kernel - stride) // 2
        self.padding = (before, kernel - stride - before)

    def _shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, int, int, int]:
        return outputs, inputs, kernel, kernel

    def forward(self, x: Tensor) -> Tensor:
        if self.initialising:
            self._initialise(x)
        if not self.precise:
            return self._applied(x)
        with without_autocast(x):
            return self._applied(x.to(self.weight.dtype))

    def _applied(self, x: Tensor) -> Tensor:
        return self._convolved(x, self.log_gain) + self.bias.view(-1, 1, 1)

    def _convolved(self, x: Tensor, log_gain: Tensor) -> Tensor:
        weight = self.weight if self.mask is None else self.weight * self.mask
        direction = _directions(weight)
        padded = F.pad(x, self.padding * 2)
        return F.conv2d(padded, log_gain.exp().view(-1, 1, 1, 1) * direction, stride=self.stride)

    @torch.no_grad()
    def _initialise(self, x: Tensor) -> None:
        outputs = self._convolved(x, torch.zeros_like(self.log_gain))
        sums = torch.stack([outputs.sum((0, 2, 3)), outputs.square().sum((0, 2, 3))]).double()
        count = outputs.numel() / outputs.shape[1] * world.size()
        mean, square = world.sum_over_ranks(sums) / count
        variance = (square - mean.square()).clamp_min(0)
        gain = self.deviation * torch.where(variance > _CONSTANT, variance.clamp_min(_CONSTANT).rsqrt(), 1.0)
        self.log_gain.copy_(gain.log())
        self.bias.copy_(-mean * gain)


class WeightNormUpsampling(WeightNormConv):
    """The transposed convolution: [n, inputs, h, w] -> [n, outputs, 2 h, 2 w]. As published, the norm is over the weights of an
    input, not of an output."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, **others: Any) -> None:
        super().__init__(inputs, outputs, kernel, stride=2, **others)

    def _shape(self, inputs: int, outputs: int, kernel: int) -> tuple[int, int, int, int]:
        return inputs, outputs, kernel, kernel

    def _convolved(self, x: Tensor, log_gain: Tensor) -> Tensor:
        direction = _directions(self.weight)
        whole = F.conv_transpose2d(x, direction * log_gain.exp().view(1, -1, 1, 1), stride=2)
        before, height, width = self.padding[0], 2 * x.shape[2], 2 * x.shape[3]
        return whole[..., before : before + height, before : before + width]


def _directions(weight: Tensor) -> Tensor:
    """Each of the weights along the first dimension divided by its norm."""
    return weight / weight.flatten(1).norm(dim=1).clamp_min(1e-6).view(-1, 1, 1, 1)


def initialise_by_data(network: nn.Module, forward: Callable[[], object]) -> None:
    """Calls `forward` while every layer of the network initialises itself by what it is given."""
    layers = [module for module in network.modules() if isinstance(module, WeightNormConv)]
    try:
        for layer in layers:
            layer.initialising = True
        forward()
    finally:
        for layer in layers:
            layer.initialising = False
