"""Pictured fields: images, and maps of classes or of objects. Geometry applies to all of them alike.

Fields of a sample may differ in size by a declared whole factor (super-resolution): the sizes of a recipe are those of the
largest, and a field of `factor` f has the f-th part of each side. Crops are drawn on the coarsest grid, so that they show the
same place in every field.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from PIL import Image

from bigtrain.data.decode import Undecodable, covering_shape, decode_into, header_shape, load, open_lazily, upright
from bigtrain.data.fields.field import Field, Geometry, check_count
from bigtrain.data.fields.painting import TILE, number_tile, picture_tile
from bigtrain.data.resize import Resize, read_resized
from bigtrain.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy")
"""Extensions of members that are read as images; the first that a sample has. Decoding checks the content again. npy comes
last, because some shards keep features as npy beside a picture."""
TRANSFORM = "uint8 / 127.5 - 1"
"""What becomes of pixels on the device, as recorded in a CodesManifest."""
_BYTE_CLASSES = 256


@dataclass(frozen=True, eq=False)
class PicturedField(Field):
    """`size`: (height, width) of what `decode` gives, None if samples differ and the recipe has not said which size to take.

    How they are read, which a recipe says: `resize` to one size; `crop_from`: the (height, width) that `size` is cropped from,
    None if nothing is cropped; `align`: a crop begins at a multiple of this many pixels.
    """

    size: tuple[int, int] | None
    factor: int = field(default=1, kw_only=True)
    resize: Resize = field(default="never", kw_only=True)
    crop_from: tuple[int, int] | None = field(default=None, kw_only=True)
    align: int = field(default=1, kw_only=True)

    @property
    def sized(self) -> tuple[int, int]:
        """The size, which must be known by now."""
        if self.size is None:
            raise UserError(
                f"the field {self.name} has pictures of different sizes; set data.resize and data.image_size"
            )
        return self.size

    @property
    def is_cut(self) -> bool:
        return self.crop_from is not None

    def at_size(self, size: tuple[int, int], resize: Resize, crop_from: tuple[int, int] | None, unit: int) -> Self:
        """The same field, read at the size that it has where the largest field has `size`. `unit`: a multiple of all factors of
        the sample's fields, in pixels of the largest. Raises UserError for sizes that the factors do not divide."""
        align = unit // self.factor
        for key, sides in (("image_size", size), ("crop_from", crop_from or size)):
            if any(side % unit for side in sides):
                raise UserError(
                    f"data.{key}: {sides[0]} x {sides[1]} is not divisible by {unit}, by which the fields of a sample "
                    "differ in size; choose multiples of it"
                )
        parts = [
            None if sides is None else (sides[0] // self.factor, sides[1] // self.factor) for sides in (size, crop_from)
        ]
        return replace(self, size=parts[0], resize=resize, crop_from=parts[1], align=align)

    def for_show(self) -> PicturedField:
        return self if self.size is not None else replace(self, size=(TILE, TILE), resize="exact")

    def _cut(self, picture: np.ndarray, geometry: Geometry, row: int) -> np.ndarray:
        """The crop of a whole picture [H, W, ...]."""
        (height, width), (tall, wide) = self.sized, picture.shape[:2]
        spare = (tall - height) // self.align, (wide - width) // self.align
        top, left = (steps * self.align for steps in geometry.offset(row, spare))
        return picture[top : top + height, left : left + width]

    def _size_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"size": None if self.size is None else list(self.size)}
        return facts | ({"factor": self.factor} if self.factor != 1 else {})


def _size_of(name: str, facts: Mapping[str, Any]) -> tuple[tuple[int, int] | None, int]:
    """(size, factor). Raises KeyError, TypeError or ValueError."""
    size, factor = facts["size"], int(facts.get("factor", 1))
    if factor < 1:
        raise ValueError(f"{factor} is no factor between sizes")
    if size is None:
        return None, factor
    height, width = map(int, size)
    if min(height, width) < 1:
        raise ValueError(f"{height} x {width} is no size")
    check_count(name, (height, width))
    return (height, width), factor


@dataclass(frozen=True, eq=False)
class ImageField(PicturedField):
    """uint8 [H, W, C], C = 1 or 3: stored as JPEG gives it and channels_last wants it; [n, C, H, W] in [-1, 1] on the
    device."""

    channels: int = 3
    kind = "image"

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> ImageField:
        size, factor = _size_of(name, facts)
        channels = int(facts["channels"])
        if channels not in (1, 3):
            raise ValueError(f"an image has 1 or 3 channels, not {channels}")
        return cls(name, members, size, channels=channels, factor=factor)

    def facts(self) -> dict[str, Any]:
        return self._size_facts() | {"channels": self.channels}

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.sized, self.channels)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(np.uint8)

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        (data,) = contents
        if self.crop_from is None and self.resize == "never":
            decode_into(data, out)
        elif self.crop_from is None:
            out[:] = read_resized(data, self.sized, self.resize, self.channels)
        elif self.resize == "never":
            whole = np.empty((*self.crop_from, self.channels), dtype=np.uint8)
            decode_into(data, whole)
            out[:] = self._cut(whole, geometry, row)
        else:
            out[:] = self._cut(read_resized(data, self.crop_from, self.resize, self.channels), geometry, row)

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image.Image]:
        return [picture_tile(pixels) for pixels in values]

    def check(self, contents: Sequence[bytes]) -> None:
        (data,) = contents
        height, width, _ = upright(data, self.channels).shape
        if header_shape(data)[2] > self.channels:
            raise Undecodable("it has colours, but the index says that its images are grey")
        if self.size not in (None, (height, width)):
            wanted = self.sized
            raise Undecodable(f"it is {height} x {width}, not {wanted[0]} x {wanted[1]}")

    @property
    def tensors(self) -> Mapping[str, tuple[int, ...]]:
        return {self.name: (self.channels, *self.sized)}

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        """[n, C, H, W] in [-1, 1], channels_last, in torch's default dtype. The copy is uint8."""
        return {self.name: to_images(values, flips, device)}


def to_images(values: Tensor, flips: Tensor, device: Any, dtype: torch.dtype | None = None) -> Tensor:
    """uint8 [n, H, W, C] mirrored where `flips` says so: [n, C, H, W] in [-1, 1], channels_last, in `dtype` (torch's
    default)."""
    import torch  # here, because the processes that write shards do without it

    pixels = values.to(device, non_blocking=True)
    if pixels.device.type == "cpu":
        images = pixels.to(dtype or torch.get_default_dtype())
        # One by one: each image stays in the CPU's cache, and half of them need no copy.
        for row in flips.nonzero()[:, 0].tolist():
            images[row] = pixels[row].flip(1)
    else:
        images = _mirrored(pixels, flips, width=2).to(dtype or torch.get_default_dtype())
    return images.permute(0, 3, 1, 2).div_(127.5).sub_(1)


def _mirrored(values: Tensor, flips: Tensor, width: int) -> Tensor:
    """`values` [n, ...] on a device, mirrored along dimension `width` where `flips` (bool [n], on the CPU) says so."""
    import torch  # here, because the processes that write shards do without it

    chosen = flips.to(values.device, non_blocking=True).view(-1, *[1] * (values.ndim - 1))
    return torch.where(chosen, values.flip(width), values)


@dataclass(frozen=True, eq=False)
class MapField(PicturedField):
    """One number a pixel: of a class (`classes`: their names), or of an object where `classes` is None (`instance`).

    Stored as a grey or a palette PNG, of 8 or 16 bits; int64 [n, H, W] on the device. Never interpolated.
    """

    classes: tuple[str, ...] | None = None
    kind = "map"
    largest: ClassVar[int] = 2**16

    @classmethod
    def from_json(cls, name: str, members: tuple[str, ...], facts: Mapping[str, Any]) -> MapField:
        size, factor = _size_of(name, facts)
        instance = bool(facts.get("instance", False))
        classes = None if instance else tuple(map(str, facts["classes"]))
        if classes is not None and not 0 < len(classes) <= cls.largest:
            raise ValueError(f"a map has 1 to {cls.largest} classes, not {len(classes)}")
        return cls(name, members, size, classes=classes, factor=factor)

    def facts(self) -> dict[str, Any]:
        return self._size_facts() | ({"instance": True} if self.classes is None else {"classes": list(self.classes)})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.sized

    @property
    def dtype(self) -> np.dtype:
        few = self.classes is not None and len(self.classes) <= _BYTE_CLASSES
        return np.dtype(np.uint8 if few else np.int32)  # torch has little for uint16

    def decode(self, contents: Sequence[bytes], out: np.ndarray, geometry: Geometry, row: int) -> None:
        whole = self._numbers(contents)
        target = self.crop_from or self.sized
        if self.resize != "never":
            whole = nearest(whole, target)
        if whole.shape != target:
            raise Undecodable(
                f"its {self.members[0]} is {whole.shape[0]} x {whole.shape[1]}, not {target[0]} x {target[1]}"
            )
        out[:] = whole if self.crop_from is None else self._cut(whole, geometry, row)

    def tiles(self, values: Sequence[np.ndarray]) -> list[Image.Image]:
        return [number_tile(numbers) for numbers in values]

    def check(self, contents: Sequence[bytes]) -> None:
        found = self._numbers(contents).shape
        if self.size not in (None, found):
            raise Undecodable(
                f"its {self.members[0]} is {found[0]} x {found[1]}, not {self.sized[0]} x {self.sized[1]}"
            )

    def _numbers(self, contents: Sequence[bytes]) -> np.ndarray:
        """uint8 or int32 [H, W]. Raises Undecodable, also for a class that has no name."""
        numbers = map_numbers(contents[0], self.members[0])
        if self.classes is not None and numbers.max() >= len(self.classes):
            raise Undecodable(
                f"its {self.members[0]} has the class {numbers.max()}, but the index names {len(self.classes)} classes, "
                "numbered from 0"
            )
        return numbers

    def to_device(self, values: Tensor, flips: Tensor, device: torch.device) -> dict[str, Tensor]:
        return {self.name: _mirrored(values.to(device, non_blocking=True), flips, width=2).long()}


def map_numbers(data: bytes, member: str) -> np.ndarray:
    """The numbers in a grey or palette PNG, uint8 or int32 [H, W]. Raises Undecodable."""
    image = load(open_lazily(data, ("PNG",)))
    if image.mode not in ("1", "L", "P") and not image.mode.startswith("I"):
        raise Undecodable(f"its {member} has the colours of a picture ({image.mode}), not one number a pixel")
    values = np.asarray(image)
    if values.dtype not in (np.bool_, np.uint8):
        return values.astype(np.int32)
    return values.astype(np.uint8)


def nearest(numbers: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resized until it covers `size`, by nearest neighbour, and the centre of that."""
    height, width = covering_shape(numbers.shape[0], numbers.shape[1], size)
    if (height, width) != numbers.shape:
        image = Image.fromarray(numbers.astype(np.int32)) if numbers.dtype != np.uint8 else Image.fromarray(numbers)
        numbers = np.asarray(image.resize((width, height), Image.Resampling.NEAREST))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    return numbers[top : top + size[0], left : left + size[1]]


def encoded_map(numbers: np.ndarray) -> bytes:
    """A PNG of numbers 0 .. 65535, [H, W]: 8 bits if they fit."""
    file = io.BytesIO()
    Image.fromarray(numbers.astype(np.uint8 if numbers.max(initial=0) < _BYTE_CLASSES else np.uint16)).save(file, "PNG")
    return file.getvalue()
