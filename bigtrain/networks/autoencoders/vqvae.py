"""VQ-VAE (van den Oord et al. 2017, arXiv:1711.00937) and VQ-VAE-2 (Razavi et al. 2019, arXiv:1906.00446).

With one level, this is the authors' own network for CIFAR-10 (sonnet, examples/vqvae_example.ipynb): 4x4 convolutions of
stride 2, one 3x3, two residual blocks, and a decoder that mirrors them. There may be any number of levels. Each further level
encodes the features of the one before it. A level is quantised given all coarser ones: its vectors are computed from its
encoder's features and from the decoded coarser codes. The image decoder reads all levels (Razavi et al. 2019, section 3.1 and
figure 2a; details that the paper leaves open are as in the public reproduction rosinality/vq-vae-2-pytorch). Parameter
counts, without the codebook (codebook_size x embedding_dim for each level), with embedding_dim = 64 and channels = 128:

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
from bigtrain.options import MOST_LAYERS, Width
from bigtrain.sizes import size_text


class AutoencoderOptions(QuantiserOptions):
    """The architecture, and the codebooks, whose options are the same on every level."""

    levels: dict[str, Width] = Field(default={"codes": 4}, min_length=1, max_length=16)
    """Names of the levels from the finest to the coarsest, each with the factor (2, 4, 8 ...) by which its grid is smaller
    than that of the finer level, or for the first one than the image."""
    channels: int = Field(default=128, gt=0, le=2**16, multiple_of=2)
    """Width of the features."""
    residual_channels: Width = 32
    """Width inside a residual block. VQ-VAE-2 uses 64."""
    residual_layers: int = Field(default=2, ge=0, le=MOST_LAYERS)
    """Residual blocks of each encoder and decoder."""

    @field_validator("levels")
    @classmethod
    def _levels_have_names_and_factors(cls, levels: dict[str, int]) -> dict[str, int]:
        for name, factor in levels.items():
            if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == "pixels":
                raise ValueError(
                    f"{name!r} cannot name a level; take lower-case letters, digits and underscores, a letter first, and not "
                    "`pixels`, which means the image itself"
                )
            if factor < 2 or factor & (factor - 1):
                raise ValueError(f"the factor of {name} is {factor}; take a power of two, at least 2")
        return levels


def code_grids(options: AutoencoderOptions, size: tuple[int, int]) -> dict[str, tuple[int, int]]:
    """(height, width) of each level's grid of codes, the coarsest level first, for images of `size` (height, width). Raises
    ValueError if they are not integers."""
    product = math.prod(options.levels.values())
    if any(side % product for side in size):
        raise ValueError(
            f"family.autoencoder.levels: the factors multiply to {product}, which does not divide data.image_size, "
            f"{size_text(size)}; change one of them"
        )
    grids = {}
    for name, factor in options.levels.items():
        size = grids[name] = (size[0] // factor, size[1] // factor)
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
    """[n, inputs, h, w] -> [n, outputs, factor h, factor w]: only transposed 4x4 convolutions."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        widths = [inputs, *[outputs] * _halvings(factor)]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()]
        super().__init__(*layers[:-1])


class Level(nn.Module):
    """One level: its encoder, its quantiser, and two networks that read the coarser levels, where there are any.

    The context of a level is what finer levels and the image decoder read of it: its code vectors, concatenated to those of
    all coarser levels upsampled to its grid, [n, context_size, h, w]. `coarser` is the context of the next coarser level.
    """

    def __init__(
        self, inputs: int, factor: int, coarser: "Level | None", options: AutoencoderOptions, epoch: int
    ) -> None:
        """`inputs`: channels of what is encoded. `coarser`: the next coarser level, which does not become a submodule.
        `epoch`: vectors of this level in an epoch."""
        super().__init__()
        size = options.embedding_dim
        self.factor, self.context_size = factor, size
        self.encoder = Encoder(inputs, factor, options)
        if coarser is None:
            self.to_codes = nn.Conv2d(options.channels, size, 1)
        else:
            self.context_size = 2 * size
            self.condition = Decoder(coarser.context_size, size, coarser.factor, options)
            self.upsample = Upsampler(coarser.context_size, size, coarser.factor)
            self.to_codes = nn.Conv2d(options.channels + size, size, 1)
        self.quantiser = Quantiser(options, epoch)

    def latents(self, features: Tensor, coarser: Tensor | None) -> Tensor:
        """The vectors to quantise, [n, embedding_dim, h, w], from the encoder's features and the coarser level's context."""
        if coarser is None:
            return self.to_codes(features)
        condition = self.condition(coarser)
        return self.to_codes(torch.cat([condition, features.to(condition.dtype)], dim=1))

    def context(self, vectors: Tensor, coarser: Tensor | None) -> Tensor:
        """This level's context, from its code vectors and the coarser level's context."""
        if coarser is None:
            return vectors
        return torch.cat([self.upsample(coarser).to(vectors.dtype), vectors], dim=1)


class Reconstruction(NamedTuple):
    """What an autoencoder returns for images."""

    images: Tensor
    """[n, C, H, W], not clamped to [-1, 1]."""
    commitment: Tensor
    """Sum of the levels' commitment losses, a scalar."""
    codebook_loss: Tensor
    """Sum of the levels' codebook losses, a scalar."""


class Autoencoder(nn.Module):
    """Images to codes and back."""

    # Whole stacks, because their strided convolutions keep most activations and a residual block few.
    recomputed_blocks = (Encoder, Decoder, Upsampler)

    pixel_variance: Tensor

    def __init__(self, options: AutoencoderOptions, size: tuple[int, int], channels: int, images: int) -> None:
        """`size`: (height, width) of the images; `channels`: theirs; `images`: how many an epoch has. Raises ValueError if the
        factors do not divide the images' size."""
        super().__init__()
        levels: dict[str, Level] = {}
        coarser = None
        for name, grid in code_grids(options, size).items():
            finest = len(levels) == len(options.levels) - 1
            inputs = channels if finest else options.channels
            epoch = images * math.prod(grid)
            coarser = levels[name] = Level(inputs, options.levels[name], coarser, options, epoch)
        assert coarser is not None
        self.names = list(levels)
        self.levels = nn.ModuleList(levels.values())
        """The coarsest first, as in `names`."""
        self.decoder = Decoder(coarser.context_size, channels, coarser.factor, options)
        # A buffer, because it is measured once and a checkpoint must hold it.
        self.register_buffer("pixel_variance", torch.ones(()))

    def forward(self, images: Tensor) -> Reconstruction:
        """images [n, C, H, W] in [-1, 1]."""
        context, quantised = self._quantise(self._features(images))
        commitment = torch.stack([level.commitment for level in quantised]).sum()
        codebook_loss = torch.stack([level.codebook_loss for level in quantised]).sum()
        return Reconstruction(self.decoder(context), commitment, codebook_loss)

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Codes int64 [n, h, w] by level of images [n, C, H, W] in [-1, 1]."""
        _, quantised = self._quantise(self._features(images))
        return {name: level.codes for name, level in zip(self.names, quantised, strict=True)}

    def decode(self, codes: Mapping[str, Tensor]) -> Tensor:
        """Images [n, C, H, W] of the codes of all levels, as `forward` makes them."""
        context = None
        for name, level in self._named_levels():
            context = level.context(level.quantiser.vectors_of(codes[name]), context)
        return self.decoder(context)

    def quantisers(self) -> dict[str, Quantiser]:
        """The quantisers by the name of their level."""
        return {name: level.quantiser for name, level in self._named_levels()}

    @torch.no_grad()
    def initialise(self, microbatches: Sequence[Tensor]) -> None:
        """Starts the codebooks as encoder outputs of images [n, C, H, W], this rank's slices of equal global microbatches.

        One level after the other, because the finer levels' vectors depend on the coarser levels' codes.
        """
        for depth, quantiser in enumerate(self.quantisers().values()):
            quantiser.initialise((self._latents(images, depth) for images in microbatches), len(microbatches))
        for quantiser in self.quantisers().values():
            quantiser.forget()

    def _named_levels(self) -> list[tuple[str, Level]]:
        return [(name, cast(Level, level)) for name, level in zip(self.names, self.levels, strict=True)]

    def _features(self, images: Tensor) -> list[Tensor]:
        """Each level's encoder features [n, channels, h, w], the coarsest first; they do not depend on coarser levels."""
        features = [images]
        for _, level in reversed(self._named_levels()):
            features.append(level.encoder(features[-1]))
        return features[:0:-1]

    def _quantise(self, features: Sequence[Tensor], depth: int | None = None) -> tuple[Tensor | None, list[Quantised]]:
        """The context of the `depth` coarsest levels (None: of all), and the output of their quantisers."""
        context, quantised = None, []
        for (_, level), own in zip(self._named_levels()[:depth], features, strict=False):
            quantised.append(level.quantiser(level.latents(own, context)))
            context = level.context(quantised[-1].vectors, context)
        return context, quantised

    def _latents(self, images: Tensor, depth: int) -> Tensor:
        """The vectors that level `depth`, counted from the coarsest, quantises."""
        features = self._features(images)
        context, _ = self._quantise(features, depth)
        _, level = self._named_levels()[depth]
        return level.latents(features[depth], context)
