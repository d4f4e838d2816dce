"""Small discriminators of 16x16 images of two channels and three classes: one for each layer that a discriminator may have."""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bigtrain.networks.adversarial import autoencoder, mlp, resnet
from bigtrain.networks.adversarial.architecture import DiscriminatorArchitecture, Outputs
from bigtrain.networks.adversarial.biggan import Discriminator, DiscriminatorOptions, SelfAttention
from bigtrain.networks.layers.minibatch import MinibatchDeviation, MinibatchDiscrimination
from bigtrain.networks.layers.normalisation import (
    ClassBatchNorm,
    ConditionalBatchNorm,
    SpectralNorm,
    SyncedBatchNorm,
    statistics_dtype,
    without_autocast,
)
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.networks.layers.reference_norm import ReferenceBatch, ReferenceBatchNorm
from bigtrain.networks.layers.statistics import set_recording

CHANNELS, SIZE, CLASSES = 2, 16, 3


class Critic(nn.Module):
    """A convolution, the layers, a sum."""

    def __init__(self, features: int, *layers: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, features, 3, padding=1)
        self.layers = nn.Sequential(*layers)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(self.layers(torch.tanh(self.stem(images)))).flatten(1).sum(1)


class Conditional(nn.Module):
    """Conditional batch norm, then a projection on an embedding of the class."""

    def __init__(self, norm: nn.Module, classes: nn.Module) -> None:
        """`classes`: labels -> what the norm takes."""
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 6, 3, padding=1)
        self.classes = classes
        self.norm = norm
        self.projection = SpectralNorm(nn.Embedding(CLASSES, 6))

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.stem(images), self.classes(labels))).sum((2, 3))
        return (self.projection(labels) * h).sum(1)


class Referring(nn.Module):
    """Virtual batch norm by four images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 6, 3, padding=1)
        self.norm = ReferenceBatchNorm(6, 4, virtual=True)
        self.reference = ReferenceBatch(torch.rand(4, CHANNELS, SIZE, SIZE), 0)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        everyone, _ = self.reference.in_front_of(images, None)
        return self.reference.without(torch.tanh(self.norm(torch.tanh(self.stem(everyone))))).flatten(1).sum(1)


class Attention(nn.Module):
    """With queries, keys and values of one size, for which there are fused kernels on every device."""

    def forward(self, x: Tensor) -> Tensor:
        sequence = x.flatten(2).transpose(1, 2).unsqueeze(1).contiguous()
        return F.scaled_dot_product_attention(sequence, sequence, sequence).squeeze(1)


class Patches(nn.Sequential):
    """A map of logits for each image."""

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return super().forward(images)


class Telling(nn.Module):
    """All that a discriminator can be asked for; its logits are no energies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, 6, 4, stride=4)
        self.norm = SyncedBatchNorm(6)
        self.logits = nn.Linear(6, 1)
        self.classes = nn.Linear(6, CLASSES)

    def forward(self, images: Tensor, labels: Tensor) -> Outputs:
        features = torch.tanh(self.norm(self.stem(images)))
        pooled = features.mean((2, 3), dtype=statistics_dtype(features.dtype))
        with without_autocast(pooled):
            return Outputs(self.logits(pooled).squeeze(1), features, self.classes(pooled), features)


class Unlabelled(nn.Module):
    """A discriminator that is not told the classes."""

    def __init__(self, options: DiscriminatorArchitecture) -> None:
        super().__init__()
        self.network = options.build((SIZE, SIZE), CHANNELS, CLASSES)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network(images)


class Labelled(nn.Module):
    """A discriminator that is told the classes."""

    def __init__(self, options: DiscriminatorArchitecture) -> None:
        super().__init__()
        self.network = options.build((SIZE, SIZE), CHANNELS, CLASSES)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        return self.network(images, labels)


class Block(nn.Sequential):
    """What activation checkpointing computes again."""


def recomputed() -> nn.Module:
    block = Block(SyncedBatchNorm(8), nn.Tanh(), SpectralNorm(nn.Conv2d(8, 16, 3, padding=1)))
    critic = Critic(8, block, SelfAttention(16, eps=1e-6), Attention())
    critic.recomputed_blocks = (Block, SelfAttention, Attention)
    recompute_blocks(critic)
    return critic


def biggan() -> nn.Module:
    return Discriminator(DiscriminatorOptions(channels=4, attention_resolution=8), SIZE, CLASSES, CHANNELS)


CRITICS: Mapping[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: Critic(6, SyncedBatchNorm(6)),
    "batch norm without weights": lambda: Critic(6, SyncedBatchNorm(6, affine=False), nn.LeakyReLU(0.2)),
    "convolution": lambda: Critic(6, SpectralNorm(nn.Conv2d(6, 4, 4, stride=2, padding=1))),
    "transposed convolution": lambda: Critic(6, SpectralNorm(nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1))),
    "linear": lambda: Critic(6, nn.Flatten(), SpectralNorm(nn.Linear(6 * SIZE * SIZE, 5))),
    "attention": lambda: Critic(16, SelfAttention(16, eps=1e-6)),
    "fused attention": lambda: Critic(6, nn.AvgPool2d(2), Attention()),
    "pooling": lambda: Critic(6, nn.MaxPool2d(2), nn.AvgPool2d(2)),
    "embedding": lambda: Conditional(ConditionalBatchNorm(6, 4), nn.Embedding(CLASSES, 4)),
    "patches": lambda: Patches(nn.Conv2d(CHANNELS, 4, 4, 2, 1), SyncedBatchNorm(4), nn.Tanh(), nn.Conv2d(4, 1, 3)),
    "recomputed blocks": recomputed,
    "biggan": biggan,
    "outputs": Telling,
    "autoencoder": lambda: Unlabelled(autoencoder.DiscriminatorOptions(channels=4, halvings=2)),
    "resnet": lambda: Labelled(resnet.DiscriminatorOptions(channels=2, conditioning="projection")),
    "mlp": lambda: Labelled(
        mlp.DiscriminatorOptions(hidden_features=(6, 5), maxout_pieces=2, conditioning="concatenation")
    ),
    "norms by class": lambda: Conditional(ClassBatchNorm(6, CLASSES), nn.Identity()),
    "minibatch deviation": lambda: Critic(6, MinibatchDeviation(group=2), nn.Conv2d(7, 4, 4, stride=2), nn.Tanh()),
    "minibatch discrimination": lambda: Critic(
        6, MinibatchDiscrimination(6 * SIZE * SIZE, 3, 2), nn.Conv2d(9, 4, 4, stride=2), nn.Tanh()
    ),
    "reference norm": Referring,
}


def build(name: str) -> nn.Module:
    """In training and recording. Power iterations have converged, so that their directions are constant to first order."""
    torch.manual_seed(0)
    critic = CRITICS[name]()
    for module in critic.modules():
        if isinstance(module, SelfAttention):
            nn.init.constant_(module.gamma, 0.5)
        if isinstance(module, SpectralNorm):
            weight = module.weight.detach()
            matrix = (weight.transpose(0, 1) if module.transposed else weight).flatten(1)
            module.u.copy_(torch.linalg.svd(matrix, full_matrices=False).U[:, 0])
    set_recording(critic, True)
    return critic
