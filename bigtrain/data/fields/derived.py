"""Fields that are made from an image of the same sample: half its size, its edges, grey, or with a part masked.

A derived field is a function of the image's pixels alone, and does the same to a mirrored image: so it follows the image's
crop and flip. It is made in the worker.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from PIL import Image
from pydantic import Field as Limits

from bigtrain.data.decode import as_image, with_channels
from bigtrain.data.fields.pictures import ImageField
from bigtrain.errors import UserError
from bigtrain.options import Options

MASKED = 128
"""The grey that covers what is masked: the middle of the range."""


class _Derivation(Options):
    """How a field is made from an image."""

    of: str = "image"
    """The image that it is made from."""

    @abstractmethod
    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        """(height, width, channels) of what is made. Raises ValueError for an image of which it cannot be made."""

    @abstractmethod
    def make(self, image: np.ndarray) -> np.ndarray:
        """From uint8 [H, W, C] of one image."""


class Downscale(_Derivation):
    """The image at a whole fraction of its size."""

    kind: Literal["downscale"]
    factor: int = Limits(ge=2, le=2**16)
    """By how much each side shrinks."""
    filter: Literal["bicubic", "box"] = "bicubic"
    """Pillow's antialiased bicubic, as super-resolution is published with, or the mean of factor x factor pixels."""

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        if height % self.factor or width % self.factor:
            raise ValueError(f"factor: {self.factor} does not divide {height} x {width}")
        return height // self.factor, width // self.factor, channels

    def make(self, image: np.ndarray) -> np.ndarray:
        size = image.shape[1] // self.factor, image.shape[0] // self.factor
        small = as_image(image).resize(size, Image.Resampling[self.filter.upper()])
        return np.asarray(small).reshape(size[1], size[0], image.shape[2])


class Edges(_Derivation):
    """Sobel's gradient of the luma, |dx| + |dy| in whole numbers, up to 255; one channel, white on black."""

    kind: Literal["edges"]
    threshold: int | None = Limits(default=None, ge=1, le=255)
    """Gradients of this and above become white, all others black; null: the gradients themselves."""

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        return height, width, 1

    def make(self, image: np.ndarray) -> np.ndarray:
        padded = np.pad(_luma(image), 1, mode="edge").astype(np.int32)
        columns = padded[:, 2:] - padded[:, :-2]
        rows = padded[2:] - padded[:-2]
        across = columns[:-2] + 2 * columns[1:-1] + columns[2:]
        down = rows[:, :-2] + 2 * rows[:, 1:-1] + rows[:, 2:]
        edges = np.minimum((abs(across) + abs(down)) // 4, 255)
        if self.threshold is not None:
            edges = np.where(edges >= self.threshold, 255, 0)
        return edges.astype(np.uint8)[:, :, None]


class Grey(_Derivation):
    """The luma (ITU-R 601), one channel."""

    kind: Literal["grey"]

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        return height, width, 1

    def make(self, image: np.ndarray) -> np.ndarray:
        return _luma(image)[:, :, None]


class Mask(_Derivation):
    """The image with its centre covered by grey, as in inpainting (Pathak et al. 2016)."""

    kind: Literal["mask"]
    share: float = Limits(default=0.5, gt=0, lt=1)
    """Of each side that is covered."""

    def shape(self, height: int, width: int, channels: int) -> tuple[int, int, int]:
        return height, width, channels

    def make(self, image: np.ndarray) -> np.ndarray:
        masked = image.copy()
        # The same number of pixels is left on both sides, so that a mirrored image is covered alike.
        top, left = (round(side * (1 - self.share) / 2) for side in image.shape[:2])
        masked[top : image.shape[0] - top, left : image.shape[1] - left] = MASKED
        return masked


Derivation = Annotated[Downscale | Edges | Grey | Mask, Limits(discriminator="kind")]


def _luma(image: np.ndarray) -> np.ndarray:
    return image[:, :, 0] if image.shape[2] == 1 else np.asarray(with_channels(as_image(image), 1))


@dataclass(frozen=True, eq=False)
class DerivedField(ImageField):
    """An image that `derivation` makes from the image `made_of`."""

    made_of: ImageField | None = field(default=None, kw_only=True)
    derivation: Any = field(default=None, kw_only=True)

    @property
    def source(self) -> ImageField:
        assert self.made_of is not None, self.name
        return self.made_of

    @property
    def is_cut(self) -> bool:
        return self.source.is_cut

    def derive(self, decoded: np.ndarray) -> np.ndarray:
        made = np.empty((len(decoded), *self.shape), dtype=np.uint8)
        for row, image in enumerate(decoded):
            made[row] = self.derivation.make(image)
        return made


def derived(name: str, derivation: Any, fields: Mapping[str, Any]) -> DerivedField:
    """The field `name` that a recipe derives from one of `fields`. Raises UserError."""
    key = f"data.derive.{name}"
    if name in fields:
        raise UserError(
            f"{key}: the data have a field {name} already; choose another name, or rename theirs by data.rename"
        )
    source = fields.get(derivation.of)
    if not isinstance(source, ImageField):
        images = ", ".join(other for other, field in fields.items() if isinstance(field, ImageField)) or "none"
        raise UserError(f"{key}.of: {derivation.of} is no image of the data; images are: {images}")
    try:
        height, width, channels = derivation.shape(*source.sized, source.channels)
    except ValueError as error:
        raise UserError(f"{key}.{error}") from None
    return DerivedField(name, source.members, (height, width), channels, made_of=source, derivation=derivation)
