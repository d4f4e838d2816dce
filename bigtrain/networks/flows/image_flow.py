"""What all flows of images have in common."""

import math
from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor, nn

from bigtrain.networks.flows.bijection import FlowBlock
from bigtrain.networks.layers.dequantisation import DequantisationOptions, NoiseCoupling, pixel_numbers, pixel_values
from bigtrain.networks.layers.normalisation import without_autocast
from bigtrain.options import Options

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""


class FlowOutput(NamedTuple):
    """What a flow makes of images."""

    latents: Tensor
    """[n, D], as many as an image has values; standard normal where the flow is that of the data."""
    log_det: Tensor
    """log |det d latents / dy|, [n]."""
    class_logits: Tensor | None = None
    """[n, classes] where the network also guesses the class."""


class ImageFlow(nn.Module):
    """A bijection between images y in [0, 1) [n, C, h, w] and latents [n, D], given the class where there are classes (int64
    [n], or None)."""

    @abstractmethod
    def forward(self, y: Tensor, labels: Tensor | None) -> FlowOutput: ...

    @abstractmethod
    def inverse(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """y, which lies outside of [0, 1) where no image has these latents."""


class ImageFlowOptions(Options):
    """The architecture of a flow of images."""

    kind: str

    @property
    def begins_with_data(self) -> bool:
        """Whether it has actnorms, which the first images set."""
        return True

    @property
    def penalty(self) -> float:
        """What the squares of the weights that `penalises` names count in the loss, in nats of an image."""
        return 0.0

    def penalises(self, name: str, parameter: nn.Parameter) -> bool:
        return False

    @abstractmethod
    def build(self, image: Shape, classes: int) -> ImageFlow:
        """`classes`: their number, or 0 where the flow is not told the class."""

    @abstractmethod
    def check_size(self, size: tuple[int, int]) -> None:
        """Raises ValueError, naming the key, if there is no such network for images of `size` (height, width)."""


class FlowBound(NamedTuple):
    """What a dequantised flow says of images."""

    nats: Tensor
    """[n]: of which the mean over noise bounds -log P(image)."""
    class_logits: Tensor | None


class DequantisedFlow(nn.Module):
    """A flow, and q(u | v), whose noise makes real numbers of the pixels' 2^bits values (networks/layers/dequantisation.py)."""

    recomputed_blocks = (FlowBlock, NoiseCoupling)

    def __init__(
        self, options: ImageFlowOptions, noise: DequantisationOptions, bits: int, image: Shape, classes: int
    ) -> None:
        super().__init__()
        self.bits = bits
        self.flow = options.build(image, classes)
        self.dequantiser = noise.build(image[0])

    def forward(self, images: Tensor, uniforms: Tensor, labels: Tensor | None) -> FlowBound:
        """Of images [n, C, h, w] in [-1, 1], with noise from uniforms in [0, 1), float64 of their shape."""
        with without_autocast(images):
            values = pixel_values(images, self.bits)
        noise, log_q = self.dequantiser(images, uniforms)
        encoded = self.flow((values + noise) / 2**self.bits, labels)
        dimensions = encoded.latents.shape[1]
        log_normal = -(encoded.latents.square().sum(1) + dimensions * math.log(2 * math.pi)) / 2
        nats = log_q - log_normal - encoded.log_det + dimensions * self.bits * math.log(2)
        return FlowBound(nats, encoded.class_logits)

    def encode(self, images: Tensor, labels: Tensor | None) -> Tensor:
        """The latents [n, D] of the middles of the pixels' bins."""
        return self.flow((pixel_values(images, self.bits) + 0.5) / 2**self.bits, labels).latents

    def decode(self, latents: Tensor, labels: Tensor | None) -> Tensor:
        """Images [n, C, h, w] in [-1, 1]."""
        return pixel_numbers(self.flow.inverse(latents, labels), self.bits)
