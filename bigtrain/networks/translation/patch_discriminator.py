"""The patch discriminator of pix2pix (Isola, Zhu, Zhou & Efros 2017, arXiv:1611.07004, sections 3.2.2 and 6.1.2).

A map of logits, each of which sees one patch of the image. Parameter counts for two RGB images (6 channels), batch norm and
channels = 64, by the side of the patch in pixels:

    layers 0, 1x1: 9,024    layers 1, 16x16: 139,585    layers 3, 70x70: 2,768,705    layers 5, 286x286: 11,159,361
"""

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


class PatchOptions(Options):
    """pix2pix's discriminator of patches (Isola et al. 2017)."""

    layers: int = Field(default=3, ge=0, le=16)
    """Blocks that halve the image: 3 for patches of 70x70 pixels, 1 for 16x16, 2 for 34x34, 5 for 286x286. 0: each logit sees
    one pixel."""
    channels: Width = 64
    """The width after the first block; each further one doubles it, up to 8 times as wide."""
    norm: Norm = "batch"
    """batch, instance (without weights) or none. The first block and the last convolution have none in any case."""


class PatchBlock(nn.Module):
    """conv, norm, LeakyReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: Norm, *, bias: bool) -> None:
        super().__init__()
        padding = (kernel - 1) // 2
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)
        self.norm = norm_of(norm, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h', w']: half of both with stride 2; with stride 1 one less for a kernel of 4."""
        return F.leaky_relu(self.norm(self.conv(x)), SLOPE, inplace=True)


class PatchDiscriminator(nn.Module):
    """`layers` blocks of stride 2, one of stride 1, and a convolution to the logits, all 4x4; or three 1x1 convolutions."""

    recomputed_blocks = (PatchBlock,)

    def __init__(self, options: PatchOptions, size: tuple[int, int], inputs: int) -> None:
        """`size`: (height, width) of the images; `inputs`: channels of all images that it sees together. Weights are drawn from
        torch's global generator. Raises UserError for a size of which nothing is left."""
        super().__init__()
        check_layers(options, size)
        bias, kernel = has_bias(options.norm), 4 if options.layers else 1
        strides = [2] * options.layers + [1] if options.layers else [1, 1]
        widths = [options.channels * min(2**block, WIDEST) for block in range(len(strides))]
        self.blocks = nn.ModuleList(
            PatchBlock(
                inputs if block == 0 else widths[block - 1],
                widths[block],
                kernel,
                stride,
                "none" if block == 0 else options.norm,
                bias=bias or block == 0,
            )
            for block, stride in enumerate(strides)
        )
        # The authors' discriminator of pixels has no bias here unless its norm is instance norm.
        self.conv = nn.Conv2d(widths[-1], 1, kernel, padding=(kernel - 1) // 2, bias=bias or options.layers > 0)
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """[n, inputs, H, W] in [-1, 1], images one behind the other in the channels -> logits [n, h, w], at least float32."""
        h = images.contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            h = block(h)
        logits = self.conv(h).squeeze(1)
        return logits.to(statistics_dtype(logits.dtype))


def check_layers(options: PatchOptions, size: tuple[int, int]) -> None:
    """Raises UserError, naming the key, if the blocks leave nothing of images of `size`."""
    if not options.layers:
        return
    # A block of stride 2 halves a side, rounding down; the two convolutions behind them take one pixel each.
    most = (min(size) // 3).bit_length() - 1
    if options.layers > most:
        raise UserError(
            f"family.discriminator.layers: {options.layers} leave no patch of images of {size_text(size)} pixels; choose at "
            f"most {max(most, 0)} (0: each logit sees one pixel)"
        )
