"""The residual autoencoder with inverse autoregressive flows (Kingma et al. 2016, "Improving variational inference with inverse
autoregressive flow", arXiv:1606.04934, appendix C), as its code for CIFAR-10 has it.

A bottom-up pass over the image and a top-down pass meet in every block. There the top-down pass gives the prior of the block's
latents and, with what the bottom-up pass has left there, their posterior:

    z_0 ~ N(mu_up + mu_down, e^(s_up + s_down)),    z = (z_0 - .1 m) e^(-.1 s),    log q(z) = log q(z_0) + .1 s

where m and s are masked convolutions of z_0 and the context: each latent's depend on the latents before it. Where there are
classes, a vector of the class is added to the first features of the bottom-up pass, and the top-down pass begins with one, so
that it reaches the decoder and every learned prior.
"""

import math
from itertools import pairwise
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.autoencoders.latent_model import LatentModel, NetworkOptions, PosteriorDraw, Shape, dtype_of
from bigtrain.networks.autoencoders.latents import LatentOptions, normal_log_density
from bigtrain.networks.layers.weight_norm import WeightNormConv, WeightNormUpsampling, initialise_by_data
from bigtrain.options import Depth, Width
from bigtrain.sizes import size_text


class InverseAutoregressive(NetworkOptions):
    """Residual blocks with latents of their own."""

    kind: Literal["iaf"]
    channels: Width = 160
    """Features of every block (n_h)."""
    latent_size: Width = 32
    """Channels of a block's latents (n_z); `channels` is a multiple of it."""
    blocks: tuple[Depth, ...] = Field(default=(20,), min_length=1, max_length=10)
    """Blocks of each level. Maps have half the image's side in the first level, and half as much in each further one."""
    autoregressive_layers: Depth = 2
    """Hidden layers of the masked convolutions that give m and s."""
    one_scale: bool = False
    """Whether the last map of p(x|z), a logistic's log scale, is one number that is learned, the same for all images."""
    initialised_by_data = True

    @model_validator(mode="after")
    def _channels_are_of_whole_groups(self) -> "InverseAutoregressive":
        if self.channels % self.latent_size:
            raise ValueError(
                f"channels must be a multiple of latent_size, and {self.channels} is not of {self.latent_size}"
            )
        return self

    def build(self, image: Shape, classes: int, latents: LatentOptions, initial_maps: Tensor) -> "IAFModel":
        return IAFModel(self, image, classes, initial_maps)

    def latent_shapes(self, image: Shape, latents: LatentOptions) -> list[tuple[int, ...]]:
        return [
            (self.latent_size, image[1] // 2 ** (level + 1), image[2] // 2 ** (level + 1))
            for level in reversed(range(len(self.blocks)))
            for _ in range(self.blocks[level])
        ]

    def check_size(self, size: tuple[int, int]) -> None:
        factor = 2 ** len(self.blocks)
        if any(side % factor for side in size):
            raise ValueError(
                f"family.network.blocks: {len(self.blocks)} levels need a data.image_size that is divisible by {factor}, and "
                f"{size_text(size)} is not; take fewer levels or another size"
            )


class IAFModel(LatentModel):
    """`up` and `down` have the blocks in the order of the bottom-up pass."""

    def __init__(self, options: InverseAutoregressive, image: Shape, classes: int, initial_maps: Tensor) -> None:
        super().__init__()
        width, halves = (
            options.channels,
            [level > 0 and block == 0 for level, blocks in enumerate(options.blocks) for block in range(blocks)],
        )
        self.shapes = options.latent_shapes(image, cast(LatentOptions, None))
        self.first = FirstFeatures(image[0], width, classes)
        self.up = nn.ModuleList(UpBlock(width, options.latent_size, half) for half in halves)
        self.top = TopVector(width, classes, self.shapes[0][1:])
        self.down = nn.ModuleList(
            DownBlock(width, options.latent_size, half, options.autoregressive_layers) for half in halves
        )
        self.last = LastMaps(width, initial_maps, options.one_scale)
        self.recomputed_blocks = (UpBlock, DownBlock)

    def encode(self, x: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        """Of each block mu_up, s_up and the context, [n, channels, h, w]; three a block."""
        h, statistics = self.first(x, labels), []
        for block in self.up:
            h, *own = block(h)
            statistics += own
        return tuple(statistics)

    def draw(
        self, statistics: tuple[Tensor, ...], labels: Tensor | None, noise: Tensor, temperature: Tensor | None
    ) -> PosteriorDraw:
        h = self.top(len(noise), labels)
        kl = []
        for number, (block, epsilon) in enumerate(zip(reversed(self.down), self._by_block(noise), strict=True)):
            first = len(statistics) - 3 * (number + 1)
            h, ratio, _ = block(h, epsilon, statistics[first : first + 3])
            kl.append(ratio)
        total = torch.stack([ratio.flatten(1).sum(1) for ratio in kl]).sum(0)
        return PosteriorDraw(self.last(h), tuple(kl), total)

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        h = self.top(len(latents), labels)
        for block, epsilon in zip(reversed(self.down), self._by_block(latents), strict=True):
            h, _, _ = block(h, epsilon, None)
        return self.last(h)

    def centre(self, x: Tensor, labels: Tensor | None) -> Tensor:
        """The latents that the posteriors' means become, each given those of the blocks above."""
        statistics = self.encode(x, labels)
        h, numbers = self.top(len(x), labels), []
        for number, (block, shape) in enumerate(zip(reversed(self.down), self.shapes, strict=True)):
            first = len(statistics) - 3 * (number + 1)
            zeros = statistics[0].new_zeros(len(x), *shape)
            h, _, standard = block(h, zeros, statistics[first : first + 3])
            numbers.append(standard.flatten(1))
        return torch.cat(numbers, 1)

    def initialise(self, x: Tensor, labels: Tensor | None, noise: Tensor, bias: Tensor | None) -> None:
        initialise_by_data(self, lambda: self(x, labels, noise))

    def _by_block(self, latents: Tensor) -> list[Tensor]:
        sizes = [math.prod(shape) for shape in self.shapes]
        return [each.unflatten(1, shape) for each, shape in zip(latents.split(sizes, 1), self.shapes, strict=True)]


class FirstFeatures(nn.Module):
    """The image at half its size, with a vector of the class."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.conv = WeightNormConv(channels, width, 5, stride=2)
        self.by_class = nn.Embedding(classes, width) if classes else None
        if self.by_class is not None:
            nn.init.normal_(self.by_class.weight, std=0.1)  # as large as the features that it is added to

    def forward(self, x: Tensor, labels: Tensor | None) -> Tensor:
        features = self.conv(x / 2)
        if self.by_class is not None:
            assert labels is not None, "this network is told the class"
            features = features + self.by_class(labels)[..., None, None]
        return features


class TopVector(nn.Module):
    """What the top-down pass begins with: a learned vector, everywhere the same; of the class, where there are classes. A
    single one begins at zero, as published; those of classes do not, so that the first priors differ by class."""

    def __init__(self, width: int, classes: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.vectors, self.size = nn.Parameter(torch.zeros(max(classes, 1), width)), size
        if classes:
            nn.init.normal_(self.vectors, std=0.01)  # as large as what a block adds: .1 of outputs of deviation .1

    def forward(self, n: int, labels: Tensor | None) -> Tensor:
        chosen = (
            self.vectors.expand(n, -1) if len(self.vectors) == 1 else F.embedding(cast(Tensor, labels), self.vectors)
        )
        return chosen[..., None, None].expand(-1, -1, *self.size)


class UpBlock(nn.Module):
    """h -> h + .1 conv(elu(.)), and what is left for the block of the top-down pass: mu, s, context."""

    def __init__(self, width: int, latents: int, half: bool) -> None:
        super().__init__()
        self.halves, self.parts = half, [latents, latents, width, width]
        self.conv1 = WeightNormConv(width, sum(self.parts), stride=2 if half else 1)
        self.conv2 = WeightNormConv(width, width)

    def forward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mu, s, context, features = self.conv1(F.elu(h)).split(self.parts, dim=1)
        kept = h[..., ::2, ::2] if self.halves else h
        return kept + 0.1 * self.conv2(F.elu(features)), mu, s, context


class DownBlock(nn.Module):
    """h -> h + .1 conv(elu([z, .])), with z of the prior or of the posterior."""

    def __init__(self, width: int, latents: int, half: bool, layers: int) -> None:
        super().__init__()
        self.halves, self.parts = half, [latents] * 4 + [width] * 2
        self.conv1 = WeightNormConv(width, sum(self.parts))
        self.flow = MaskedConvolutions(latents, width, layers)
        kind = WeightNormUpsampling if half else WeightNormConv
        self.conv2 = kind(latents + width, width)

    def forward(self, h: Tensor, noise: Tensor, up: tuple[Tensor, ...] | None) -> tuple[Tensor, Tensor, Tensor]:
        """(h, log q - log p of each latent, the latents as standard normal numbers of the prior). `noise`: epsilon of z_0 with
        mu, s and context in `up`; those numbers themselves without."""
        mu, s, mu_down, s_down, context, features = self.conv1(F.elu(h)).split(self.parts, dim=1)
        exact = torch.promote_types(noise.dtype, torch.float32)
        mu, s = mu.to(exact), s.to(exact)
        if up is None:
            z, ratio, standard = mu + s.exp() * noise, torch.zeros_like(noise), noise
        else:
            mu_q, s_q = mu_down.to(exact) + up[0].to(exact), s_down.to(exact) + up[1].to(exact)
            z, log_q = self._posterior(mu_q, s_q, noise, context + up[2].to(context.dtype))
            ratio = log_q - normal_log_density(z, mu, s)
            standard = (z - mu) * (-s).exp()
        wide = F.elu(torch.cat([z.to(features.dtype), features], 1))
        kept = h.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.halves else h
        return kept + 0.1 * self.conv2(wide), ratio, standard

    def _posterior(self, mu: Tensor, s: Tensor, noise: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """z and log q(z) of each latent."""
        z = mu + s.exp() * noise
        log_q = -noise.square() / 2 - s - math.log(2 * math.pi) / 2
        m, log_scale = (0.1 * each.to(z.dtype) for each in self.flow(z.to(dtype_of(self)), context))
        return (z - m) * (-log_scale).exp(), log_q + log_scale


class MaskedConvolutions(nn.Module):
    """m and s of an inverse autoregressive flow over maps of latents, in the order of rows from the last to the first, of
    columns alike, and of channels from the first to the last."""

    def __init__(self, latents: int, width: int, layers: int) -> None:
        super().__init__()
        sizes = [latents, *[width] * layers]
        self.hidden = nn.ModuleList(_masked(before, after, strict=False) for before, after in pairwise(sizes))
        self.m, self.s = (_masked(width, latents, strict=True) for _ in range(2))

    def forward(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """The context is added to the first hidden layer, before its nonlinearity."""
        for number, layer in enumerate(self.hidden):
            z = layer(z)
            z = F.elu(z + context if number == 0 else z)
        return self.m(z), self.s(z)


def _masked(inputs: int, outputs: int, *, strict: bool) -> WeightNormConv:
    return WeightNormConv(inputs, outputs, deviation=1.0, mask=autoregressive_mask(inputs, outputs, strict=strict))


def autoregressive_mask(inputs: int, outputs: int, *, strict: bool) -> Tensor:
    """[outputs, inputs, 3, 3]: 1 for the weights of what comes before in the order; of the same place, channels are in groups,
    and an output may depend on its own group only if not `strict`."""
    groups = min(inputs, outputs)
    of_input = torch.arange(inputs) // (inputs // groups)
    of_output = torch.arange(outputs) // (outputs // groups)
    mask = torch.ones(outputs, inputs, 3, 3)
    mask[:, :, 0] = 0
    mask[:, :, 1, 0] = 0
    before = of_input < of_output.unsqueeze(1) if strict else of_input <= of_output.unsqueeze(1)
    mask[:, :, 1, 1] = before.to(mask.dtype)
    return mask


class LastMaps(nn.Module):
    """The maps of p(x | z) at the image's size; with `one_scale` the last of them is one number."""

    def __init__(self, width: int, initial_maps: Tensor, one_scale: bool) -> None:
        super().__init__()
        free = len(initial_maps) - one_scale
        self.conv = WeightNormUpsampling(width, free, 5, precise=True)
        self.initial = nn.Buffer(initial_maps[:free].view(-1, 1, 1).clone(), persistent=False)
        self.scale = nn.Parameter(initial_maps[free:].clone()) if one_scale else None

    def forward(self, h: Tensor) -> Tensor:
        maps = self.conv(F.elu(h.to(dtype_of(self)))) + self.initial
        if self.scale is None:
            return maps
        return torch.cat([maps, self.scale.view(1, -1, 1, 1).expand(len(maps), -1, *maps.shape[2:])], 1)
