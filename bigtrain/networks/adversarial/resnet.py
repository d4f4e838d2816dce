"""The residual networks of WGAN-GP and SNGAN.

Generator: Gulrajani et al. 2017 (arXiv:1704.00028, appendix F) and Miyato et al. 2018 (arXiv:1802.05957, appendix B.4); with
classes: conditional batch norm. Discriminator: spectral norm and a projection on the class (Miyato & Koyama 2018,
arXiv:1802.05637), or neither and an auxiliary classifier. github.com/igul222/improved_wgan_training (gan_cifar_resnet.py) and
github.com/pfnet-research/sngan_projection are the authors' code. Parameter counts, of RGB, generator and discriminator:

    WGAN-GP 32x32, channels 128, 128; norm: none, pooling: mean              1,204,483    1,053,825
        with 10 classes: conditioning: batch_norm; class_logits              1,218,307    1,055,115
    SNGAN 32x32, channels 256, 128; output_bias: false                       4,276,739    1,053,824
        with 10 classes: conditioning: batch_norm; projection                4,304,387    1,055,104
    SNGAN 128x128, channels 64, 64; 1000 classes                            41,996,931   30,041,857
"""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Annotated, ClassVar, Literal, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import (
    DiscriminatorArchitecture,
    GeneratorArchitecture,
    Outputs,
    Size,
)
from bigtrain.networks.layers.conditioning import project
from bigtrain.networks.layers.normalisation import (
    ClassBatchNorm,
    SpectralNorm,
    SyncedBatchNorm,
    statistics_dtype,
    without_autocast,
)
from bigtrain.networks.layers.resampling import convolve_and_pool, upsample_and_convolve
from bigtrain.options import Depth, Epsilon, Width
from bigtrain.sizes import size_text

# By the number of times that the smallest map, of a side of 4 to 7 or odd, doubles, in units of `channels`: for 32x32 those of
# both papers, for 64x64 to 256x256 SNGAN's, and for 512x512 BigGAN's.
GENERATOR_MULTIPLIERS: Mapping[int, tuple[int, ...]] = {
    # into the first block, and out of each
    1: (1, 1),
    2: (1, 1, 1),
    3: (1, 1, 1, 1),
    4: (16, 8, 4, 2, 1),
    5: (16, 16, 8, 4, 2, 1),
    6: (16, 16, 8, 8, 4, 2, 1),
    7: (16, 16, 8, 8, 4, 2, 1, 1),
}
DISCRIMINATOR_MULTIPLIERS: Mapping[int, tuple[tuple[int, ...], int]] = {
    # out of each block, and how many of them, the first ones, halve the map
    1: ((1, 1, 1, 1), 1),
    2: ((1, 1, 1, 1), 2),
    3: ((1, 1, 1, 1), 2),
    4: ((1, 2, 4, 8, 16), 4),
    5: ((1, 2, 4, 8, 16, 16), 5),
    6: ((1, 2, 4, 8, 8, 16, 16), 6),
    7: ((1, 1, 2, 4, 8, 8, 16, 16), 7),
}
L = TypeVar("L", bound=nn.Module)
Multipliers = Annotated[tuple[Width, ...], Field(min_length=1, max_length=20)]


class GeneratorOptions(GeneratorArchitecture):
    """The residual generator of WGAN-GP and SNGAN (Gulrajani et al. 2017, Miyato et al. 2018)."""

    kind: Literal["resnet"] = "resnet"
    channels: Width = 256
    """Features of the last block."""
    multipliers: Multipliers | None = None
    """Features into the first block and out of each block, in units of channels; null: those of the papers for the size. A
    block doubles height and width."""
    latent: Width = 128
    """Size of z."""
    conditioning: Literal["none", "batch_norm"] = "none"
    """batch_norm: the blocks' batch norms have a gain and a bias for each class; none: the generator makes no difference
    between classes."""
    batch_norm_eps: Epsilon = 2e-5
    """Added to the variance in batch norm; 2e-5 in SNGAN's code, 1e-5 in WGAN-GP's."""

    def check_size(self, size: Size) -> None:
        _check_size("generator", size, len(self._multipliers(size)) - 1)

    def latent_size(self, size: Size) -> int:
        return self.latent

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, self._multipliers(size), size, channels, classes)

    def _multipliers(self, size: Size) -> Sequence[int]:
        return self.multipliers or GENERATOR_MULTIPLIERS[_doublings("generator", size)]


class DiscriminatorOptions(DiscriminatorArchitecture):
    """The residual discriminator of WGAN-GP and SNGAN (Gulrajani et al. 2017, Miyato et al. 2018)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "class_logits"})

    kind: Literal["resnet"] = "resnet"
    channels: Width = 128
    """Features of the first block."""
    multipliers: Multipliers | None = None
    """Features out of each block, in units of channels; null: those of the papers for the size."""
    halvings: Depth | None = None
    """How many blocks, the first ones, halve height and width; goes with multipliers. null: as the papers."""
    inner_width: Literal["input", "output"] = "input"
    """Features between the two convolutions of a block: as many as it is given, as in the papers, or as it puts out, as in
    StudioGAN. (Those of the first block are always the latter.)"""
    norm: Literal["spectral", "none"] = "spectral"
    """Spectral norm of all weights, or none."""
    conditioning: Literal["none", "projection"] = "none"
    """projection: the logit of a class is that of the image plus the projection of the features on a vector of the class."""
    pooling: Literal["sum", "mean"] = "sum"
    """Of features over positions; a sum in SNGAN, a mean in WGAN-GP."""
    output_bias: bool = True
    """Whether the logit has a bias; SNGAN's for CIFAR-10 has none."""
    spectral_norm_eps: Epsilon = 1e-12
    """Smallest norm that the power iteration divides by."""

    @model_validator(mode="after")
    def _halvings_go_with_blocks(self) -> "DiscriminatorOptions":
        if (self.halvings is None) != (self.multipliers is None):
            raise ValueError("halvings goes with multipliers, and only with it")
        if self.multipliers is not None and self.halvings is not None and self.halvings > len(self.multipliers):
            raise ValueError(f"halvings: there are only {len(self.multipliers)} blocks in multipliers")
        return self

    @property
    def singular_values(self) -> Mapping[str, str] | None:
        return {"first_block": "blocks.0.conv1"} if self.norm == "spectral" else None

    def check_size(self, size: Size) -> None:
        _check_size("discriminator", size, self._blocks(size)[1])

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, *self._blocks(size), channels, classes, outputs)

    def _blocks(self, size: Size) -> tuple[Sequence[int], int]:
        """Multipliers and halvings."""
        if self.multipliers is not None and self.halvings is not None:
            return self.multipliers, self.halvings
        return DISCRIMINATOR_MULTIPLIERS[_doublings("discriminator", size)]


def _doublings(component: str, size: Size) -> int:
    """How often the smallest map that these networks use for images of a size doubles. Raises UserError, naming the key, if
    there is none."""
    height, width = size
    count = 0
    while min(height, width) >= 8 and not (height % 2 or width % 2):
        height, width, count = height // 2, width // 2, count + 1
    if not 1 <= count <= max(GENERATOR_MULTIPLIERS):
        raise UserError(
            "data.image_size: the published residual networks make images with sides that are even, from 8 to 1022, not "
            f"{size_text(size)}; set family.{component}.multipliers"
        )
    return count


def _check_size(component: str, size: Size, doublings: int) -> None:
    part = 1 << doublings
    if any(side % part for side in size):
        raise UserError(
            f"data.image_size: a residual network that changes the size {doublings} times takes sides that are multiples of "
            f"{part}, not {size_text(size)}; or set family.{component}.multipliers"
        )


class GeneratorBlock(nn.Module):
    """BN-ReLU-up-conv3-BN-ReLU-conv3, plus up-conv1 as the shortcut."""

    def __init__(self, inputs: int, outputs: int, classes: int | None, eps: float) -> None:
        """`classes`: for which the norms have gains and biases each; None: one for all."""
        super().__init__()
        self.norm1 = _norm(inputs, classes, eps)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.norm2 = _norm(outputs, classes, eps)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """x [n, inputs, h, w], and labels [n] of conditional norms -> [n, outputs, 2h, 2w]."""
        h = upsample_and_convolve(F.relu(self.norm1(x, *labels), inplace=True), self.conv1)
        h = self.conv2(F.relu(self.norm2(h, *labels), inplace=True))
        # A 1x1 convolution and nearest upsampling commute; convolving first is a quarter of the work.
        return h + F.interpolate(self.shortcut(x), scale_factor=2, mode="nearest")


def _norm(features: int, classes: int | None, eps: float) -> nn.Module:
    return SyncedBatchNorm(features, eps=eps) if classes is None else ClassBatchNorm(features, classes, eps=eps)


class Generator(nn.Module):
    """z -> a small map -> an image, by blocks that double its height and width."""

    recomputed_blocks = (GeneratorBlock,)

    def __init__(
        self, options: GeneratorOptions, multipliers: Sequence[int], size: Size, channels: int, classes: int
    ) -> None:
        super().__init__()
        widths = [options.channels * multiplier for multiplier in multipliers]
        self.smallest = tuple(side >> (len(widths) - 1) for side in size)
        """Height and width of the first map."""
        told = classes if options.class_conditional else None
        self.linear = nn.Linear(options.latent, widths[0] * math.prod(self.smallest))
        self.blocks = nn.ModuleList(
            GeneratorBlock(into, out, told, options.batch_norm_eps) for into, out in pairwise(widths)
        )
        self.norm = SyncedBatchNorm(widths[-1], eps=options.batch_norm_eps)
        self.conv = nn.Conv2d(widths[-1], channels, 3, padding=1)
        _initialise(self)

    def forward(self, z: Tensor, *labels: Tensor) -> Tensor:
        """z [n, latent], and labels int64 [n] of a conditional one -> images [n, channels, height, width] in [-1, 1], at least
        float32."""
        h = self.linear(z).unflatten(1, (-1, *self.smallest)).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            h = block(h, *labels)
        h = self.conv(F.relu(self.norm(h), inplace=True))
        return torch.tanh(h.to(statistics_dtype(h.dtype)))


class DiscriminatorBlock(nn.Module):
    """ReLU-conv3-ReLU-conv3-pool, plus conv1-pool as the shortcut, which is the identity where the shape does not change. The
    first block reads pixels and has no ReLU in front."""

    def __init__(self, options: DiscriminatorOptions, inputs: int, outputs: int, *, first: bool, halves: bool) -> None:
        super().__init__()
        self.first, self.halves = first, halves
        inner = outputs if first or options.inner_width == "output" else inputs
        self.conv1 = _normed(options, nn.Conv2d(inputs, inner, 3, padding=1))
        self.conv2 = _normed(options, nn.Conv2d(inner, outputs, 3, padding=1))
        same = inputs == outputs and not halves and not first
        self.shortcut = nn.Identity() if same else _normed(options, nn.Conv2d(inputs, outputs, 1))

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, h, w] -> [n, outputs, h / 2, w / 2], or h, w."""
        h = self.conv1(x if self.first else F.relu(x))  # not in place: the shortcut reads x itself
        h = F.relu(h, inplace=True)
        if not self.halves:
            return self.conv2(h) + self.shortcut(x)
        # A 1x1 convolution and average pooling commute; pooling first leaves it a quarter of the work.
        return convolve_and_pool(h, self.conv2) + self.shortcut(F.avg_pool2d(x, 2))


class Discriminator(nn.Module):
    """An image -> a logit, of features that are pooled over positions; an auxiliary classifier is linear in them too."""

    recomputed_blocks = (DiscriminatorBlock,)

    def __init__(
        self,
        options: DiscriminatorOptions,
        multipliers: Sequence[int],
        halvings: int,
        channels: int,
        classes: int,
        outputs: frozenset[str],
    ) -> None:
        super().__init__()
        self.outputs, self.pooling = outputs, options.pooling
        widths = [channels, *(options.channels * multiplier for multiplier in multipliers)]
        self.blocks = nn.ModuleList(
            DiscriminatorBlock(options, into, out, first=index == 0, halves=index < halvings)
            for index, (into, out) in enumerate(pairwise(widths))
        )
        self.linear = _normed(options, nn.Linear(widths[-1], 1, bias=options.output_bias))
        told = options.conditioning == "projection"
        self.embedding = _normed(options, nn.Embedding(classes, widths[-1])) if told else None
        asked = "class_logits" in outputs
        self.classifier = _normed(options, nn.Linear(widths[-1], classes)) if asked else None
        _initialise(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | Outputs:
        """images [n, channels, height, width] in [-1, 1], and labels int64 [n] of a conditional one -> logits [n], at least
        float32; or Outputs."""
        h = images
        for block in self.blocks:
            h = block(h)
        h = F.relu(h)
        pool = torch.sum if self.pooling == "sum" else torch.mean
        features = pool(h, dim=(2, 3), dtype=statistics_dtype(h.dtype))
        with without_autocast(features):
            logits = self.linear(features).squeeze(1)
            if self.embedding is not None and labels is not None:
                logits = logits + project(self.embedding, labels, features)
            if not self.outputs:
                return logits
            of_classes = self.classifier(features) if self.classifier is not None else None
        return Outputs(logits, features if "features" in self.outputs else None, of_classes)


def _normed(options: DiscriminatorOptions, layer: L) -> L | SpectralNorm:
    return SpectralNorm(layer, eps=options.spectral_norm_eps) if options.norm == "spectral" else layer


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    """As both authors' code: uniform as Glorot & Bengio 2010, sqrt(2) times as wide for the 3x3 convolutions of blocks, and no
    biases."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear | SpectralNorm) or name == "embedding":
            within_block = name.endswith((".conv1", ".conv2"))
            nn.init.xavier_uniform_(module.weight, gain=math.sqrt(2) if within_block else 1.0)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
