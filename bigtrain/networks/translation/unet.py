"""The U-Net of pix2pix (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004, section 6.1.1): an image -> an image.

Each down block halves the image by a 4x4 convolution, each up block doubles it by a transposed one and reads the output of
the down block of its size too. Parameter counts of RGB -> RGB with channels = 64:

    depth 8, 256x256: 54,413,955 with batch norm, 54,409,603 with instance norm        depth 7, 128x128: 41,828,995

What makes its samples differ is dropout, in training and in sampling alike. It is a draw that the caller makes, one for each
sample, so that a sample depends neither on its batch nor on the rank that draws it.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.layers.normalisation import statistics_dtype
from bigtrain.networks.translation.pix2pix_layers import Norm, has_bias, initialise, norm_of
from bigtrain.options import Options, Width
from bigtrain.sizes import size_text

SLOPE = 0.2
"""Of LeakyReLU below zero."""
WIDEST = 8
"""The widest blocks, in units of `channels`."""


class UNetOptions(Options):
    """pix2pix's U-Net (Isola et al. 2017)."""

    depth: int = Field(default=8, ge=2, le=16)
    """Down blocks, and up blocks. 8 turn 256x256 into 1x1, and 7 do so with 128x128 (the paper's two)."""
    channels: Width = 64
    """The width after the first down block; each further one doubles it, up to 8 times as wide."""
    norm: Literal["batch", "instance"] = "batch"
    """batch, whose moments at test are those of each image alone, or instance norm without weights."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Share of the activations that are dropped, in sampling too."""
    dropout_blocks: tuple[int, ...] = Field(default=(1, 2, 3), max_length=16)
    """The up blocks that end in dropout; 0 is the innermost. 1, 2, 3 are those of the authors' PyTorch code at 256x256 and 1, 2
    at 128x128; their Torch code and the paper have 0, 1, 2."""


class DownBlock(nn.Module):
    """conv4, norm, LeakyReLU: halves height and width.

    The activation stands at the end and not in front of the next block, because the skip connection reads it: the authors'
    LeakyReLU is in place, so that their skips carry what it made.
    """

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, bias: bool, slope: float) -> None:
        """`slope`: of the LeakyReLU; 0 for a ReLU."""
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)
        self.norm = norm_of(norm, outputs, by_sample=True)
        self.slope = slope

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, 2h, 2w] -> [n, outputs, h, w]."""
        return F.leaky_relu(self.norm(self.conv(x)), self.slope, inplace=True)


class UpBlock(nn.Module):
    """ReLU, transposed conv4, norm, dropout: doubles height and width."""

    def __init__(self, inputs: int, outputs: int, norm: Norm, *, bias: bool, dropout: float) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)
        self.norm = norm_of(norm, outputs, by_sample=True)
        self.dropout = dropout

    def forward(self, x: Tensor, skip: Tensor | None, noise: Tensor | None) -> Tensor:
        """x and `skip` [n, ..., h, w] of `inputs` channels together -> [n, outputs, 2h, 2w].

        `noise`: uniform in [0, 1), in the output's shape; below `dropout` it drops the element, and the others are divided by
        1 - dropout. None: nothing is dropped.
        """
        h = self.norm(self.conv(F.relu(x if skip is None else torch.cat([skip, x], 1))))
        return h if noise is None else h * ((noise >= self.dropout) / (1 - self.dropout)).to(h.dtype)


class UNet(nn.Module):
    """Down blocks, and up blocks of which each but the innermost reads a down block's output too."""

    recomputed_blocks = (DownBlock, UpBlock)

    def __init__(self, options: UNetOptions, size: tuple[int, int], inputs: int, outputs: int) -> None:
        """`size`: (height, width) of the images; `inputs`, `outputs`: their channels. Weights are drawn from torch's global
        generator. Raises UserError for a size that the depth does not fit."""
        super().__init__()
        check_halvings(options, size)
        widths, last, bias = block_widths(options), options.depth - 1, has_bias(options.norm)
        # The outermost blocks read and write pixels, and the innermost features may be one pixel: neither is normalised.
        self.downs = nn.ModuleList(
            DownBlock(
                [inputs, *widths][block],
                widths[block],
                "none" if block in (0, last) else options.norm,
                bias=bias,
                slope=0.0 if block == last else SLOPE,
            )
            for block in range(options.depth)
        )
        self.ups = nn.ModuleList(
            UpBlock(
                widths[last - block] * (1 if block == 0 else 2),
                outputs if block == last else widths[last - block - 1],
                "none" if block == last else options.norm,
                bias=bias or block == last,
                dropout=options.dropout,
            )
            for block in range(options.depth)
        )
        self.noise_shapes = noise_shapes(options, size)
        """Of the noise of a sample, [channels, height, width] by the number of its up block."""
        initialise(self)

    def forward(self, images: Tensor, noise: Sequence[Tensor] = ()) -> Tensor:
        """images [n, inputs, H, W] in [-1, 1] -> [n, outputs, H, W] in [-1, 1], at least float32. `noise`: uniform in [0, 1),
        [n, *shape] for each of `noise_shapes`, in their order."""
        by_block = dict(zip(self.noise_shapes, noise, strict=True))
        h, skips = images.contiguous(memory_format=torch.channels_last), []
        for down in self.downs:
            h = down(h)
            skips.append(h)
        skips.pop()
        for block, up in enumerate(self.ups):
            h = up(h, skips.pop() if block else None, by_block.get(block))
        # bfloat16 has 128 values between 0.5 and 1: too few for the bright pixels of an image.
        return torch.tanh(h.to(statistics_dtype(h.dtype)))


def block_widths(options: UNetOptions) -> list[int]:
    """Channels after each down block."""
    return [options.channels * min(2**block, WIDEST) for block in range(options.depth)]


def noise_shapes(options: UNetOptions, size: tuple[int, int]) -> dict[int, tuple[int, ...]]:
    """[channels, height, width] of what each up block with dropout makes, by the block's number; empty without dropout."""
    widths = block_widths(options)
    return {
        block: (widths[-block - 2], *(side >> (options.depth - 1 - block) for side in size))
        for block in sorted(set(options.dropout_blocks))
        if options.dropout
    }


def check_halvings(options: UNetOptions, size: tuple[int, int]) -> None:
    """Raises UserError, naming the key, for a size that the depth does not fit and for blocks that a depth does not have."""
    halvings = min((side & -side).bit_length() - 1 for side in size)
    if options.depth > halvings:
        remedy = f"choose at most {halvings}" if halvings > 1 else "choose a data.image_size with more factors of 2"
        raise UserError(
            f"family.generator.depth: {options.depth} down blocks halve the images {options.depth} times, and "
            f"{size_text(size)} pixels can be halved {halvings} times; {remedy}"
        )
    # The outermost up block makes pixels.
    missing = [block for block in options.dropout_blocks if not 0 <= block < options.depth - 1]
    if options.dropout and missing:
        raise UserError(
            f"family.generator.dropout_blocks: there is no up block {missing[0]} to drop features of; with depth "
            f"{options.depth} they are 0 .. {options.depth - 2}"
        )
