"""RealNVP (Dinh, Sohl-Dickstein & Bengio 2017, arXiv:1605.08803), as in the authors' code, which is TensorFlow's.

A scale has three couplings over a checkerboard, then three over halves of the channels of squeezed images, and passes half of
them on; the last has four over a checkerboard. Each coupling ends with a batch norm that is part of the flow (section 3.7).
The paper's flow is not told the class: where ours is, a vector of the class is added in each coupling's network, and the
latents may have a mean and a deviation of the class.
"""

import math
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.cluster.collectives import mean_over_ranks
from bigtrain.networks.flows.bijection import ActNorm, FlowBlock, squeezed, unsqueezed
from bigtrain.networks.flows.image_flow import FlowOutput, ImageFlow, ImageFlowOptions, Shape
from bigtrain.networks.layers.normalisation import SyncedBatchNorm, statistics_dtype, without_autocast
from bigtrain.options import Depth, Weight, Width
from bigtrain.sizes import size_text

EPS, MOMENTUM = 1e-4, 0.1
"""Of every batch norm; in the authors' terms, the decay is 0.1."""


class RealNVPOptions(ImageFlowOptions):
    """RealNVP. By default the network of CIFAR-10: with 32 x 32 RGB images 19,609,545 parameters."""

    kind: Literal["realnvp"] = "realnvp"
    scales: int = Field(default=2, ge=1, le=16)
    """All but the last halve the images' sides."""
    channels: Width = 64
    """Of the residual networks of the first scale's couplings over a checkerboard; those over channels have twice as many, and
    so do those of the next scale."""
    residual_blocks: Depth = 8
    """Residual blocks of a coupling's network."""
    normalisation: Literal["batch", "actnorm"] = "batch"
    """batch: as published, with running moments in evaluation, which can be far from those of a batch: then likelihoods of
    held-out images are too; actnorm: as Glow's."""
    classes_in: Literal["couplings", "everywhere"] = "couplings"
    """What a class-conditional flow tells the class: couplings: their networks; everywhere: mean and deviation of each latent
    too, with which small flows draw the class that they are asked for."""
    logit_margin: float = Field(default=0.05, ge=1e-4, le=0.25)
    """Black becomes the logit of this, and white of 1 minus this (section 4.1)."""
    scale_penalty: Weight = 5e-5
    """Weight of the squares of the weights that scale: the magnitudes of kernels, and the scales of the couplings over a
    checkerboard; in nats of an image. It is made by the optimizer's weight decay, after its clip_norm."""

    @property
    def begins_with_data(self) -> bool:
        return self.normalisation == "actnorm"

    @property
    def penalty(self) -> float:
        return self.scale_penalty

    def penalises(self, name: str, parameter: nn.Parameter) -> bool:
        return name.endswith(".magnitude") or (".over_pixels." in name and name.endswith(".scale"))

    def build(self, image: Shape, classes: int) -> "RealNVP":
        return RealNVP(self, image, classes)

    def check_size(self, size: tuple[int, int]) -> None:
        factor = 2 ** (self.scales - 1)
        if any(side % factor or side // factor < 2 for side in size):
            raise ValueError(
                f"family.network.scales: {self.scales} scales need a data.image_size that is divisible by {factor}, with at "
                f"least 2 pixels left, and {size_text(size)} is not; take fewer scales or another size"
            )


class RealNVP(ImageFlow):
    """y to logits, then scales 0, 1, ...; the latents are what scale 0 passes by, then scale 1, ..., then the last one's."""

    def __init__(self, options: RealNVPOptions, image: Shape, classes: int) -> None:
        super().__init__()
        self.margin = options.logit_margin
        channels, height, width = image
        self.scales = nn.ModuleList()
        self.parts: list[Shape] = []
        """The shapes of the latents' parts."""
        for number in range(options.scales):
            last = number == options.scales - 1
            self.scales.append(RealNVPScale(options, channels, options.channels * 2**number, classes, last))
            if not last:
                channels, height, width = 2 * channels, height // 2, width // 2
            self.parts.append((channels, height, width))
        of_classes = classes and options.classes_in == "everywhere"
        self.by_class = ClassNormal(classes, math.prod(image)) if of_classes else None

    def forward(self, y: Tensor, labels: Tensor | None) -> FlowOutput:
        y = y.to(statistics_dtype(y.dtype))
        x = torch.logit(self.margin + (1 - 2 * self.margin) * y)
        change = F.softplus(x) + F.softplus(-x) + math.log(1 - 2 * self.margin)
        log_det = change.flatten(1).sum(1)
        latents = []
        for scale in self.scales:
            x, aside, change = scale(x, labels)
            latents.append(aside)
            log_det = log_det + change
        z = torch.cat([part.flatten(1) for part in latents], 1)
        if self.by_class is not None:
            z, change = self.by_class(z, labels)
            log_det = log_det + change
        return FlowOutput(z, log_det)

    def inverse(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        if self.by_class is not None:
            latents = self.by_class.inverse(latents, labels)
        sizes = [math.prod(shape) for shape in self.parts]
        parts = [part.unflatten(1, shape) for part, shape in zip(latents.split(sizes, 1), self.parts, strict=True)]
        x = parts[-1]
        for scale, part in zip(reversed(self.scales), reversed(parts), strict=True):
            x = cast(RealNVPScale, scale).inverse(x, part, labels)
        return (x.sigmoid() - self.margin) / (1 - 2 * self.margin)


class ClassNormal(nn.Module):
    """Latents [n, count], relative to a mean and a deviation that are learned for each of them and each class."""

    def __init__(self, classes: int, count: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(classes, count))
        self.log_deviation = nn.Parameter(torch.zeros(classes, count))

    def forward(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """The latents, and the log-determinant [n]."""
        assert labels is not None, "this flow is told the class"
        log_deviation = self.log_deviation[labels]
        return (z - self.mean[labels]) * (-log_deviation).exp(), -log_deviation.sum(1)

    def inverse(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        assert labels is not None, "this flow is told the class"
        return self.mean[labels] + self.log_deviation[labels].exp() * latents


class RealNVPScale(nn.Module):
    """A scale of images of `channels` channels; `hidden`: of the networks of its couplings over a checkerboard."""

    def __init__(self, options: RealNVPOptions, channels: int, hidden: int, classes: int, last: bool) -> None:
        super().__init__()
        self.last = last
        self.over_pixels = nn.ModuleList(
            MaskedCoupling(options, channels, hidden, classes, number % 2) for number in range(4 if last else 3)
        )
        self.over_channels = nn.ModuleList(
            ChannelCoupling(options, 4 * channels, 2 * hidden, classes, number % 2)
            for number in range(0 if last else 3)
        )

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What is passed on, the latents (of the last scale: what would be passed on), and the log-determinant."""
        log_det = torch.zeros((), device=x.device)
        for coupling in self.over_pixels:
            x, change = coupling(x, labels)
            log_det = log_det + change
        if self.last:
            return x, x, log_det
        x = squeezed(x)
        for coupling in self.over_channels:
            x, change = coupling(x, labels)
            log_det = log_det + change
        kept, aside = diagonals(x).chunk(2, 1)
        return kept, aside, log_det

    def inverse(self, x: Tensor, latents: Tensor, labels: Tensor | None) -> Tensor:
        if not self.last:
            x = undone_diagonals(torch.cat([x, latents], 1))
            for coupling in reversed(self.over_channels):
                x = cast(ChannelCoupling, coupling).inverse(x, labels)
            x = unsqueezed(x)
        for coupling in reversed(self.over_pixels):
            x = cast(MaskedCoupling, coupling).inverse(x, labels)
        return x


# A list as an index would be copied to the device at every call.
_ORDER, _BACK = (0, 3, 1, 2), (0, 2, 3, 1)


def diagonals(x: Tensor) -> Tensor:
    """Squeezed channels in another order, so that the first half of them are the pixels of one diagonal of each 2 x 2, and the
    second half those of the other (figure 3)."""
    pixels = x.unflatten(1, (-1, 4)).unbind(2)
    return torch.stack([pixels[number] for number in _ORDER], 1).flatten(1, 2)


def undone_diagonals(x: Tensor) -> Tensor:
    """The inverse."""
    pixels = x.unflatten(1, (4, -1)).unbind(1)
    return torch.stack([pixels[number] for number in _BACK], 2).flatten(1, 2)


class MaskedCoupling(FlowBlock):
    """(x + shift) exp(log_scale) where the checkerboard is 0, as a network of the rest says (section 3.4)."""

    def __init__(self, options: RealNVPOptions, channels: int, hidden: int, classes: int, colour: int) -> None:
        super().__init__()
        self.colour = colour
        self.norm_in = network_norm(options, channels)
        self.network = ResidualNetwork(options, 2 * channels + 1, hidden, 2 * channels, classes)
        self.scale = nn.Parameter(torch.zeros(()))
        self.norm_out = flow_norm(options, channels)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        changed, shift, log_scale = self._shift_and_log_scale(x, labels)
        with without_autocast(x):
            z = (x + shift) * log_scale.exp()
            mean, log_deviation = (moment * changed for moment in self.norm_out(z * changed))
            return (z - mean) * (-log_deviation).exp(), (log_scale - log_deviation).flatten(1).sum(1)

    def inverse(self, z: Tensor, labels: Tensor | None) -> Tensor:
        changed, shift, log_scale = self._shift_and_log_scale(z, labels)
        mean, log_deviation = (moment * changed for moment in self.norm_out.moments())
        return (z * log_deviation.exp() + mean) * (-log_scale).exp() - shift

    def _shift_and_log_scale(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Which pixels are changed [h, w], and by how much; 0 for those that are not."""
        rows, columns = (torch.arange(side, device=x.device) for side in x.shape[2:])
        changed = ((rows[:, None] + columns + self.colour) % 2).to(x.dtype)
        kept = 1 - changed
        seen = 2 * self.norm_in(x * kept)
        seen = torch.cat([seen, -seen, kept.expand(len(x), 1, -1, -1)], 1).relu()
        shift, log_scale = self.network(seen, labels).chunk(2, 1)
        return changed, shift * changed, self.scale * log_scale.tanh() * changed


class ChannelCoupling(FlowBlock):
    """The same with half of the channels, the second one (`swap` 0) or the first."""

    def __init__(self, options: RealNVPOptions, channels: int, hidden: int, classes: int, swap: int) -> None:
        super().__init__()
        self.swap = swap
        half = channels // 2
        self.norm_in = network_norm(options, half)
        self.network = ResidualNetwork(options, 2 * half, hidden, 2 * half, classes)
        self.scale = nn.Parameter(torch.ones(()))
        self.norm_out = flow_norm(options, half)

    def forward(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        kept, changed = self._halves(x)
        shift, log_scale = self._shift_and_log_scale(kept, labels)
        with without_autocast(x):
            z = (changed + shift) * log_scale.exp()
            mean, log_deviation = self.norm_out(z)
            z = (z - mean) * (-log_deviation).exp()
            return self._joined(kept, z), (log_scale - log_deviation).flatten(1).sum(1)

    def inverse(self, z: Tensor, labels: Tensor | None) -> Tensor:
        kept, changed = self._halves(z)
        shift, log_scale = self._shift_and_log_scale(kept, labels)
        mean, log_deviation = self.norm_out.moments()
        return self._joined(kept, (changed * log_deviation.exp() + mean) * (-log_scale).exp() - shift)

    def _halves(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Those that are kept, and those that are changed."""
        first, second = x.chunk(2, 1)
        return (second, first) if self.swap else (first, second)

    def _joined(self, kept: Tensor, changed: Tensor) -> Tensor:
        return torch.cat([changed, kept] if self.swap else [kept, changed], 1)

    def _shift_and_log_scale(self, kept: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        seen = self.norm_in(kept)
        shift, log_scale = self.network(torch.cat([seen, -seen], 1).relu(), labels).chunk(2, 1)
        return shift, self.scale * log_scale.tanh()


class ResidualNetwork(nn.Module):
    """What shift and scale are made by: residual blocks, whose outputs reach the last layer through 1 x 1 convolutions too."""

    def __init__(self, options: RealNVPOptions, inputs: int, hidden: int, outputs: int, classes: int) -> None:
        super().__init__()
        self.conv_in = NormedConv2d(inputs, hidden, 3)
        self.by_class = nn.Embedding(classes, hidden) if classes else None
        self.skip_in = NormedConv2d(hidden, hidden, 1, magnitude=True)
        self.blocks = nn.ModuleList(ResidualBlock(options, hidden) for _ in range(options.residual_blocks))
        self.skips = nn.ModuleList(
            NormedConv2d(hidden, hidden, 1, magnitude=True) for _ in range(options.residual_blocks)
        )
        self.norm = network_norm(options, hidden)
        self.conv_out = NormedConv2d(hidden, outputs, 1, magnitude=True)

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h, w], in at least float32."""
        h = self.conv_in(x)
        if self.by_class is not None:
            assert labels is not None, "this flow is told the class"
            h = h + self.by_class(labels)[:, :, None, None]
        out = self.skip_in(h)
        for block, skip in zip(self.blocks, self.skips, strict=True):
            h = block(h)
            out = out + skip(h)
        out = self.norm(out).relu()
        with without_autocast(out):
            return self.conv_out(out.to(self.conv_out.weight.dtype))


class ResidualBlock(nn.Module):
    """x + conv3(relu(norm(conv3(relu(norm(x))))))."""

    def __init__(self, options: RealNVPOptions, width: int) -> None:
        super().__init__()
        self.norm1 = network_norm(options, width)
        self.conv1 = NormedConv2d(width, width, 3, bias=False)
        self.norm2 = network_norm(options, width)
        self.conv2 = NormedConv2d(width, width, 3, magnitude=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(self.norm2(self.conv1(self.norm1(x).relu())).relu())


class NormedConv2d(nn.Module):
    """A convolution whose kernels have norm 1 (Salimans & Kingma 2016, arXiv:1602.07868), or a learned `magnitude` each."""

    def __init__(self, inputs: int, outputs: int, kernel: int, *, bias: bool = True, magnitude: bool = False) -> None:
        super().__init__()
        bound = math.sqrt(2 / inputs)
        self.weight = nn.Parameter(torch.empty(outputs, inputs, kernel, kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        initial = torch.full((outputs,), bound * math.sqrt(inputs * kernel**2 / 12))
        self.magnitude = nn.Parameter(initial) if magnitude else None

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h, w]."""
        with without_autocast(self.weight):
            weight = self.weight / self.weight.square().sum((1, 2, 3), keepdim=True).sqrt()
            if self.magnitude is not None:
                weight = weight * self.magnitude.view(-1, 1, 1, 1)
        return F.conv2d(x, weight, self.bias, padding=self.weight.shape[-1] // 2)


# -- norms -----------------------------------------------------------------------------------------------------------


def network_norm(options: RealNVPOptions, channels: int) -> nn.Module:
    """Within a network: what it does to volumes is of no interest."""
    return ShiftedBatchNorm(channels) if options.normalisation == "batch" else PlainActNorm(channels)


def flow_norm(options: RealNVPOptions, channels: int) -> "BatchMoments | ActMoments":
    return BatchMoments(channels) if options.normalisation == "batch" else ActMoments(channels)


class ShiftedBatchNorm(nn.Module):
    """Batch norm with a bias and without a gain."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = SyncedBatchNorm(channels, affine=False, eps=EPS, momentum=MOMENTUM)
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + self.bias[:, None, None]


class PlainActNorm(nn.Module):
    """An actnorm without its log-determinant."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ActNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)[0]


class BatchMoments(SyncedBatchNorm):
    """The moments that a batch norm within a flow divides by: the batch's own in training, then the running ones."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, affine=False, eps=EPS, momentum=MOMENTUM)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]  # a flow needs them for its determinant
        """The mean and the log deviation, [channels, 1, 1]."""
        if not self.training:
            return self.moments()
        together = mean_over_ranks if self.synchronised else _own
        mean = together(x.mean((0, 2, 3)))
        variance = together((x - mean[:, None, None]).square().mean((0, 2, 3)))
        if self.recording:
            self._record(torch.stack([mean, variance]).detach())
        return mean[:, None, None], (variance + self.eps).log()[:, None, None] / 2

    def moments(self) -> tuple[Tensor, Tensor]:
        """In evaluation."""
        return self.running_mean[:, None, None], (self.running_var + self.eps).log()[:, None, None] / 2


def _own(x: Tensor) -> Tensor:
    return x


class ActMoments(ActNorm):
    """The same of an actnorm, whose scale is learned."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The mean and the log deviation, [channels, 1, 1]."""
        if self.initialising:
            self._initialise(x)
        return self.moments()

    def moments(self) -> tuple[Tensor, Tensor]:
        return -self.bias[:, None, None], -3 * self.logs[:, None, None]
