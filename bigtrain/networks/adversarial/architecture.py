"""What a GAN must know of its networks: every architecture's options class derives from one of these."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, get_args

from torch import Tensor, nn

from bigtrain.options import Options

Size = tuple[int, int]
"""(height, width) of images in pixels."""


class Architecture(Options):
    """Of a generator or a discriminator, for images of any size and number of channels that it can make."""

    @property
    def class_conditional(self) -> bool:
        """Whether the network takes labels, int64 [n] in 0 .. classes - 1, after its first argument."""
        return self.tells_classes

    @property
    def tells_classes(self) -> bool:
        """Whether it does so because `conditioning` says how."""
        return getattr(self, "conditioning", "none") != "none"

    @property
    def ways_of_conditioning(self) -> list[str]:
        """The values of `conditioning` with which the network takes labels; none where that is not an option."""
        field = type(self).model_fields.get("conditioning")
        return [way for way in get_args(field.annotation) if way != "none"] if field is not None else []

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


class Outputs(NamedTuple):
    """What a discriminator says of n images. Its forward returns the logits alone, or this where it is asked for more."""

    logits: Tensor
    """[n], or a map [n, ...]: the larger, the more real. At least float32."""
    features: Tensor | None = None
    """[n, ...]: the layer that the logits are computed from; in an autoencoder, the code. Of any precision."""
    class_logits: Tensor | None = None
    """[n, classes], of an auxiliary classifier. At least float32."""
    reconstruction: Tensor | None = None
    """What an autoencoder makes of the images, in their shape; its logits are minus the mean squared error of each. At least
    float32."""

    @classmethod
    def of(cls, returned: Any) -> "Outputs":
        """Of what a discriminator's forward returned."""
        return returned if isinstance(returned, cls) else cls(returned)

    def split(self, first: int) -> tuple["Outputs", "Outputs"]:
        """Those of the first images, and those of the others."""
        given = {name: part for name, part in self._asdict().items() if part is not None}
        head, tail = ({name: part[own] for name, part in given.items()} for own in (slice(first), slice(first, None)))
        return Outputs(**head), Outputs(**tail)


class Joining(NamedTuple):
    """A layer that joins the images of a batch, and what to set instead, as parts of a message."""

    layer: str
    remedy: str


class DiscriminatorArchitecture(Architecture):
    """Images [n, channels, height, width] in [-1, 1], and labels if it is conditional -> logits [n, ...], at least float32.

    Built with `outputs`, the network returns Outputs with these parts in any case.
    """

    outputs: ClassVar[frozenset[str]] = frozenset()
    """The parts of Outputs, beside the logits, that the network can be built to give."""

    @abstractmethod
    def build(self, size: Size, channels: int, classes: int, outputs: frozenset[str] = frozenset()) -> nn.Module:
        """`outputs`: the parts that are asked of the network, among those that it can give. What nobody asks for costs
        nothing: a classifier that is not asked for has no weights."""

    @property
    def batch_statistics(self) -> bool:
        """Whether a sample's logit depends on the others of its batch, by batch norm."""
        return False

    @property
    def compares_images(self) -> bool:
        """Whether it does, as it is told how alike the images of a batch are."""
        return False

    @property
    def groups_by_number(self) -> bool:
        """Whether the images of a batch are compared in groups, by their numbers."""
        return False

    @property
    def reference_images(self) -> int:
        """How many real images the network keeps, which go through it in front of every batch. Its `reference.samples` are to
        be filled with the first ones of the data, and its `reference.labels` with their labels if it is conditional."""
        return 0

    @property
    def joins_gradients_by(self) -> Joining | None:
        """What makes the gradient at an image depend on other images, so that no penalty can bound that of one alone; None:
        nothing does, or it is batch norm or the minibatch deviation, through which the authors of penalties take gradients."""
        return None
