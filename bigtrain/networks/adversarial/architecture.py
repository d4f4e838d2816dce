"""What a GAN must know of its networks: every architecture's options class derives from one of these."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import nn

from bigtrain.options import Options

Size = tuple[int, int]
"""(height, width) of images in pixels."""


class Architecture(Options):
    """Of a generator or a discriminator, for images of any size and number of channels that it can make."""

    class_conditional: ClassVar[bool] = False
    """Whether the network takes labels, int64 [n] in 0 .. classes - 1, after its first argument."""

    @abstractmethod
    def check_size(self, size: Size) -> None:
        """Raises UserError, naming data.image_size, if the network cannot be built for images of this size."""

    @abstractmethod
    def build(self, size: Size, channels: int, classes: int) -> nn.Module:
        """The network, its weights drawn from torch's global generator. Raises UserError for options that do not fit."""

    @property
    def singular_values(self) -> Mapping[str, str] | None:
        """By the name of a report, the layer whose largest singular value it is; None: the network has no spectral norm."""
        return None


class GeneratorArchitecture(Architecture):
    """z [n, latent], and labels if it is conditional -> images [n, channels, height, width] in [-1, 1], at least float32."""

    @abstractmethod
    def latent_size(self, size: Size) -> int:
        """The size of z."""


class DiscriminatorArchitecture(Architecture):
    """Images [n, channels, height, width] in [-1, 1], and labels if it is conditional -> logits [n, ...], at least float32."""

    @property
    def batch_statistics(self) -> bool:
        """Whether a sample's logit depends on the others of its batch."""
        return False
