"""What penalties and augmentations are given."""

from typing import Protocol

from torch import Tensor

Inputs = tuple[Tensor, ...]
"""What a discriminator is called with: images [n, C, H, W], then their conditions (labels [n]), if it has any."""


class Draw(Protocol):
    """Uniform numbers in [0, 1), float64, of the samples of a microbatch: by the name of the draw, [n, *shape]."""

    def __call__(self, name: str, /, *, shape: tuple[int, ...] = ()) -> Tensor: ...


def per_image(logits: Tensor) -> Tensor:
    """D(x) of each image, [n]: its logit, or the mean of its map of logits."""
    return logits.flatten(1).mean(1) if logits.dim() > 1 else logits
