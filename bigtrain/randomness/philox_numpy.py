"""Philox 4x32-10 on a CPU (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), in numpy.

The counter of a block of four 32-bit words is (number of the block, index low, index high, a sampler's step); element e of a
row of normals is in block e // 4. `philox_torch` and `philox_triton` give the same integers.

A word lies in the low half of a 64-bit number. So the product of a round needs no mask or shift: its halves are read through
a view of 32-bit numbers, which takes 6 passes a round instead of 10. The first rounds hardly count: there a word depends on
the row alone or on the block alone, and numpy's broadcasting keeps it that small.
"""

import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np

assert sys.byteorder == "little", "the low half of a 64-bit number must come first in memory"

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
WEYL = 0x9E3779B9, 0xBB67AE85
"""What each round adds to the two words of the key."""
ROUNDS = 10
BROADCAST_ROUNDS = 3
"""After so many rounds every word depends on the row and on the block."""
CHUNK = 16_384
"""Counters at a time: the buffers of so many stay in a core's cache."""

Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def normals(key: int, numbers: np.ndarray, size: int, step: int, dtype: type) -> np.ndarray:
    """Standard normals [len(numbers), size] in `dtype` (float32 or float64), by Box and Muller from 32-bit words."""
    out: np.ndarray = np.empty((len(numbers), -(-size // 4), 4), dtype=dtype)
    _fill(out, key, numbers, step, _box_muller)
    return _rows(out, size)


def uniforms(key: int, numbers: np.ndarray, size: int, step: int) -> np.ndarray:
    """Multiples of 2^-53 in [0, 1), float64 [len(numbers), size]; each from two words, the low one first."""
    out = np.empty((len(numbers), -(-size // 2), 2), dtype=np.float64)
    _fill(out, key, numbers, step, _from_pairs)
    return _rows(out, size)


def _rows(out: np.ndarray, size: int) -> np.ndarray:
    return np.ascontiguousarray(out.reshape(len(out), out.shape[1] * out.shape[2])[:, :size])


def _box_muller(out: np.ndarray, words: Words) -> None:
    """Four normals from four words; u = (word + 0.5) 2^-32 is never 0, and where it rounds to 1 the radius is 0."""
    of = out.dtype.type
    for first in (0, 2):
        radius, angle = words[first].astype(out.dtype), words[first + 1].astype(out.dtype)
        radius += of(0.5)
        radius *= of(2**-32)
        np.log(radius, out=radius)
        radius *= of(-2)
        np.sqrt(radius, out=radius)
        angle += of(0.5)
        angle *= of(2 * np.pi) * of(2**-32)
        np.multiply(radius, np.cos(angle), out=out[..., first])
        np.multiply(radius, np.sin(angle, out=angle), out=out[..., first + 1])


def _from_pairs(out: np.ndarray, words: Words) -> None:
    for position, (low, high) in enumerate((words[:2], words[2:])):
        bits = high.astype(np.uint64) << np.uint64(21) | low >> np.uint32(11)
        np.multiply(bits, 2.0**-53, out=out[..., position])


def _fill(
    out: np.ndarray, key: int, numbers: np.ndarray, step: int, convert: Callable[[np.ndarray, Words], None]
) -> None:
    """Fills out [rows, blocks, values of a block], by chunks that stay in the cache."""
    rows, blocks = out.shape[:2]
    width = max(1, min(blocks, CHUNK))
    height = max(1, min(rows, CHUNK // width))
    buffers = np.zeros((6, height, width), dtype=np.uint64)
    for top, bottom in pairwise([*range(0, rows, height), rows]):
        index = numbers[top:bottom, None].astype(np.uint64)
        for left, right in pairwise([*range(0, blocks, width), blocks]):
            block = np.arange(left, right, dtype=np.uint64)[None]
            chunk = buffers.reshape(6, -1)[:, : (bottom - top) * (right - left)]
            words = philox(key, block, index, step, chunk.reshape(6, bottom - top, right - left))
            convert(out[top:bottom, left:right], words)


def philox(key: int, block: np.ndarray, index: np.ndarray, step: int, buffers: np.ndarray) -> Words:
    """The words of the counters (block, index, step), each uint32 [rows, blocks].

    `block` uint64 [1, blocks], `index` uint64 [rows, 1]; `buffers` uint64 [6, rows, blocks], whose high halves are 0 in the
    first two: what is returned lies in them, until they are used again.
    """
    keys = [_round_key(key, number) for number in range(ROUNDS)]
    low, high = np.uint64(0xFFFFFFFF), np.uint64(32)
    first, second = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
    c0, c1, c2, c3 = block, index & low, index >> high, np.full((1, 1), step, dtype=np.uint64)
    for k0, k1 in keys[:BROADCAST_ROUNDS]:
        p0, p1 = c0 * first, c2 * second
        c0, c1, c2, c3 = p1 >> high ^ (c1 ^ k0), p1 & low, p0 >> high ^ (c3 ^ k1), p0 & low
    even, odd, *products = buffers
    even[:], odd[:] = c0, c2
    even_low, odd_low = _low(even), _low(odd)
    for product, value in zip(products[:2], (c3, c1), strict=True):
        product[:] = value
    before, now = products[:2], products[2:]
    for k0, k1 in keys[BROADCAST_ROUNDS:]:
        np.multiply(even, first, out=now[0])
        np.multiply(odd, second, out=now[1])
        np.bitwise_xor(_high(now[1]), _low(before[1]), out=even_low)
        np.bitwise_xor(_high(now[0]), _low(before[0]), out=odd_low)
        even ^= k0
        odd ^= k1
        before, now = now, before
    return even_low, _low(before[1]), odd_low, _low(before[0])


def _round_key(key: int, number: int) -> tuple[np.uint64, np.uint64]:
    words = key & 0xFFFFFFFF, key >> 32
    k0, k1 = (word + number * weyl & 0xFFFFFFFF for word, weyl in zip(words, WEYL, strict=True))
    return np.uint64(k0), np.uint64(k1)


def _low(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)[..., ::2]


def _high(values: np.ndarray) -> np.ndarray:
    return values.view(np.uint32)[..., 1::2]
