"""Values by formula: the weights, inputs and patterns under which the authors' code was recorded, the same on any machine."""

import hashlib
import math

import torch
from torch import Tensor


def pattern(name: str, shape: tuple[int, ...] | torch.Size, scale: float = 1.0) -> Tensor:
    """A float64 tensor of `shape` in [-scale, scale] that depends on `name` and the element's number alone.

    The fractional parts of an arithmetic sequence with an irrational step are evenly spread; the step and the start come
    from a hash of the name, so that tensors of different names are unlike.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    start = int.from_bytes(digest[:4], "little") / 2**32
    step = math.sqrt(2) / 2 + int.from_bytes(digest[4:], "little") / 2**34
    numbers = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((start + step * numbers) % 1.0 * 2 - 1).mul(scale).reshape(tuple(shape))


def weight(name: str, shape: tuple[int, ...] | torch.Size) -> Tensor:
    """A weight tensor whose layer keeps the size of its input roughly: scale sqrt(3 / fan-in); vectors lie in [-0.5, 0.5]."""
    if len(shape) < 2:
        return pattern(name, shape, 0.5)
    return pattern(name, shape, math.sqrt(3 / math.prod(shape[1:])))
