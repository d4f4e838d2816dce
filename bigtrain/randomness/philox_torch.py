"""Philox 4x32-10 in torch's int64 arithmetic, on any device: what `philox_triton` computes, where it cannot be compiled."""

import math

import torch
from torch import Tensor

from bigtrain.randomness.philox_numpy import MULTIPLIERS, ROUNDS, WEYL

_LOW = 0xFFFFFFFF

Words = tuple[Tensor, Tensor, Tensor, Tensor]


def normals(key: Tensor, numbers: Tensor, size: int, step: int, dtype: torch.dtype) -> Tensor:
    """Standard normals [len(numbers), size] in `dtype` (float32 or float64), by Box and Muller from 32-bit words.

    `key` int64 [] and `numbers` int64 [n] are on the device of the result.
    """
    words = philox(key, _blocks(size, 4, key), numbers[:, None], step)
    values = []
    for first, second in (words[:2], words[2:]):
        radius = ((first.to(dtype) + 0.5) * 2**-32).log().mul(-2).sqrt()
        angle = (second.to(dtype) + 0.5) * 2**-32 * (2 * math.pi)
        values += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(values, -1).flatten(1)[:, :size].contiguous()


def uniforms(key: Tensor, numbers: Tensor, size: int, step: int) -> Tensor:
    """Multiples of 2^-53 in [0, 1), float64 [len(numbers), size]; each from two words, the low one first."""
    words = philox(key, _blocks(size, 2, key), numbers[:, None], step)
    values = [((high << 21) | (low >> 11)).double() * 2**-53 for low, high in (words[:2], words[2:])]
    return torch.stack(values, -1).flatten(1)[:, :size].contiguous()


def philox(key: Tensor, block: Tensor, index: Tensor, step: int) -> Words:
    """The words, int64 in 0 .. 2^32 - 1, of the counters (block, index low, index high, step), whose shapes are broadcast.

    A product of two 32-bit numbers may overflow an int64, but its bits are right.
    """
    k0, k1 = key & _LOW, key >> 32 & _LOW
    c0, c1, c2, c3 = block, index & _LOW, index >> 32 & _LOW, torch.full_like(block, step)
    for _ in range(ROUNDS):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = k0 + WEYL[0] & _LOW, k1 + WEYL[1] & _LOW
    return c0, c1, c2, c3


def _blocks(size: int, values: int, like: Tensor) -> Tensor:
    """Numbers of the blocks of a row of `size` elements, of which a block has `values`; int64 [1, blocks]."""
    return torch.arange(-(-size // values), device=like.device)[None]
