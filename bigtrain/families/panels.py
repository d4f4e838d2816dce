"""What a family asks to have drawn of its training; bigtrain/inference/panel_picture.py draws it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor

Colour = Literal["real", "fake", "push", "first", "second"]
"""Of data; of what a model makes; of where that is pushed to; of one thing and of another."""
Window = tuple[float, float, float, float]
"""What a picture of a plane shows: left, right, bottom, top."""


def check_window(window: Window) -> None:
    """Raises ValueError for a window that is none."""
    left, right, bottom, top = window
    if not (left < right and bottom < top):
        raise ValueError("window: takes left, right, bottom, top, with left below right and bottom below top")


@dataclass(frozen=True)
class Dots:
    """Points [n, 2] of a plane."""

    points: Tensor
    colour: Colour
    label: str


@dataclass(frozen=True)
class Arrows:
    """From points [n, 2] along [n, 2]; the longest are as long as they can be without a muddle."""

    points: Tensor
    along: Tensor
    label: str
    colour: Colour = "push"


@dataclass(frozen=True)
class Trace:
    """Points [n, 2] in the order in which they were visited."""

    points: Tensor
    colour: Colour
    label: str


Layer: TypeAlias = Dots | Arrows | Trace


@dataclass(frozen=True)
class Plane:
    """A part of a plane, seen from above.

    shade: [height, width] in [-1, 1], from the top left, or None: towards 1 in the colour of data, towards -1 in that of what a
    model makes; its zeros are a line. layers: one above the other.
    """

    title: str
    window: Window
    layers: Sequence[Layer]
    shade: Tensor | None = None


@dataclass(frozen=True)
class Chart:
    """Curves over steps, of numbers that are not negative. curves: by label the colour and the values, as many as `steps`."""

    title: str
    steps: Sequence[float]
    curves: Mapping[str, tuple[Colour, Sequence[float]]]
    logarithmic: bool = False


Panel = Plane | Chart
