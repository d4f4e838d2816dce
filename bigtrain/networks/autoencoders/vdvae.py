"""Very deep VAEs (Child 2021, arXiv:2011.10650), as in the authors' code (github.com/openai/vdvae): 39,145,700 parameters at
their setting for CIFAR-10, 125,005,860 for ImageNet 64 x 64, 114,874,852 for FFHQ 256 x 256.

Going up, the encoder keeps the last features of each size. Going down, every block of the decoder has latents of its own:

    q(z_k | z_<k, x) = N(mu, sigma^2) of the block's input and the encoder's features of its size
    p(z_k | z_<k)    = N(mu, sigma^2) of the block's input alone

Unlike theirs it may be told the class: a vector of it is added to the first features of both. Moments are computed in at least
float32, whatever autocast says.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import without_autocast
from bigtrain.networks.layers.precise import PreciseConv2d
from bigtrain.options import MOST_LAYERS, Options, Width
from bigtrain.sizes import size_text

Moments = tuple[Tensor, Tensor]
"""Mean and log deviation of normal distributions."""
Divergence = Callable[[Moments, Moments, Tensor], Tensor]
"""Of q, p, and the epsilon with which z = mu_q + sigma_q epsilon was drawn: nats of each latent."""


@dataclass(frozen=True)
class SizedBlock:
    """A block, on maps of `side` x `side`. In an encoder, `factor` is what its output's side is divided by; in a decoder, what
    the side of its input was multiplied by before."""

    side: int
    factor: int = 1


class VeryDeepOptions(Options):
    """The blocks of an encoder and a decoder, as the authors write them: 32x11 are 11 blocks on maps of 32 x 32; 32d2 is one,
    whose maps are then halved; 16m8 is one on maps of 16 x 16, to which those of 8 x 8 are added, enlarged."""

    encoder: str
    """Blocks of the encoder, from the images' size down, separated by commas."""
    decoder: str
    """Blocks of the decoder, from the smallest maps up to the images' size; each has latents."""
    width: Width = 384
    """Channels of all maps."""
    bottleneck: float = Field(default=0.25, ge=1 / 64, le=4)
    """Channels within a block, in units of `width`."""
    latent_channels: Width = 16
    """Latents of a block, at each position of its maps."""
    largest_bias: int = Field(default=64, ge=0)
    """Maps of a side up to this begin with a learned picture, larger ones with zeros."""
    input_mean: float = Field(default=127.5, ge=0, le=255)
    """What is subtracted from the values 0 .. 255 of the encoder's input: the mean of the data."""
    input_deviation: float = Field(default=127.5, ge=1, le=255)
    """What they are then divided by: the standard deviation of the data. By default the input is as the images, in [-1, 1]."""

    @field_validator("encoder")
    @classmethod
    def _encoder_fits(cls, text: str) -> str:
        encoder_blocks(text)
        return text

    @field_validator("decoder")
    @classmethod
    def _decoder_fits(cls, text: str) -> str:
        decoder_blocks(text)
        return text

    @model_validator(mode="after")
    def _bottleneck_leaves_channels(self) -> "VeryDeepOptions":
        if self.middle < 1:
            raise ValueError(
                f"bottleneck: {self.bottleneck} of width {self.width} leaves no channel; enlarge one of them"
            )
        return self

    @property
    def middle(self) -> int:
        """Channels within a block."""
        return int(self.width * self.bottleneck)

    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the key, if these are no networks of images of `size` (height, width)."""
        first, last = encoder_blocks(self.encoder)[0].side, decoder_blocks(self.decoder)[-1].side
        for key, side in (("encoder", first), ("decoder", last)):
            if size != (side, side):
                where = {"encoder": "begins", "decoder": "ends"}[key]
                raise ValueError(
                    f"family.network.{key}: {where} with maps of {side} x {side}, and data.image_size is {size_text(size)}; "
                    "change one of them (the images must be squares)"
                )
        missing = {block.side for block in decoder_blocks(self.decoder)} - sides_of(encoder_blocks(self.encoder))
        if missing:
            raise ValueError(
                f"family.network.decoder: has maps of {max(missing)} pixels, and family.network.encoder has none of that size"
            )


def encoder_blocks(text: str) -> list[SizedBlock]:
    """Raises ValueError, saying why, for blocks that do not follow each other."""
    blocks, side = [], None
    for here, letter, number, word in _words(text, "d"):
        if side not in (None, here):
            raise ValueError(f"{word} follows maps of {side} pixels")
        factor = number if letter == "d" else 1
        if here % factor or (letter == "d" and factor < 2):
            raise ValueError(f"{word}: maps of {here} pixels cannot be made {factor} times smaller")
        blocks += [SizedBlock(here, factor)] * (number if letter == "x" else 1)
        side = here // factor
    return blocks


def decoder_blocks(text: str) -> list[SizedBlock]:
    """Raises ValueError, saying why, for blocks that do not follow each other."""
    blocks, side = [], None
    for here, letter, number, word in _words(text, "m"):
        if letter == "m" and (side != number or here <= number or here % number):
            raise ValueError(f"{word} follows maps of {side or 'no'} pixels, of which it is no whole multiple")
        if letter == "x" and side not in (None, here):
            raise ValueError(f"{word} follows maps of {side} pixels; {here}m{side} would enlarge them")
        blocks += [SizedBlock(here, here // number if letter == "m" else 1)] * (number if letter == "x" else 1)
        side = here
    return blocks


def sides_of(blocks: Sequence[SizedBlock]) -> set[int]:
    """Of the encoder's maps, its output's too."""
    return {block.side for block in blocks} | {block.side // block.factor for block in blocks}


def _words(text: str, letter: Literal["d", "m"]) -> Iterator[tuple[int, str, int, str]]:
    """(side, x or `letter`, number, the word) of each word; a side alone is one block. Raises ValueError."""
    count = 0
    for word in text.split(","):
        found = re.fullmatch(rf"\s*([1-9]\d{{0,4}})(?:([x{letter}])([1-9]\d{{0,4}}))?\s*", word)
        if found is None:
            raise ValueError(
                f"{word.strip()!r} is not of the form 32x11 (blocks) or 32{letter}{2 if letter == 'd' else 16}"
            )
        yield int(found[1]), found[2] or "x", int(found[3] or 1), word.strip()
        count += int(found[3] or 1) if found[2] != letter else 1
        if count > MOST_LAYERS:
            raise ValueError(f"more than {MOST_LAYERS} blocks")


class Bottleneck(nn.Module):
    """Four convolutions, each after a GELU: 1x1 to the middle width, twice 3x3 (1x1 on maps of 1 or 2 pixels), 1x1 back."""

    def __init__(self, inputs: int, middle: int, outputs: int, side: int, precise: bool = False) -> None:
        super().__init__()
        kernel = 3 if side > 2 else 1
        self.conv1 = _conv(inputs, middle, 1)
        self.conv2 = _conv(middle, middle, kernel)
        self.conv3 = _conv(middle, middle, kernel)
        self.conv4 = _conv(middle, outputs, 1, PreciseConv2d if precise else nn.Conv2d)

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = conv(F.gelu(x))
        return x


class BottomUp(nn.Module):
    """The encoder."""

    def __init__(self, options: VeryDeepOptions, channels: int, classes: int) -> None:
        super().__init__()
        self.mean, self.deviation = options.input_mean, options.input_deviation
        self.sizes = encoder_blocks(options.encoder)
        width, middle = options.width, options.middle
        self.first = _conv(channels, width, 3, PreciseConv2d)
        self.by_class = nn.Embedding(classes, width) if classes else None
        blocks = [Bottleneck(width, middle, width, size.side) for size in self.sizes]
        for block in blocks:
            _scale(block.conv4, 1 / len(blocks))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, ...]:
        """The features [n, width, side, side] of each side, of images [n, C, h, w] in [-1, 1]: those that its last block gives,
        but for one whose maps are then halved."""
        x = self.first(((images + 1) * 127.5 - self.mean) / self.deviation)
        x = x + _of_class(self.by_class, labels)
        features = {x.shape[2]: x}
        for size, block in zip(self.sizes, self.blocks, strict=True):
            x = x + block(x)
            if size.factor > 1:
                x = F.avg_pool2d(x, size.factor)
            features[x.shape[2]] = x
        return tuple(features.values())


class TopDownBlock(nn.Module):
    """One group of latents: its posterior, its prior, and what becomes of them."""

    def __init__(self, options: VeryDeepOptions, side: int, blocks: int) -> None:
        super().__init__()
        width, middle, latents = options.width, options.middle, options.latent_channels
        self.split = [latents, latents, width]
        self.posterior = Bottleneck(2 * width, middle, 2 * latents, side, precise=True)
        self.prior = Bottleneck(width, middle, 2 * latents + width, side, precise=True)
        nn.init.zeros_(self.prior.conv4.weight)
        self.projection = _scale(_conv(latents, width, 1), 1 / blocks)
        self.residual = Bottleneck(width, middle, width, side)
        _scale(self.residual.conv4, 1 / blocks)

    def posterior_of(self, x: Tensor, features: Tensor) -> Moments:
        mu, log_sigma = self.posterior(torch.cat([x, features], dim=1)).chunk(2, dim=1)
        return mu, log_sigma

    def prior_of(self, x: Tensor) -> tuple[Moments, Tensor]:
        """The prior's moments, and what is added to x whatever the latents are."""
        mu, log_sigma, added = self.prior(x).split(self.split, dim=1)
        return (mu, log_sigma), added

    def merged(self, x: Tensor, z: Tensor) -> Tensor:
        x = x + self.projection(z)
        return x + self.residual(x)


Choose = Callable[[int, TopDownBlock, Tensor, Moments], Tensor]
"""z [n, latent_channels, side, side] of a block: of its number, itself, its input, and the prior's moments."""


class TopDown(nn.Module):
    """The decoder."""

    def __init__(self, options: VeryDeepOptions, maps: int, classes: int) -> None:
        super().__init__()
        self.sizes = decoder_blocks(options.decoder)
        width = options.width
        self.blocks = nn.ModuleList(TopDownBlock(options, size.side, len(self.sizes)) for size in self.sizes)
        # Parameters of this module, not of one within: under zero3 they are gathered while it runs.
        for side in sorted({size.side for size in self.sizes if size.side <= options.largest_bias}):
            self.register_parameter(f"begin_{side}", nn.Parameter(torch.zeros(1, width, side, side)))
        self.by_class = nn.Embedding(classes, width) if classes else None
        self.gain = nn.Parameter(torch.ones(1, width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, width, 1, 1))
        self.last = _conv(width, maps, 1, PreciseConv2d)

    def forward(self, n: int, labels: Tensor | None, choose: Choose) -> Tensor:
        """The maps [n, maps, h, w] of p(x | z)."""
        first = self._begin(self.sizes[0].side)
        x = first.expand(n, -1, -1, -1) + _of_class(self.by_class, labels)
        for number, (size, module) in enumerate(zip(self.sizes, self.blocks, strict=True)):
            block = cast(TopDownBlock, module)
            if size.factor > 1:
                x = self._begin(size.side) + F.interpolate(x, scale_factor=size.factor)
            prior, added = block.prior_of(x)
            z = choose(number, block, x, prior)
            x = block.merged(x + added, z)
        return self.last(x * self.gain + self.bias)

    def _begin(self, side: int) -> Tensor:
        """[1, width, side, side]."""
        learned: Tensor | None = getattr(self, f"begin_{side}", None)
        return self.gain.new_zeros(1, self.gain.shape[1], side, side) if learned is None else learned


class VeryDeepVAE(nn.Module):
    """Encoder and decoder. Labels are int64 [n], or None where the network is not told the class.

    Epsilons are [n, latents], standard normal, block after block of the decoder: z = mu + sigma epsilon, under the posterior or
    the prior. So they are the latents of a sample too, of which z is a function.
    """

    recomputed_blocks = (Bottleneck,)

    def __init__(self, options: VeryDeepOptions, channels: int, classes: int, maps: int) -> None:
        super().__init__()
        self.encoder = BottomUp(options, channels, classes)
        self.decoder = TopDown(options, maps, classes)
        self.shapes = [(options.latent_channels, size.side, size.side) for size in self.decoder.sizes]

    def forward(self, images: Tensor, labels: Tensor | None, epsilons: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of p(x | z) at z drawn from the posterior, and the KL divergence [n, sides] in nats of all latents of each
        side, the smallest first."""
        return self.inferred(self.encoder(images, labels), labels, epsilons, kl_divergence)

    def inferred(
        self, features: Sequence[Tensor], labels: Tensor | None, epsilons: Tensor, divergence: Divergence
    ) -> tuple[Tensor, Tensor]:
        """The same from the encoder's features, with a divergence of choice."""
        sums: dict[int, Tensor] = {}
        each, by_side = self._by_block(epsilons), {each.shape[2]: each for each in features}

        def choose(number: int, block: TopDownBlock, x: Tensor, prior: Moments) -> Tensor:
            side, epsilon = x.shape[2], each[number]
            posterior = block.posterior_of(x, by_side[side])
            with without_autocast(epsilon):
                nats = divergence(posterior, prior, epsilon).flatten(1).sum(1)
                sums[side] = sums[side] + nats if side in sums else nats
                return _drawn(posterior, epsilon)

        maps = self.decoder(len(epsilons), labels, choose)
        return maps, torch.stack(list(sums.values()), dim=1)

    def generated(self, labels: Tensor | None, epsilons: Tensor) -> Tensor:
        """The maps of p(x | z) at z drawn from the prior."""
        each = self._by_block(epsilons)
        return self.decoder(len(epsilons), labels, lambda number, block, x, prior: _drawn(prior, each[number]))

    def epsilons_of(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """Those [n, latents] from which the prior makes the posterior's means: what images are encoded as."""
        features, found = {each.shape[2]: each for each in self.encoder(images, labels)}, []

        def choose(number: int, block: TopDownBlock, x: Tensor, prior: Moments) -> Tensor:
            mean, _ = block.posterior_of(x, features[x.shape[2]])
            mu, log_sigma = prior
            found.append(((mean - mu) * (-log_sigma).exp()).flatten(1))
            return mean

        self.decoder(len(images), labels, choose)
        return torch.cat(found, dim=1)

    def _by_block(self, epsilons: Tensor) -> list[Tensor]:
        parts = epsilons.split([math.prod(shape) for shape in self.shapes], dim=1)
        return [part.unflatten(1, shape) for part, shape in zip(parts, self.shapes, strict=True)]


def kl_divergence(q: Moments, p: Moments, epsilon: Tensor) -> Tensor:
    """KL(q || p), elementwise."""
    (mu, log_sigma), (prior_mu, prior_log_sigma) = q, p
    ratio = log_sigma - prior_log_sigma
    return ((2 * ratio).exp() + ((mu - prior_mu) * (-prior_log_sigma).exp()).square() - 1) / 2 - ratio


def sampled_divergence(q: Moments, p: Moments, epsilon: Tensor) -> Tensor:
    """log q(z) - log p(z), elementwise: the KL divergence on average."""
    (_, log_sigma), (prior_mu, prior_log_sigma) = q, p
    distance = (_drawn(q, epsilon) - prior_mu) * (-prior_log_sigma).exp()
    return (distance.square() - epsilon.square()) / 2 + prior_log_sigma - log_sigma


def _drawn(moments: Moments, epsilon: Tensor) -> Tensor:
    mu, log_sigma = moments
    return mu + log_sigma.exp() * epsilon


def _of_class(vectors: nn.Embedding | None, labels: Tensor | None) -> Tensor | float:
    """[n, width, 1, 1]; 0 where there are no classes."""
    if vectors is None:
        return 0.0
    assert labels is not None, "this network is told the class"
    return vectors(labels)[:, :, None, None]


def _conv(inputs: int, outputs: int, kernel: int, kind: type[nn.Conv2d] = nn.Conv2d) -> nn.Conv2d:
    conv = kind(inputs, outputs, kernel, padding=kernel // 2)
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return conv


def _scale(conv: nn.Conv2d, share: float) -> nn.Conv2d:
    """Its weights times sqrt(share)."""
    with torch.no_grad():
        conv.weight *= math.sqrt(share)
    return conv
