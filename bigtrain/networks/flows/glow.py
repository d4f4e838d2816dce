"""Glow (Kingma & Dhariwal 2018, arXiv:1807.03039), as in the authors' code, which is TensorFlow's.

A level squeezes, takes `steps` steps of actnorm, 1 x 1 convolution and coupling, and passes half of the channels on; the other
half is normal given that half. The parts of the code that are not in the paper: actnorm within the couplings' networks; a
channel that tells their 3 x 3 convolutions where the padding is; exp(3 logs) behind the convolutions that begin at zero.
"""

from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.networks.flows.bijection import ActNorm, FlowBlock, Mixing, MixingLU, squeezed, unsqueezed
from bigtrain.networks.flows.image_flow import FlowOutput, ImageFlow, ImageFlowOptions, Shape
from bigtrain.networks.layers.normalisation import statistics_dtype, without_autocast
from bigtrain.options import Depth, Weight, Width
from bigtrain.sizes import size_text


class GlowOptions(ImageFlowOptions):
    """Glow. By default the network of CIFAR-10: with 32 x 32 RGB images 44,603,604 parameters."""

    kind: Literal["glow"] = "glow"
    levels: int = Field(default=3, ge=1, le=16)
    """Each halves the images' sides once more."""
    steps: Depth = 32
    """Of each level."""
    channels: Width = 512
    """Of the hidden layers of a coupling's network."""
    coupling: Literal["affine", "additive"] = "affine"
    """affine gives better likelihoods, additive often better samples."""
    mixing: Literal["plain", "lu"] = "plain"
    """The matrix of a 1 x 1 convolution: its own parameter, or the product of its LU decomposition."""
    learned_top: bool = True
    """Whether mean and deviation of the last level's latents are learned, or those of a standard normal."""
    classes_in: Literal["top", "everywhere"] = "top"
    """What a class-conditional flow tells the class: top: mean and deviation of the last level's latents, as published.
    everywhere: those of all levels, and the networks of the couplings, which is ours: with it small flows draw the class that
    they are asked for."""
    class_weight: Weight = 0.0
    """Of a class-conditional flow: weight of the cross-entropy of the class, in nats an image, as guessed from the last level,
    beside the nats a dimension; the authors' code has 0.01. It makes the last level say which class an image is of."""

    def build(self, image: Shape, classes: int) -> "Glow":
        return Glow(self, image, classes)

    def check_size(self, size: tuple[int, int]) -> None:
        if any(side % 2**self.levels for side in size):
            raise ValueError(
                f"family.network.levels: {self.levels} levels need a data.image_size that is divisible by {2**self.levels}, "
                f"and {size_text(size)} is not; take fewer levels or another size"
            )


class Glow(ImageFlow):
    """y - 1/2 through levels 0, 1, ...; the latents are what level 0 puts aside, then level 1, ..., then the top."""

    def __init__(self, options: GlowOptions, image: Shape, classes: int) -> None:
        super().__init__()
        channels, height, width = image
        self.levels = nn.ModuleList()
        self.parts: list[Shape] = []
        """The shapes of the latents' parts."""
        for number in range(options.levels):
            last = number == options.levels - 1
            channels, height, width = 4 * channels, height // 2, width // 2
            self.levels.append(FlowLevel(options, channels, classes if options.classes_in == "everywhere" else 0, last))
            channels = channels if last else channels // 2
            self.parts.append((channels, height, width))
        self.top = TopNormal(channels, classes, options.learned_top)
        self.classifier = ZeroLinear(channels, classes) if classes and options.class_weight else None

    def forward(self, y: Tensor, labels: Tensor | None) -> FlowOutput:
        z, log_det = y.to(statistics_dtype(y.dtype)) - 0.5, torch.zeros((), device=y.device)
        latents = []
        for level in self.levels:
            z, aside, change = level(z, labels)
            latents.append(aside)
            log_det = log_det + change
        top, change = self.top(z, labels)
        latents[-1] = top
        logits = None if self.classifier is None else self.classifier(z.mean((2, 3)))
        return FlowOutput(torch.cat([part.flatten(1) for part in latents], 1), log_det + change, logits)

    def inverse(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        sizes = [channels * height * width for channels, height, width in self.parts]
        parts = [part.unflatten(1, shape) for part, shape in zip(latents.split(sizes, 1), self.parts, strict=True)]
        z = self.top.inverse(parts[-1], labels)
        for level, part in zip(reversed(self.levels), reversed(parts), strict=True):
            z = cast(FlowLevel, level).inverse(z, part, labels)
        return z + 0.5


class FlowLevel(nn.Module):
    """A level of `channels` channels after its squeeze. The last puts nothing aside. `classes`: their number, or 0 where the
    level is not told the class."""

    def __init__(self, options: GlowOptions, channels: int, classes: int, last: bool) -> None:
        super().__init__()
        self.steps = nn.ModuleList(FlowStep(options, channels, classes) for _ in range(options.steps))
        self.conditional = None if last else ConditionalNormal(channels // 2, classes)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What is passed on, the latents of what is put aside (the last level: what is passed on), and the log-determinant."""
        z, log_det = squeezed(x), torch.zeros((), device=x.device)
        for step in self.steps:
            z, change = step(z, labels)
            log_det = log_det + change
        if self.conditional is None:
            return z, z, log_det
        kept, aside = z.chunk(2, 1)
        latents, change = self.conditional(kept, aside, labels)
        return kept, latents, log_det + change

    def inverse(self, z: Tensor, latents: Tensor, labels: Tensor | None) -> Tensor:
        if self.conditional is not None:
            z = torch.cat([z, self.conditional.inverse(z, latents, labels)], 1)
        for step in reversed(self.steps):
            z = cast(FlowStep, step).inverse(z, labels)
        return unsqueezed(z)


class FlowStep(FlowBlock):
    """Actnorm, 1 x 1 convolution, coupling (figure 2a)."""

    def __init__(self, options: GlowOptions, channels: int, classes: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)
        self.mixing = {"plain": Mixing, "lu": MixingLU}[options.mixing](channels)
        self.coupling = Coupling(channels, options.channels, options.coupling == "affine", classes)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        z, scaled = self.norm(x)
        z, mixed = self.mixing(z)
        z, coupled = self.coupling(z, labels)
        return z, scaled + mixed + coupled

    def inverse(self, z: Tensor, labels: Tensor | None) -> Tensor:
        return self.norm.inverse(self.mixing.inverse(self.coupling.inverse(z, labels)))


class Coupling(nn.Module):
    """The second half of the channels, (x2 + shift) scale, as a network of the first half says; scale = sigmoid(h + 2), whose
    log is bounded from above, or 1."""

    def __init__(self, channels: int, hidden: int, affine: bool, classes: int) -> None:
        super().__init__()
        self.affine = affine
        self.conv1 = EdgeConv2d(channels // 2, hidden)
        self.by_class = ZeroLinear(classes, hidden) if classes else None
        self.norm1 = ActNorm(hidden)
        self.conv2 = nn.Conv2d(hidden, hidden, 1, bias=False)
        self.norm2 = ActNorm(hidden)
        self.conv3 = ZeroConv2d(hidden, channels if affine else channels // 2)
        nn.init.normal_(self.conv2.weight, std=0.05)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, changed = x.chunk(2, 1)
        shift, log_scale = self._shift_and_log_scale(kept, labels)
        if log_scale is None:
            return torch.cat([kept, changed + shift], 1), x.new_zeros(())
        return torch.cat([kept, (changed + shift) * log_scale.exp()], 1), log_scale.flatten(1).sum(1)

    def inverse(self, z: Tensor, labels: Tensor | None) -> Tensor:
        kept, changed = z.chunk(2, 1)
        shift, log_scale = self._shift_and_log_scale(kept, labels)
        if log_scale is not None:
            changed = changed * (-log_scale).exp()
        return torch.cat([kept, changed - shift], 1)

    def _shift_and_log_scale(self, kept: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        h = of_class(self.conv1(kept), self.by_class, labels)
        h = self.norm1(h)[0].relu()
        h = self.norm2(self.conv2(h))[0].relu()
        h = self.conv3(h)
        if not self.affine:
            return h, None
        return h[:, 0::2], F.logsigmoid(h[:, 1::2] + 2)


class EdgeConv2d(nn.Module):
    """A 3 x 3 convolution without bias, padded with zeros, whose last input channel is 1 in the padding and 0 elsewhere."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.05 * torch.randn(outputs, channels + 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> [n, outputs, h, w]."""
        edge = F.pad(self.weight.new_zeros(1, 1, *x.shape[2:]), (1, 1, 1, 1), value=1.0)
        return F.conv2d(x, self.weight[:, :-1], padding=1) + F.conv2d(edge, self.weight[:, -1:])


class ZeroConv2d(EdgeConv2d):
    """(conv(x) + bias) exp(3 logs), all zero at first; in the precision of its weight, whatever autocast says."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(channels, outputs)
        nn.init.zeros_(self.weight)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.logs = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x):
            convolved = super().forward(x.to(self.weight.dtype))
            return (convolved + self.bias[:, None, None]) * (3 * self.logs[:, None, None]).exp()


class ZeroLinear(nn.Module):
    """(x W + bias) exp(3 logs), all zero at first."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.logs = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[n, features], or int64 [n], which stands for vectors that are 1 there and 0 elsewhere -> [n, outputs]."""
        with without_autocast(self.weight):
            product = x @ self.weight if x.is_floating_point() else F.embedding(x, self.weight)
            return (product + self.bias) * (3 * self.logs).exp()


def of_class(h: Tensor, by_class: ZeroLinear | None, labels: Tensor | None) -> Tensor:
    """Maps h [n, c, h, w] plus what a class adds to each channel."""
    if by_class is None:
        return h
    assert labels is not None, "this flow is told the class"
    return h + by_class(labels)[:, :, None, None]


class ConditionalNormal(nn.Module):
    """Latents of the channels that are put aside: how many deviations they are from the mean that those kept give them."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = ZeroConv2d(channels, 2 * channels)
        self.by_class = ZeroLinear(classes, 2 * channels) if classes else None

    def forward(self, kept: Tensor, aside: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The latents [n, channels, h, w], and the log-determinant [n]."""
        mean, logs = self._mean_and_logs(kept, labels)
        return (aside - mean) * (-logs).exp(), -logs.flatten(1).sum(1)

    def inverse(self, kept: Tensor, latents: Tensor, labels: Tensor | None) -> Tensor:
        mean, logs = self._mean_and_logs(kept, labels)
        return mean + logs.exp() * latents

    def _mean_and_logs(self, kept: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        h = of_class(self.conv(kept), self.by_class, labels)
        return h[:, 0::2], h[:, 1::2]


class TopNormal(nn.Module):
    """Latents of the last level, relative to a mean and a deviation that are learned for each channel, near the edges apart
    (a convolution of zeros), and for each class."""

    def __init__(self, channels: int, classes: int, learned: bool) -> None:
        super().__init__()
        self.conv = ZeroConv2d(2 * channels, 2 * channels) if learned else None
        self.by_class = ZeroLinear(classes, 2 * channels) if classes else None

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        mean, logs = self._mean_and_logs(x, labels)
        return (x - mean) * (-logs).exp(), -logs.flatten(1).sum(1)

    def inverse(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        mean, logs = self._mean_and_logs(latents, labels)
        return mean + logs.exp() * latents

    def _mean_and_logs(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        zeros = x.new_zeros(len(x), 2 * x.shape[1], *x.shape[2:])
        h = of_class(zeros if self.conv is None else self.conv(zeros), self.by_class, labels)
        mean, logs = h.chunk(2, 1)
        return mean, logs
