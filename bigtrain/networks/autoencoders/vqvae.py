"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) and VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446), any depth.

One level is the authors' own network for CIFAR-10 (sonnet, examples/vqvae_example.ipynb): convolutions 4x4 of stride 2, one
3x3, two residual blocks; mirrored by the decoder. Each further level encodes the one below it. A level is quantised
knowing all coarser ones: its vectors are made of its encoder's features and of what the coarser codes decode to. The
decoder of images sees all levels (Razavi et al. 2019, section 3.1 and figure 2a; details that the paper leaves open are as
in the public reproduction rosinality/vq-vae-2-pytorch). Parameters, without the codebook (codebook_size x embedding_dim for
each level), with embedding_dim = 64 and channels = 128:

    VQ-VAE on CIFAR-10, levels {codes: 4}, residual_channels 32:                 662,723
    VQ-VAE-2 on ImageNet 256x256, {bottom: 4, top: 2}, residual_channels 64:  1,716,803
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from pydantic import Field, field_validator
from torch import Tensor, nn

from bigtrain.networks.layers.quantiser import Quantised, Quantiser, QuantiserOptions


class AutoencoderOptions(QuantiserOptions):
    """The architecture; with the codebooks, which are alike on every level."""

    levels: dict[str, int] = Field(default={"codes": 4}, min_length=1)
    """Names of the levels from the finest to the coarsest, each with the factor (2, 4, 8 ...) by which its grid is smaller
    than the one below it, the images' at first."""
    channels: int = Field(default=128, gt=0, multiple_of=2)
    """Width of the features."""
    residual_channels: int = Field(default=32, gt=0)
    """Width inside a residual block. VQ-VAE-2 has 64."""
    residual_layers: int = Field(default=2, ge=0)
    """Residual blocks of each encoder and decoder."""

    @field_validator("levels")
    @classmethod
    def _levels_have_names_and_factors(cls, levels: dict[str, int]) -> dict[str, int]:
        for name, factor in levels.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "pixels":
                raise ValueError(
                    f"{name!r} cannot name a level; take small letters, digits and underscores, a letter first, and not "
                    "`pixels`, which means the image itself"
                )
            if factor < 2 or factor & (factor - 1):
                raise ValueError(f"the factor of {name} is {factor}; take a power of two, 2 at least")
        return levels


def code_grids(options: AutoencoderOptions, image_size: int) -> dict[str, int]:
    """Height and width of each level's grid of codes, the coarsest level first. Raises ValueError if they are not whole."""
    product = math.prod(options.levels.values())
    if image_size % product:
        raise ValueError(
            f"family.autoencoder.levels: the factors multiply to {product}, which does not divide data.image_size, "
            f"{image_size}; change either"
        )
    grids, size = {}, image_size
    for name, factor in options.levels.items():
        size //= factor
        grids[name] = size
    return dict(reversed(grids.items()))


class ResidualBlock(nn.Sequential):
    """x + conv1(ReLU(conv3(ReLU(x))))."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__(nn.ReLU(), nn.Conv2d(channels, inner, 3, padding=1), nn.ReLU(), nn.Conv2d(inner, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same shape."""
        return x + super().forward(x)


def _residual_stack(options: AutoencoderOptions) -> list[nn.Module]:
    blocks = [ResidualBlock(options.channels, options.residual_channels) for _ in range(options.residual_layers)]
    return [*blocks, nn.ReLU()]


def _halvings(factor: int) -> int:
    return factor.bit_length() - 1


class Encoder(nn.Sequential):
    """[n, inputs, h, w] -> [n, channels, h / factor, w / factor]: strided 4x4 convolutions, a 3x3, the residual stack."""

    def __init__(self, inputs: int, factor: int, options: AutoencoderOptions) -> None:
        widths = [inputs, options.channels // 2, *[options.channels] * (_halvings(factor) - 1)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.Conv2d(widths[-1], options.channels, 3, padding=1), *_residual_stack(options))


class Decoder(nn.Sequential):
    """[n, inputs, h, w] -> [n, outputs, factor h, factor w]: the encoder's mirror image, with transposed convolutions."""

    def __init__(self, inputs: int, outputs: int, factor: int, options: AutoencoderOptions) -> None:
        widths = [*[options.channels] * (_halvings(factor) - 1), options.channels // 2, outputs]
        widths = widths if factor > 2 else [options.channels, outputs]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        super().__init__(nn.Conv2d(inputs, options.channels, 3, padding=1), *_residual_stack(options), *layers[:-1])


class Upsampler(nn.Sequential):
    """[n, inputs, h, w] -> [n, outputs, factor h, factor w]: transposed 4x4 convolutions alone."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        widths = [inputs, *[outputs] * _halvings(factor)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        super().__init__(*layers[:-1])


class Level(nn.Module):
    """One level: its encoder, its quantiser, and its two views of the coarser levels, where there are any.

    What is seen of a level, here `coarser`, is its code vectors behind those of all coarser ones, upsampled to its grid:
    [n, seen_size, h, w].
    """

    def __init__(
        self, inputs: int, factor: int, coarser: "Level | None", options: AutoencoderOptions, epoch: int
    ) -> None:
        """`inputs`: channels of what is encoded. `coarser`: the next coarser level, which stays its own. `epoch`: vectors
        of this level in an epoch."""
        super().__init__()
        size = options.embedding_dim
        self.factor, self.seen_size = factor, size
        self.encoder = Encoder(inputs, factor, options)
        if coarser is None:
            self.to_codes = nn.Conv2d(options.channels, size, 1)
        else:
            self.seen_size = 2 * size
            self.condition = Decoder(coarser.seen_size, size, coarser.factor, options)
            self.upsample = Upsampler(coarser.seen_size, size, coarser.factor)
            self.to_codes = nn.Conv2d(options.channels + size, size, 1)
        self.quantiser = Quantiser(options, epoch)

    def latents(self, features: Tensor, coarser: Tensor | None) -> Tensor:
        """What is quantised, [n, embedding_dim, h, w], of the encoder's features and of what is seen of the coarser level."""
        if coarser is None:
            return self.to_codes(features)
        condition = self.condition(coarser)
        return self.to_codes(torch.cat([condition, features.to(condition.dtype)], dim=1))

    def seen(self, vectors: Tensor, coarser: Tensor | None) -> Tensor:
        """What is seen of this level, of its code vectors and of what is seen of the coarser one."""
        if coarser is None:
            return vectors
        return torch.cat([self.upsample(coarser).to(vectors.dtype), vectors], dim=1)


class Reconstruction(NamedTuple):
    """What an autoencoder makes of images."""

    images: Tensor
    """[n, 3, H, W], not confined to [-1, 1]."""
    commitment: Tensor
    """The levels' commitments added up, a scalar."""
    codebook_loss: Tensor
    """The levels' codebook losses added up, a scalar."""


class Autoencoder(nn.Module):
    """Images to codes and back."""

    # Whole stacks: their strided convolutions keep most, a residual block little.
    recomputed_blocks = (Encoder, Decoder, Upsampler)

    pixel_variance: Tensor

    def __init__(self, options: AutoencoderOptions, image_size: int, images: int) -> None:
        """`images`: in an epoch of the training data. Raises ValueError if the factors do not divide the image's size."""
        super().__init__()
        levels: dict[str, Level] = {}
        coarser = None
        for name, grid in code_grids(options, image_size).items():
            finest = len(levels) == len(options.levels) - 1
            inputs = 3 if finest else options.channels
            coarser = levels[name] = Level(inputs, options.levels[name], coarser, options, images * grid**2)
        assert coarser is not None
        self.names = list(levels)
        self.levels = nn.ModuleList(levels.values())
        """The coarsest first, as everywhere."""
        self.decoder = Decoder(coarser.seen_size, 3, coarser.factor, options)
        # Kept with the weights, because it is measured once and a checkpoint must hold it.
        self.register_buffer("pixel_variance", torch.ones(()))

    def forward(self, images: Tensor) -> Reconstruction:
        """images [n, 3, H, W] in [-1, 1]."""
        seen, found = self._quantise(self._features(images))
        commitment = torch.stack([level.commitment for level in found]).sum()
        codebook_loss = torch.stack([level.codebook_loss for level in found]).sum()
        return Reconstruction(self.decoder(seen), commitment, codebook_loss)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Codes int64 [n, h, w] by level of images [n, 3, H, W] in [-1, 1]."""
        _, found = self._quantise(self._features(images))
        return {name: level.codes for name, level in zip(self.names, found, strict=True)}

    def decode(self, codes: Mapping[str, Tensor]) -> Tensor:
        """Images [n, 3, H, W] of the codes of all levels, as `forward` makes them."""
        seen = None
        for name, level in self._named_levels():
            seen = level.seen(level.quantiser.vectors_of(codes[name]), seen)
        return self.decoder(seen)

    def quantisers(self) -> dict[str, Quantiser]:
        """By level."""
        return {name: level.quantiser for name, level in self._named_levels()}

    @torch.no_grad()
    def initialise(self, microbatches: Sequence[Tensor]) -> None:
        """Starts the codebooks as vectors of images [n, 3, H, W], this rank's slices of global microbatches of one size.

        One level after the other, as the finer ones' vectors depend on the coarser ones' codes.
        """
        for depth, quantiser in enumerate(self.quantisers().values()):
            quantiser.initialise((self._latents(images, depth) for images in microbatches), len(microbatches))
        for quantiser in self.quantisers().values():
            quantiser.forget()

    def _named_levels(self) -> list[tuple[str, Level]]:
        return [(name, cast(Level, level)) for name, level in zip(self.names, self.levels, strict=True)]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Each level's features [n, channels, h, w], which know nothing of the coarser levels yet."""
        features = [images]
        for _, level in reversed(self._named_levels()):
            features.append(level.encoder(features[-1]))
        return features[:0:-1]

    def _quantise(self, features: Sequence[Tensor], depth: int | None = None) -> tuple[Tensor | None, list[Quantised]]:
        """What is seen of the `depth` coarsest levels (None: of all), and what their quantisers made."""
        seen, found = None, []
        for (_, level), own in zip(self._named_levels()[:depth], features, strict=False):
            found.append(level.quantiser(level.latents(own, seen)))
            seen = level.seen(found[-1].vectors, seen)
        return seen, found

    def _latents(self, images: Tensor, depth: int) -> Tensor:
        """What level `depth` quantises, counted from the coarsest."""
        features = self._features(images)
        seen, _ = self._quantise(features, depth)
        _, level = self._named_levels()[depth]
        return level.latents(features[depth], seen)
