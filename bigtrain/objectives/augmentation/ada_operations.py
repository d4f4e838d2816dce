"""ADA's operations (Karras et al. 2020, arXiv:2006.06676, appendix B and the authors' code), of images in [-1, 1].

Each is applied to an image with probability p, by numbers of its own. Moves and turns of whole pixels copy pixels; if other
geometry is drawn too, the image is resampled once by all of it together, between an upsampling and a downsampling by two with
an orthogonal filter. The colours of an image are changed by one matrix.

The authors' code resamples every image, and beyond the mirrored images it has zeros, where here they go on.
"""

import math
from collections.abc import Collection
from typing import Literal, get_args

import torch
from torch import Tensor

from bigtrain.objectives.augmentation.resampling import (
    downsample,
    filter_bands,
    fine_places,
    interpolate,
    mirrored,
    pixels_at,
    upsample,
)
from bigtrain.objectives.inputs import Draw

Operation = Literal[
    "x_flip", "rotate90", "integer_translation", "scale", "rotation", "anisotropic_scale", "fractional_translation",
    "brightness", "contrast", "luma_flip", "hue", "saturation", "filter", "noise", "cutout",
]  # fmt: skip

PARTS = {
    "b": ("x_flip", "rotate90", "integer_translation"),
    "g": ("scale", "rotation", "anisotropic_scale", "fractional_translation"),
    "c": ("brightness", "contrast", "luma_flip", "hue", "saturation"),
    "f": ("filter",),
    "n": ("noise",),
    "o": ("cutout",),
}

INTEGER_TRANSLATION = 0.125
"""At most, in units of a side."""
SCALE = ANISOTROPY = 0.2
"""Standard deviations of log2."""
FRACTIONAL_TRANSLATION = 0.125
"""Standard deviation, in units of a side."""
BRIGHTNESS = 0.2
CONTRAST, SATURATION, FILTER = 0.5, 1.0, 1.0
"""Standard deviations of log2."""
NOISE = 0.1
"""Standard deviation of the noise's standard deviation before its sign is dropped."""
CUTOUT = 0.5
"""In units of a side."""
LOWEST_BAND, HIGH_BAND = 10 / 13, 1 / 13
"""The share in the power of natural images of the lowest band, and of each of the three others."""


_VALUES = {"integer_translation": 2, "rotation": 2, "fractional_translation": 2, "filter": 4, "cutout": 2}
_CHOICES = {"rotation": 2, "filter": 4}
"""How many values an operation draws for an image, and how often it is chosen whether they are used; 1 if not named."""


def change(images: Tensor, draw: Draw, p: Tensor, operations: Collection[str]) -> Tensor:
    """Images [n, C, H, W] after the operations, in the order of `Operation`. `p`: scalar on the device."""
    drawn = Drawn(draw, p, operations)
    if drawn.any_of("bg"):
        images = move(images, drawn)
    if drawn.any_of("c"):
        images = change_colors(images, color_matrices(drawn))
    if drawn.any_of("f"):
        images = filter_bands(images, band_gains(drawn).to(images.dtype))
    if drawn.any_of("n"):
        deviations = drawn.chosen("noise", drawn.normal("noise").abs() * NOISE, 0.0)
        noise = normal(draw("noise", shape=tuple(images.shape[1:])))
        images = images + (deviations[..., None, None] * noise).to(images.dtype)
    if drawn.any_of("o"):
        images = images * outside_cutout(images, drawn)
    return images


class Drawn:
    """The numbers of each sample, float64 [n, values], and which operations are applied to it."""

    def __init__(self, draw: Draw, p: Tensor, operations: Collection[str]) -> None:
        self.p, self.operations = p, operations
        sizes = [table.get(operation, 1) for operation in get_args(Operation) for table in (_CHOICES, _VALUES)]
        columns = draw("operations", shape=(sum(sizes),)).split(sizes, dim=1)
        self._choices = dict(zip(get_args(Operation), columns[::2], strict=True))
        self._values = dict(zip(get_args(Operation), columns[1::2], strict=True))

    def any_of(self, parts: str) -> bool:
        return any(operation in self.operations for part in parts for operation in PARTS[part])

    def uniform(self, operation: str) -> Tensor:
        """In [0, 1)."""
        return self._values[operation]

    def normal(self, operation: str) -> Tensor:
        return normal(self.uniform(operation))

    def applied(self, operation: str) -> Tensor:
        """bool [n, choices]."""
        # A rotation before and one after the anisotropic scaling, so that one or both are applied with probability p.
        p = 1 - (1 - self.p).clamp_min(0).sqrt() if operation == "rotation" else self.p
        return (self._choices[operation] < p) & (operation in self.operations)

    def chosen(self, operation: str, values: Tensor, otherwise: float) -> Tensor:
        """Values [n, values] where the operation is applied, the other elsewhere."""
        return torch.where(self.applied(operation), values, otherwise)


def normal(uniform: Tensor) -> Tensor:
    """Standard normal numbers, by the inverse of the distribution function."""
    return torch.special.ndtri(uniform.clamp_min(2.0**-54))


# -- geometry -------------------------------------------------------------------------------------------------------


def move(images: Tensor, drawn: Drawn) -> Tensor:
    """Copies pixels, or resamples the images that any geometry but that of whole pixels is drawn for."""
    height, width = images.shape[2:]
    whole = whole_pixel_matrices(drawn, height, width)
    moved = copy(images, whole)
    if not drawn.any_of("g"):
        return moved
    resampled = resample(images, whole @ general_matrices(drawn, height, width))
    applied = torch.cat([drawn.applied(operation) for operation in PARTS["g"]], dim=1).any(1)
    return torch.where(applied[:, None, None, None], resampled, moved)


def copy(images: Tensor, matrices: Tensor) -> Tensor:
    """The nearest pixels of images seen through matrices [n, 3, 3], which take a place (x, y, 1) in the new image, in pixels
    from the middle, to that in the old one."""
    height, width = images.shape[2:]
    new_rows, new_columns = (torch.arange(side, dtype=torch.float64, device=images.device) for side in (height, width))
    rows, columns = ((places + 0.5).floor().long() for places in _sources(matrices, new_rows, new_columns, images))
    return pixels_at(images, mirrored(rows, height), mirrored(columns, width))


def resample(images: Tensor, matrices: Tensor) -> Tensor:
    """Images seen through such matrices, between pixels too."""
    new_rows, new_columns = (fine_places(side, images.device) for side in images.shape[2:])
    return downsample(interpolate(upsample(images), *_sources(matrices, new_rows, new_columns, images)))


def _sources(matrices: Tensor, rows: Tensor, columns: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of the images, float64 [n, h, w], that are seen at rows [h] and columns [w] of the new ones."""
    middle_y, middle_x = ((side - 1) / 2 for side in images.shape[2:])
    x, y = columns[None, None, :] - middle_x, rows[None, :, None] - middle_y
    (xx, xy, x0), (yx, yy, y0) = (matrices[:, row, :, None, None].unbind(1) for row in (0, 1))
    return yx * x + yy * y + y0 + middle_y, xx * x + xy * y + x0 + middle_x


def whole_pixel_matrices(drawn: Drawn, height: int, width: int) -> Tensor:
    """[n, 3, 3], from places in the new image to those in the old one: mirrored, then turned, then moved."""
    mirror = 1 - 2 * drawn.chosen("x_flip", (drawn.uniform("x_flip") * 2).floor(), 0)
    quarters = drawn.chosen("rotate90", (drawn.uniform("rotate90") * 4).floor(), 0)
    odd = quarters % 2
    across, down = (drawn.uniform("integer_translation") * 2 - 1).mul(INTEGER_TRANSLATION).split(1, 1)
    moves = torch.cat([(across * width).round(), (down * height).round()], dim=1)
    return (
        _scaling(mirror, torch.ones_like(mirror))
        @ _turning((1 - odd) * (1 - quarters), odd * (2 - quarters))
        @ _moving(drawn.chosen("integer_translation", moves, 0.0))
    )


def general_matrices(drawn: Drawn, height: int, width: int) -> Tensor:
    """[n, 3, 3], from places in the new image to those in the old one: scaled, turned, scaled along its axes, turned, moved."""
    scale = drawn.chosen("scale", (SCALE * drawn.normal("scale")).exp2(), 1.0)
    angles = drawn.chosen("rotation", (drawn.uniform("rotation") * 2 - 1) * math.pi, 0.0)
    (cos, before_cos), (sin, before_sin) = angles.cos().split(1, 1), angles.sin().split(1, 1)
    stretch = drawn.chosen("anisotropic_scale", (ANISOTROPY * drawn.normal("anisotropic_scale")).exp2(), 1.0)
    across, down = drawn.normal("fractional_translation").mul(FRACTIONAL_TRANSLATION).split(1, 1)
    moves = torch.cat([across * width, down * height], dim=1)
    return (
        _scaling(1 / scale, 1 / scale)
        @ _turning(before_cos, before_sin)
        @ _scaling(1 / stretch, stretch)
        @ _turning(cos, sin)
        @ _moving(drawn.chosen("fractional_translation", moves, 0.0))
    )


def _scaling(x: Tensor, y: Tensor) -> Tensor:
    """[n, 1] each -> [n, 3, 3]."""
    return torch.diag_embed(torch.cat([x, y, torch.ones_like(x)], dim=1))


def _turning(cos: Tensor, sin: Tensor) -> Tensor:
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    return torch.cat([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=1).view(-1, 3, 3)


def _moving(moves: Tensor) -> Tensor:
    """[n, 2], of the moves right and down -> [n, 3, 3], which looks up against them."""
    one, zero = torch.ones_like(moves[:, :1]), torch.zeros_like(moves[:, :1])
    across, down = moves.split(1, 1)
    return torch.cat([one, zero, -across, zero, one, -down, zero, zero, one], dim=1).view(-1, 3, 3)


# -- colours --------------------------------------------------------------------------------------------------------


def color_matrices(drawn: Drawn) -> Tensor:
    """[n, 4, 4], of (red, green, blue, 1)."""
    brightness = drawn.chosen("brightness", drawn.normal("brightness") * BRIGHTNESS, 0.0)
    contrast = drawn.chosen("contrast", (drawn.normal("contrast") * CONTRAST).exp2(), 1.0)
    luma = torch.full((3, 3), 1 / 3, dtype=torch.float64, device=contrast.device)
    whole = torch.eye(3, dtype=torch.float64, device=contrast.device)
    # By Rodrigues: of the unit vector v along luma, `luma` is v v^T, and `cross` times a colour is v x colour.
    shift = whole.roll(1, 0)
    cross = (shift - shift.T) / 3**0.5
    flip = drawn.chosen("luma_flip", (drawn.uniform("luma_flip") * 2).floor(), 0)[..., None]
    theta = drawn.chosen("hue", (drawn.uniform("hue") * 2 - 1) * math.pi, 0.0)[..., None]
    saturation = drawn.chosen("saturation", (drawn.normal("saturation") * SATURATION).exp2(), 1.0)[..., None]
    turned = luma + (whole - luma) * theta.cos() + cross * theta.sin()
    linear = (luma + (whole - luma) * saturation) @ turned @ (whole - 2 * luma * flip) * contrast[..., None]
    # Brightness comes first.
    offset = (linear * brightness[..., None]).sum(2, keepdim=True)
    return torch.cat([linear, offset], dim=2)


def change_colors(images: Tensor, matrices: Tensor) -> Tensor:
    """Images through matrices [n, 3, 4]; a grey image as one of three equal channels, of which the mean is taken."""
    if images.shape[1] == 1:
        matrices = torch.cat([matrices[..., :3].sum((1, 2)) / 3, matrices[..., 3].mean(1)]).view(2, -1).T[:, None]
    linear, offset = matrices.to(images.dtype).split([images.shape[1], 1], dim=2)
    return (linear @ images.flatten(2) + offset).view_as(images)


# -- filter and cutout ----------------------------------------------------------------------------------------------


def band_gains(drawn: Drawn) -> Tensor:
    """[n, 4]: each band is amplified in turn, and the power of a natural image is kept."""
    factors = drawn.chosen("filter", (drawn.normal("filter") * FILTER).exp2(), 1.0)
    shares = factors.new_full((4,), HIGH_BAND)
    shares[:1] = LOWEST_BAND
    # The power of an image whose band b was multiplied by f_b is 1 + (f_b^2 - 1) times the band's share.
    norms = (1 + (factors.square() - 1) * shares).sqrt()
    return factors / norms.prod(1, keepdim=True)


def outside_cutout(images: Tensor, drawn: Drawn) -> Tensor:
    """1 where an image is kept and 0 within its rectangle, [n, 1, H, W]."""
    centres = drawn.uniform("cutout")
    within = drawn.applied("cutout")[:, None, :, None]
    for axis, side in enumerate(images.shape[2:]):
        places = (torch.arange(side, dtype=torch.float64, device=images.device) + 0.5) / side
        near = (places - centres[:, axis, None]).abs() < CUTOUT / 2
        within = within & (near[:, None, :, None] if axis == 0 else near[:, None, None, :])
    return (~within).to(images.dtype)
