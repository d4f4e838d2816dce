"""DiffAugment (Zhao, Liu, Lin, Zhu & Han 2020, arXiv:2006.10738): the same three kinds of changes at every step."""

from typing import Annotated, Literal, get_args

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.networks.layers.normalisation import statistics_dtype
from bigtrain.objectives.augmentation.augmenter import Augmenter
from bigtrain.objectives.augmentation.resampling import pixels_at
from bigtrain.objectives.inputs import Draw

Operation = Literal["color", "translation", "cutout"]

_NUMBERS = {"color": 3, "translation": 2, "cutout": 2}


class DiffAug(Augmenter):
    """Brightness, saturation and contrast; a move; a square without content (appendix B). Each is applied to every image."""

    kind: Literal["diffaug"] = "diffaug"
    operations: Annotated[list[Operation], Field(min_length=1)] = Field(default_factory=lambda: [*get_args(Operation)])
    """What is done, in this order. color: x + b; m + s (x - m) with the mean m of a pixel's channels; m + c (x - m) with the
    mean m of the image; for b, s, c uniform in [-.5, .5), [0, 2), [.5, 1.5)."""
    translation: float = Field(default=0.125, gt=0, lt=1)
    """How far images move at most, in units of their height and width, by whole pixels; zeros move in."""
    cutout: float = Field(default=0.5, gt=0, lt=1)
    """The sides of the rectangle of zeros, in units of the image's height and width. It may lie partly beyond an edge."""

    @model_validator(mode="after")
    def _each_once(self) -> "DiffAug":
        if len({*self.operations}) < len(self.operations):
            raise ValueError("operations: must name each operation at most once")
        return self

    def augment(self, images: Tensor, draw: Draw, state: nn.Module | None) -> Tensor:
        images = images.to(statistics_dtype(images.dtype))
        for operation in self.operations:
            uniforms = draw(operation, shape=(_NUMBERS[operation],))
            match operation:
                case "color":
                    images = change_color(images, uniforms)
                case "translation":
                    images = translate(images, uniforms, self.translation)
                case "cutout":
                    images = images * outside_rectangle(images, uniforms, self.cutout)
        return images


def change_color(images: Tensor, uniforms: Tensor) -> Tensor:
    """`uniforms`: [n, 3], of brightness, saturation and contrast."""
    brightness, saturation, contrast = uniforms.to(images.dtype)[:, :, None, None, None].unbind(1)
    images = images + (brightness - 0.5)
    images = torch.lerp(images.mean(1, keepdim=True), images, 2 * saturation)
    return torch.lerp(images.mean((1, 2, 3), keepdim=True), images, contrast + 0.5)


def translate(images: Tensor, uniforms: Tensor, most: float) -> Tensor:
    """`uniforms`: [n, 2], of the moves down and right, each uniform over -m .. m pixels for m = most side, rounded."""
    sources = []
    for axis, side in enumerate(images.shape[2:]):
        reach = int(most * side + 0.5)
        moves = (uniforms[:, axis] * (2 * reach + 1)).long() - reach
        sources.append(torch.arange(side, device=images.device) - moves[:, None])
    rows, columns = sources[0][:, :, None], sources[1][:, None, :]
    height, width = images.shape[2:]
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    return pixels_at(images, rows.clamp(0, height - 1), columns.clamp(0, width - 1)) * inside[:, None]


def outside_rectangle(images: Tensor, uniforms: Tensor, share: float) -> Tensor:
    """1 where an image is kept and 0 in its rectangle, [n, 1, H, W]. `uniforms`: [n, 2], of the rectangle's row and column."""
    within = []
    for axis, side in enumerate(images.shape[2:]):
        length = int(share * side + 0.5)
        first = (uniforms[:, axis] * (side + 1 - length % 2)).long() - length // 2
        apart = torch.arange(side, device=images.device) - first[:, None]
        within.append((apart >= 0) & (apart < length))
    rows, columns = within
    return (~(rows[:, :, None] & columns[:, None, :]))[:, None].to(images.dtype)
