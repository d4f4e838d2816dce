"""BigGAN (Brock, Donahue & Simonyan 2019, arXiv:1809.11096): class-conditional generator and projection discriminator.

Residual blocks as in appendix B of the paper, spectral norm on every weight but the shared class embedding, conditional
batch norm in the generator, projection (Miyato & Koyama 2018) in the discriminator, one self-attention block (Zhang et
al. 2019) in each. Parameter counts, with channels = 96 and latent_per_block = 20:

    ImageNet 128x128, 1000 classes, attention at 64:   generator 70,433,988   discriminator 87,982,370
    CIFAR-10 32x32, 10 classes, attention at 16:       generator  9,416,196   discriminator  2,415,170
"""

from collections.abc import Mapping
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import DiscriminatorArchitecture, GeneratorArchitecture, Size
from bigtrain.networks.layers.normalisation import (
    ConditionalBatchNorm,
    SpectralNorm,
    SyncedBatchNorm,
    statistics_dtype,
    without_autocast,
)
from bigtrain.networks.layers.resampling import convolve_and_pool, upsample_and_convolve
from bigtrain.options import Epsilon, Width
from bigtrain.sizes import size_text

# By resolution, in units of `channels`. 32 is StudioGAN's network for CIFAR-10; 64 and up are those of the paper and of
# BigGAN-PyTorch; 16 is ours, for demonstrations.
GENERATOR_WIDTHS: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {
    # resolution: (into each block, out of each block); a block doubles the resolution, from 4x4 on
    16: ((4, 4), (4, 2)),
    32: ((4, 4, 4), (4, 4, 4)),
    64: ((16, 16, 8, 4), (16, 8, 4, 2)),
    128: ((16, 16, 8, 4, 2), (16, 8, 4, 2, 1)),
    256: ((16, 16, 8, 8, 4, 2), (16, 8, 8, 4, 2, 1)),
    512: ((16, 16, 8, 8, 4, 2, 1), (16, 8, 8, 4, 2, 1, 1)),
}
STUDIOGAN_GENERATOR_WIDTHS = GENERATOR_WIDTHS | {64: ((16, 8, 4, 2), (8, 4, 2, 1))}
"""The same but for 64: github.com/POSTECH-CVLab/PyTorch-StudioGAN, models/big_resnet.py."""
DISCRIMINATOR_WIDTHS: dict[int, tuple[tuple[int, ...], int]] = {
    # resolution: (out of each block, how many of them, the first ones, halve the resolution)
    16: ((2, 4, 4), 2),
    32: ((2, 2, 2, 2), 2),
    64: ((1, 2, 4, 8, 16), 4),
    128: ((1, 2, 4, 8, 16, 16), 5),
    256: ((1, 2, 4, 8, 8, 16, 16), 6),
    512: ((1, 1, 2, 4, 8, 8, 16, 16), 7),
}
_RESOLUTIONS = ", ".join(map(str, GENERATOR_WIDTHS))
"""For messages."""


class GeneratorOptions(GeneratorArchitecture):
    """BigGAN's residual generator of classes (Brock et al. 2019)."""

    kind: Literal["biggan"] = "biggan"
    variant: Literal["brock", "studiogan"] = "brock"
    """studiogan: the blocks for 64x64 are half as wide there; every other resolution is the same."""
    channels: Width = 96
    """The base width, which the table for the resolution multiplies."""
    latent_per_block: Width = 20
    """Size of each chunk of z: one for the first layer and one for every block."""
    class_embedding: Width = 128
    """Size of the class embedding that the blocks share."""
    attention_resolution: Width | None = 64
    """Self-attention follows the block whose output has this height and width; null: none."""
    batch_norm_eps: Epsilon = 1e-5
    """Added to the variance in batch norm. StudioGAN's recipes use 1e-4."""
    batch_norm_momentum: float = Field(default=0.1, ge=1e-6, le=1)
    """Share of the new moments in each update of the running statistics."""
    spectral_norm_eps: Epsilon = 1e-6
    """Smallest norm that the power iteration divides by."""
    init: Literal["orthogonal", "n02"] = "orthogonal"
    """Initial weights: orthogonal matrices (Saxe et al. 2014), or normal with standard deviation 0.02."""

    @property
    def class_conditional(self) -> bool:
        return True

    @property
    def singular_values(self) -> Mapping[str, str]:
        return {"linear": "linear", "first_block": "blocks.0.conv1"}

    def check_size(self, size: Size) -> None:
        _check_resolution(resolution_of(size))

    def latent_size(self, size: Size) -> int:
        return latent_size(self, resolution_of(size))

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, resolution_of(size), classes, channels)


class DiscriminatorOptions(DiscriminatorArchitecture):
    """BigGAN's residual discriminator, which projects on the class (Brock et al. 2019)."""

    kind: Literal["biggan"] = "biggan"
    variant: Literal["brock", "studiogan"] = "brock"
    """studiogan: the ReLU in front of a block is in place there, so that the shortcut reads rectified features too."""
    channels: Width = 96
    """The base width, which the table for the resolution multiplies."""
    attention_resolution: Width | None = 64
    """Self-attention follows the first block whose output has this height and width; null: none."""
    spectral_norm_eps: Epsilon = 1e-6
    """Smallest norm that the power iteration divides by."""
    init: Literal["orthogonal", "n02"] = "orthogonal"
    """Initial weights: orthogonal matrices (Saxe et al. 2014), or normal with standard deviation 0.02."""

    @property
    def class_conditional(self) -> bool:
        return True

    @property
    def singular_values(self) -> Mapping[str, str]:
        return {"first_block": "blocks.0.conv1"}

    def check_size(self, size: Size) -> None:
        _check_resolution(resolution_of(size))

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, resolution_of(size), classes, channels)


def _convolution(inputs: int, outputs: int, kernel: int, *, bias: bool = True, eps: float) -> SpectralNorm:
    """A convolution with an odd kernel that keeps height and width."""
    return SpectralNorm(nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=bias), eps=eps)


def resolution_of(size: Size) -> int:
    """Side of the images of `size` (height, width). Raises UserError, naming the key, for images that are not squares."""
    height, width = size
    if height != width:
        raise UserError(f"data.image_size: BigGAN makes squares, not {size_text(size)}; choose one of {_RESOLUTIONS}")
    return height


def latent_size(options: GeneratorOptions, resolution: int) -> int:
    """Size of z: a chunk for the first layer and one for every block. Raises UserError if no table fits."""
    _check_resolution(resolution)
    return options.latent_per_block * (1 + len(GENERATOR_WIDTHS[resolution][0]))


class SelfAttention(nn.Module):
    """x + gamma o(attention(theta(x), phi(x), g(x))), all four 1x1 (Zhang et al. 2019, eqs. 1-3); gamma starts at 0.

    BigGAN's variant: keys and values are max-pooled 2x2, logits are not scaled, and nothing has a bias.
    """

    def __init__(self, channels: int, *, eps: float) -> None:
        super().__init__()
        conv = partial(_convolution, kernel=1, bias=False, eps=eps)
        self.theta = conv(channels, channels // 8)
        self.phi = conv(channels, channels // 8)
        self.g = conv(channels, channels // 2)
        self.o = conv(channels // 2, channels)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """[n, channels, h, w] -> the same shape; h and w are even."""
        height, width = x.shape[2:]
        query = self._as_sequence(self.theta(x))
        key = self._as_sequence(F.max_pool2d(self.phi(x), 2))
        value = self._as_sequence(F.max_pool2d(self.g(x), 2))
        attended = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.gamma * self.o(attended.squeeze(1).transpose(1, 2).unflatten(2, (height, width)))

    @staticmethod
    def _as_sequence(x: Tensor) -> Tensor:
        """[n, c, h, w] -> [n, 1 head, h w, c]."""
        return x.flatten(2).transpose(1, 2).unsqueeze(1)


class GeneratorBlock(nn.Module):
    """cBN-ReLU-up-conv3-cBN-ReLU-conv3, plus up-conv1 as the shortcut (Brock et al. 2019, figure 15b)."""

    def __init__(self, inputs: int, outputs: int, condition: int, options: GeneratorOptions) -> None:
        super().__init__()
        conv = partial(_convolution, eps=options.spectral_norm_eps)
        norm = partial(
            ConditionalBatchNorm,
            condition=condition,
            eps=options.batch_norm_eps,
            momentum=options.batch_norm_momentum,
            spectral_norm_eps=options.spectral_norm_eps,
        )
        self.norm1 = norm(inputs)
        self.conv1 = conv(inputs, outputs, 3)
        self.norm2 = norm(outputs)
        self.conv2 = conv(outputs, outputs, 3)
        self.shortcut = conv(inputs, outputs, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """x [n, inputs, h, w], y [n, condition] -> [n, outputs, 2h, 2w]."""
        # ReLU in place: the norm's backward does not need its output.
        h = upsample_and_convolve(F.relu(self.norm1(x, y), inplace=True), self.conv1)
        h = self.conv2(F.relu(self.norm2(h, y), inplace=True))
        # A 1x1 convolution and nearest upsampling commute; convolving first is a quarter of the work.
        return h + F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")


class Generator(nn.Module):
    """z and a class -> an image. z is cut into chunks: the first feeds the first layer, the others one block each."""

    recomputed_blocks = (GeneratorBlock, SelfAttention)

    def __init__(self, options: GeneratorOptions, resolution: int, classes: int, channels: int = 3) -> None:
        """`resolution`: side of the images, which are squares; `channels`: theirs. Weights are drawn from torch's global
        generator. Raises UserError for sizes that no table or block fits."""
        super().__init__()
        _check_resolution(resolution)
        table = STUDIOGAN_GENERATOR_WIDTHS if options.variant == "studiogan" else GENERATOR_WIDTHS
        inputs, outputs = ([options.channels * width for width in row] for row in table[resolution])
        self.latent_per_block = options.latent_per_block
        self.latent = latent_size(options, resolution)
        """Size of z."""
        condition = options.class_embedding + options.latent_per_block
        eps = options.spectral_norm_eps
        self.shared = nn.Embedding(classes, options.class_embedding)
        self.linear = SpectralNorm(nn.Linear(options.latent_per_block, inputs[0] * 4 * 4), eps=eps)
        self.blocks = nn.ModuleList(
            GeneratorBlock(into, out, condition, options) for into, out in zip(inputs, outputs, strict=True)
        )
        self.norm = SyncedBatchNorm(outputs[-1], eps=options.batch_norm_eps, momentum=options.batch_norm_momentum)
        self.conv = _convolution(outputs[-1], channels, 3, eps=eps)
        self.attention, self.attention_after = _attention(
            "generator", options, outputs, [8 << block for block in range(len(outputs))]
        )
        _initialise(self, options.init)

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        """z [n, latent], labels int64 [n] in 0 .. classes - 1 -> images [n, channels, R, R] in [-1, 1], at least float32."""
        shared = self.shared(labels)
        first, *chunks = z.split(self.latent_per_block, dim=1)
        # Convolutions are fastest in channels_last; later feature maps inherit the layout of the first.
        h = self.linear(first).unflatten(1, (-1, 4, 4)).contiguous(memory_format=torch.channels_last)
        for index, (block, chunk) in enumerate(zip(self.blocks, chunks, strict=True)):
            h = block(h, torch.cat([shared, chunk], dim=1))
            if self.attention is not None and index == self.attention_after:
                h = self.attention(h)
        h = self.conv(F.relu(self.norm(h), inplace=True))
        # bfloat16 has 128 values between 0.5 and 1: too few for the bright pixels of an image.
        return torch.tanh(h.to(statistics_dtype(h.dtype)))


class DiscriminatorBlock(nn.Module):
    """ReLU-conv3-ReLU-conv3-pool, plus conv1-pool as the shortcut (Brock et al. 2019, figure 15c).

    The first block reads pixels and has no ReLU in front. The shortcut is the identity where the shape does not change. It
    reads what the block reads, or with `rectified` what the ReLU in front puts out.
    """

    def __init__(
        self, inputs: int, outputs: int, *, first: bool, downsample: bool, rectified: bool, eps: float
    ) -> None:
        super().__init__()
        self.first = first
        self.rectified = rectified and not first
        self.downsample = downsample
        self.conv1 = _convolution(inputs, outputs, 3, eps=eps)
        self.conv2 = _convolution(outputs, outputs, 3, eps=eps)
        identity = inputs == outputs and not downsample
        self.shortcut = nn.Identity() if identity else _convolution(inputs, outputs, 1, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h / 2, w / 2], or h, w without downsampling."""
        activated = x if self.first else F.relu(x)  # not in place: the shortcut may read x itself
        h = F.relu(self.conv1(activated), inplace=True)
        if self.rectified:
            x = activated
        if not self.downsample:
            return self.conv2(h) + self.shortcut(x)
        # A 1x1 convolution and average pooling commute; pooling first leaves it a quarter of the work.
        return convolve_and_pool(h, self.conv2) + self.shortcut(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """An image and a class -> a logit: linear(h) + <embedding(class), h> (Miyato & Koyama 2018, figure 1d)."""

    recomputed_blocks = (DiscriminatorBlock, SelfAttention)

    def __init__(self, options: DiscriminatorOptions, resolution: int, classes: int, channels: int = 3) -> None:
        """`resolution`: side of the images, which are squares; `channels`: theirs. Weights are drawn from torch's global
        generator. Raises UserError for sizes that no table or block fits."""
        super().__init__()
        _check_resolution(resolution)
        widths, halvings = DISCRIMINATOR_WIDTHS[resolution]
        outputs = [options.channels * width for width in widths]
        eps = options.spectral_norm_eps
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(
                into,
                out,
                first=index == 0,
                downsample=index < halvings,
                rectified=options.variant == "studiogan",
                eps=eps,
            )
            for index, (into, out) in enumerate(zip([channels, *outputs[:-1]], outputs, strict=True))
        )
        self.linear = SpectralNorm(nn.Linear(outputs[-1], 1), eps=eps)
        self.embedding = SpectralNorm(nn.Embedding(classes, outputs[-1]), eps=eps)
        self.attention, self.attention_after = _attention(
            "discriminator", options, outputs, [resolution >> min(block + 1, halvings) for block in range(len(outputs))]
        )
        _initialise(self, options.init)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """images [n, channels, R, R] in [-1, 1], labels int64 [n] in 0 .. classes - 1 -> logits [n], at least float32."""
        h = images
        for index, block in enumerate(self.blocks):
            h = block(h)
            if self.attention is not None and index == self.attention_after:
                h = self.attention(h)
        h = F.relu(h).sum(dim=(2, 3), dtype=statistics_dtype(h.dtype))
        with without_autocast(h):
            return self.linear(h).squeeze(1) + (self.embedding(labels) * h).sum(1)


def _check_resolution(resolution: int) -> None:
    if resolution not in GENERATOR_WIDTHS:
        raise UserError(f"data.image_size: BigGAN has no network for {resolution}; choose one of {_RESOLUTIONS}")


def _attention(
    component: str, options: GeneratorOptions | DiscriminatorOptions, outputs: list[int], resolutions: list[int]
) -> tuple[SelfAttention | None, int]:
    """The attention block and the index of the block that it follows, from each block's output width and resolution."""
    resolution, key = options.attention_resolution, f"family.{component}"
    if resolution is None:
        return None, -1
    if resolution not in resolutions:
        valid = ", ".join(str(size) for size in sorted(set(resolutions)))
        raise UserError(f"{key}.attention_resolution: no feature map has size {resolution}; choose {valid} or null")
    after = resolutions.index(resolution)
    if outputs[after] % 8:
        raise UserError(
            f"{key}.channels: attention divides its {outputs[after]} features by 8; choose a multiple of 8, "
            f"or set {key}.attention_resolution to null"
        )
    return SelfAttention(outputs[after], eps=options.spectral_norm_eps), after


@torch.no_grad()
def _initialise(network: nn.Module, init: Literal["orthogonal", "n02"]) -> None:
    """Draws the weights of all convolutions, linear maps and embeddings, and zeroes the biases."""
    for module in network.modules():
        if isinstance(module, SpectralNorm | nn.Embedding):
            if init == "orthogonal":
                nn.init.orthogonal_(module.weight)
            else:
                nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, SpectralNorm) and module.bias is not None:
            nn.init.zeros_(module.bias)
