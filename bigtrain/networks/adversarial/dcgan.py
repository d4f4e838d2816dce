"""DCGAN (Radford, Metz & Chintala 2016, arXiv:1511.06434): strided convolutions and batch norm.

As in pytorch/examples/dcgan: kernels of 4x4, stride 2 except between 4x4 and 1x1, no biases, leaky ReLU with slope 0.2 in the
discriminator, weights from N(0, 0.02), gains of batch norm from N(1, 0.02). Parameter counts at 64x64 in RGB, with
channels = 64 and latent = 100:

    generator 3,576,704   discriminator 2,765,568

Twice the size is one more layer in each, and twice the width at 4x4.

Both can be told the classes. Reference batches and minibatch features are those of Salimans et al. 2016 (arXiv:1606.03498).
"""

from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.networks.adversarial.architecture import (
    DiscriminatorArchitecture,
    GeneratorArchitecture,
    Joining,
    Outputs,
    Size,
)
from bigtrain.networks.layers.conditioning import one_hot, project, with_classes
from bigtrain.networks.layers.minibatch import Minibatch
from bigtrain.networks.layers.normalisation import (
    ClassBatchNorm,
    SpectralNorm,
    SyncedBatchNorm,
    statistics_dtype,
    without_autocast,
)
from bigtrain.networks.layers.reference_norm import ReferenceBatch, ReferenceBatchNorm
from bigtrain.options import Width
from bigtrain.sizes import size_text

ReferenceSamples = Annotated[int, Field(ge=2, le=2**9)]


class GeneratorOptions(GeneratorArchitecture):
    """DCGAN's generator (Radford et al. 2016)."""

    kind: Literal["dcgan"] = "dcgan"
    channels: Width = 64
    """Features of the last layer before the image; each layer before it has twice as many."""
    latent: Width = 100
    """Size of z."""
    norm: Literal["batch", "virtual", "reference"] = "batch"
    """Batch norm; by a reference batch of z's that stay the same, with (virtual) or without the sample itself."""
    reference_batch: ReferenceSamples = 64
    """Of the reference batch, if there is one; each costs as much as a sample, in every pass."""
    conditioning: Literal["none", "concatenation", "batch_norm"] = "none"
    """concatenation: each layer is given the class as well, a channel for each one; batch_norm: batch norms have a gain and a
    bias for each class; none: the generator makes no difference between classes."""

    @model_validator(mode="after")
    def _classes_have_a_batch_norm(self) -> "GeneratorOptions":
        if self.conditioning == "batch_norm" and self.norm != "batch":
            raise ValueError("conditioning: batch_norm goes with norm: batch; take concatenation")
        return self

    def check_size(self, size: Size) -> None:
        doublings(size)

    def latent_size(self, size: Size) -> int:
        return self.latent

    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        return Generator(self, size, channels, classes)


class DiscriminatorOptions(DiscriminatorArchitecture):
    """DCGAN's discriminator (Radford et al. 2016)."""

    outputs: ClassVar[frozenset[str]] = frozenset({"features", "class_logits"})

    kind: Literal["dcgan"] = "dcgan"
    channels: Width = 64
    """Features of the first layer; each layer after it has twice as many."""
    norm: Literal["batch", "virtual", "reference", "spectral", "none"] = "batch"
    """Batch norm in all layers but the first and the last, or norm by a reference batch of real images there, with (virtual) or
    without the image itself; or instead of it biases in all layers, with spectral norm of all weights or without."""
    reference_batch: ReferenceSamples = 64
    """Of the reference batch, if there is one; each costs as much as an image, in every pass."""
    conditioning: Literal["none", "concatenation", "projection"] = "none"
    """concatenation: each layer is given the class as well, a channel for each one; projection: the logit of a class is that of
    the image plus the projection of the features on a vector of the class."""
    minibatch: Minibatch | None = None
    """What the last layer is told of how alike the images of the batch are; null: nothing."""

    @property
    def batch_statistics(self) -> bool:
        return self.norm == "batch"

    @property
    def compares_images(self) -> bool:
        return self.minibatch is not None

    @property
    def groups_by_number(self) -> bool:
        return (
            self.minibatch is not None
            and self.minibatch.kind == "deviation"
            and self.minibatch.compared_images is not None
        )

    @property
    def reference_images(self) -> int:
        return self.reference_batch if self.norm in ("virtual", "reference") else 0

    @property
    def joins_gradients_by(self) -> Joining | None:
        if self.reference_images:
            return Joining("a reference batch", "discriminator.norm: none or spectral")
        if self.minibatch is not None and self.minibatch.kind == "discrimination":
            return Joining("minibatch discrimination", "discriminator.minibatch: null or {kind: deviation}")
        return None

    @property
    def singular_values(self) -> Mapping[str, str] | None:
        return {} if self.norm == "spectral" else None

    def check_size(self, size: Size) -> None:
        doublings(size)

    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        return Discriminator(self, size, channels, classes, outputs)


def doublings(size: Size) -> int:
    """How often 4x4 doubles to give `size`. Raises UserError, naming the key, if it never does."""
    height, width = size
    if height != width or height < 8 or height & (height - 1):
        raise UserError(
            f"data.image_size: DCGAN makes squares whose side is a power of two from 8 on, not {size_text(size)}"
        )
    return height.bit_length() - 3


class UpLayer(nn.Module):
    """Transposed convolution, norm, ReLU."""

    def __init__(self, inputs: int, norm: nn.Module, outputs: int, *, stride: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(inputs, outputs, 4, stride, padding, bias=False)
        self.norm = norm

    def forward(self, x: Tensor, *labels: Tensor) -> Tensor:
        """x [n, inputs, h, w], and labels [n] if the norm is conditional."""
        return F.relu(self.norm(self.conv(x), *labels), inplace=True)


class Generator(nn.Module):
    """z -> an image, from 1x1 to 4x4 and then by doublings."""

    recomputed_blocks = (UpLayer,)

    def __init__(self, options: GeneratorOptions, size: Size, channels: int, classes: int) -> None:
        super().__init__()
        widths = [options.channels << power for power in reversed(range(doublings(size)))]
        self.concatenated = classes if options.conditioning == "concatenation" else 0
        """The classes that every layer is given beside its input; 0: none is."""
        self.conditional_norms = options.conditioning == "batch_norm"
        norm, more = partial(_generator_norm, options, classes), self.concatenated
        first = UpLayer(options.latent + more, norm(widths[0]), widths[0], stride=1, padding=0)
        others = (UpLayer(into + more, norm(out), out, stride=2, padding=1) for into, out in pairwise(widths))
        self.layers = nn.Sequential(first, *others)
        self.conv = nn.ConvTranspose2d(widths[-1] + more, channels, 4, 2, 1, bias=False)
        self.reference = None
        if options.norm != "batch":
            z = torch.randn(options.reference_batch, options.latent)
            self.reference = ReferenceBatch(z, classes if options.class_conditional else 0)
        _initialise(self)

    def forward(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """z [n, latent], and labels int64 [n] of a conditional one -> images [n, channels, height, width] in [-1, 1], at least
        float32."""
        if self.reference is not None:
            z, labels = self.reference.in_front_of(z, labels)
        y = one_hot(labels, self.concatenated) if labels is not None and self.concatenated else None
        of_norms = (labels,) if self.conditional_norms else ()
        h = z[:, :, None, None].contiguous(memory_format=torch.channels_last)
        for layer in self.layers:
            h = layer(with_classes(h, y), *of_norms)
        if self.reference is not None:
            h, y = self.reference.without(h), None if y is None else self.reference.without(y)
        h = self.conv(with_classes(h, y))
        return torch.tanh(h.to(statistics_dtype(h.dtype)))


def _generator_norm(options: GeneratorOptions, classes: int, features: int) -> nn.Module:
    if options.norm != "batch":
        return ReferenceBatchNorm(features, options.reference_batch, virtual=options.norm == "virtual")
    return ClassBatchNorm(features, classes) if options.conditioning == "batch_norm" else SyncedBatchNorm(features)


class DownLayer(nn.Module):
    """Convolution with stride 2, norm if asked for, leaky ReLU."""

    def __init__(self, conv: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.conv(x)), 0.2, inplace=True)


class Discriminator(nn.Module):
    """An image -> a logit, by halvings to 4x4 and then to 1x1. The auxiliary classifier is one more last layer."""

    recomputed_blocks = (DownLayer,)

    def __init__(
        self, options: DiscriminatorOptions, size: Size, channels: int, classes: int, outputs: frozenset[str]
    ) -> None:
        super().__init__()
        self.outputs = outputs
        widths = [options.channels << power for power in range(doublings(size))]
        self.concatenated = classes if options.conditioning == "concatenation" else 0
        """The classes that every layer is given beside its input; 0: none is."""
        self.layers = nn.Sequential()
        for index, (inputs, features) in enumerate(pairwise([channels, *widths])):
            norm = _discriminator_norm(options, features) if index > 0 else nn.Identity()
            conv = _convolution(options, inputs + self.concatenated, features, stride=2, padding=1)
            self.layers.append(DownLayer(conv, norm))
        self.minibatch = options.minibatch.build(widths[-1] * 4 * 4) if options.minibatch is not None else None
        more = self.concatenated + (self.minibatch.appended if self.minibatch is not None else 0)
        last = partial(_convolution, options, widths[-1] + more, stride=1, padding=0)
        self.conv = last(1)
        self.classifier = last(classes) if "class_logits" in outputs else None
        self.embedding = None
        if options.conditioning == "projection":
            embedding = nn.Embedding(classes, widths[-1])
            self.embedding = SpectralNorm(embedding) if options.norm == "spectral" else embedding
        self.reference = None
        if options.reference_images:
            noise = torch.rand(options.reference_images, channels, *size) * 2 - 1
            self.reference = ReferenceBatch(noise, classes if options.class_conditional else 0)
        _initialise(self)

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | Outputs:
        """images [n, channels, height, width] in [-1, 1], and labels int64 [n] of a conditional one -> logits [n], at least
        float32; or Outputs."""
        features, y = self._features(images, labels)
        last = with_classes(features if self.minibatch is None else self.minibatch(features), y)
        logits = self.conv(last).flatten()
        logits = logits.to(statistics_dtype(logits.dtype))
        if self.embedding is not None and labels is not None:
            with without_autocast(logits):
                logits = logits + project(self.embedding, labels, features.sum((2, 3), dtype=logits.dtype))
        if not self.outputs:
            return logits
        of_classes = self.classifier(last).flatten(1).to(logits.dtype) if self.classifier is not None else None
        return Outputs(logits, features if "features" in self.outputs else None, of_classes)

    def _features(self, images: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Of the images, [n, features, 4, 4]; and the classes that the last layer is given beside them, if it is."""
        if self.reference is not None:
            images, labels = self.reference.in_front_of(images, labels)
        y = one_hot(labels, self.concatenated) if labels is not None and self.concatenated else None
        for layer in self.layers:
            images = layer(with_classes(images, y))
        if self.reference is None:
            return images, y
        return self.reference.without(images), None if y is None else self.reference.without(y)


def _discriminator_norm(options: DiscriminatorOptions, features: int) -> nn.Module:
    if options.reference_images:
        return ReferenceBatchNorm(features, options.reference_images, virtual=options.norm == "virtual")
    return SyncedBatchNorm(features) if options.norm == "batch" else nn.Identity()


def _convolution(options: DiscriminatorOptions, inputs: int, outputs: int, *, stride: int, padding: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 4, stride, padding, bias=options.norm in ("spectral", "none"))
    return SpectralNorm(conv) if options.norm == "spectral" else conv


@torch.no_grad()
def _initialise(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | SpectralNorm):
            nn.init.normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, SyncedBatchNorm | ReferenceBatchNorm) and module.weight is not None:
            nn.init.normal_(module.weight, mean=1.0, std=0.02)
    if isinstance(embedding := getattr(network, "embedding", None), nn.Embedding):
        nn.init.normal_(embedding.weight, std=0.02)
