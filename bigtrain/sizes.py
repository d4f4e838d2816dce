"""Sizes of images: (height, width) in pixels in the code; in recipes and JSON one number for a square, else [height, width]."""

from collections.abc import Sequence


def size_of(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of what a recipe or a JSON file says."""
    if isinstance(image_size, int):
        return image_size, image_size
    height, width = image_size
    return height, width


def image_size_of(size: tuple[int, int]) -> int | list[int]:
    """The inverse of `size_of`, for JSON and command lines."""
    height, width = size
    return height if height == width else [height, width]


def size_key(size: tuple[int, int]) -> str:
    """As a recipe or a command line says it: `16`, or `[24,16]`."""
    return str(image_size_of(size)).replace(" ", "")


def size_flag(size: tuple[int, int]) -> str:
    """As the flag --size says it: `16`, or `24x16`."""
    return size_text(size).replace(" ", "")


def size_text(size: tuple[int, int]) -> str:
    """For messages: `16`, or `24 x 16`, the height first."""
    height, width = size
    return str(height) if height == width else f"{height} x {width}"
