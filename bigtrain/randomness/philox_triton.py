"""Philox 4x32-10 on a GPU: one kernel that writes a draw where it is used. The same integers as `philox_numpy`.

The key is read from memory, so that a captured CUDA graph sees the key of its step.
"""

# mypy: allow-untyped-defs
# Triton reads the annotations of a kernel, and knows only its own.

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

COUNTERS = tl.constexpr(256)
"""Counters of one program."""
_VARYING = ("key", "rows", "first", "stride", "step", "counters", "blocks", "size")
"""Arguments whose values change from draw to draw: no kernel is compiled for values that divide by 16, or are 1."""


def normals(key: Tensor, rows: range | Tensor, size: int, step: int, dtype: torch.dtype) -> Tensor:
    """Standard normals [len(rows), size] in `dtype` (float32 or float64), by Box and Muller from 32-bit words.

    `key` int64 [] is on the device of the result; `rows` are the rows' indices, as a range or as int64 [n] on that device.
    """
    out = torch.empty(len(rows), size, dtype=dtype, device=key.device)
    _launch(_normals, out, key, rows, step, values=4)
    return out


def uniforms(key: Tensor, rows: range | Tensor, size: int, step: int) -> Tensor:
    """Multiples of 2^-53 in [0, 1), float64 [len(rows), size]; each from two words, the low one first."""
    out = torch.empty(len(rows), size, dtype=torch.float64, device=key.device)
    _launch(_uniforms, out, key, rows, step, values=2)
    return out


def _launch(kernel: Any, out: Tensor, key: Tensor, rows: range | Tensor, step: int, values: int) -> None:
    size = out.shape[1]
    blocks = -(-size // values)
    counters = len(rows) * blocks
    if not counters:
        return
    listed = isinstance(rows, Tensor)
    first, stride = (0, 1) if isinstance(rows, Tensor) else (rows.start, rows.step)
    whole = size % values == 0
    with torch.cuda.device_of(key):  # Triton launches on the current device
        kernel[(triton.cdiv(counters, COUNTERS.value),)](
            out, key, rows if listed else key, first, stride, step, counters, blocks, size, listed, whole
        )


@triton.jit(do_not_specialize=_VARYING)
def _normals(out, key, rows, first, stride, step, counters, blocks, size, listed: tl.constexpr, whole: tl.constexpr):
    w0, w1, w2, w3 = _words(key, rows, first, stride, step, counters, blocks, listed)
    n0, n1 = _box_muller(w0, w1, out.dtype.element_ty)
    n2, n3 = _box_muller(w2, w3, out.dtype.element_ty)
    _store(out, tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3)), counters, blocks, size, whole, 4)


@triton.jit(do_not_specialize=_VARYING)
def _uniforms(out, key, rows, first, stride, step, counters, blocks, size, listed: tl.constexpr, whole: tl.constexpr):
    w0, w1, w2, w3 = _words(key, rows, first, stride, step, counters, blocks, listed)
    values = tl.interleave(_from_pair(w0, w1), _from_pair(w2, w3))
    _store(out, values, counters, blocks, size, whole, 2)


@triton.jit
def _words(key, rows, first, stride, step, counters, blocks, listed: tl.constexpr):
    """The four words of this program's counters, uint32 [COUNTERS] each."""
    counter = tl.program_id(0).to(tl.int64) * COUNTERS + tl.arange(0, COUNTERS)
    row = counter // blocks
    index = tl.load(rows + row, mask=counter < counters, other=0) if listed else first + row * stride
    c0 = (counter % blocks).to(tl.uint32)
    c1 = (index & 0xFFFFFFFF).to(tl.uint32)
    c2 = ((index >> 32) & 0xFFFFFFFF).to(tl.uint32)
    c3 = (step + tl.zeros_like(counter)).to(tl.uint32)
    return tl.philox(tl.load(key), c0, c1, c2, c3)


@triton.jit
def _box_muller(first, second, dtype: tl.constexpr):
    radius = tl.sqrt(-2 * tl.log((first.to(dtype) + 0.5) * 2.3283064365386963e-10))
    angle = (second.to(dtype) + 0.5) * 2.3283064365386963e-10 * 6.283185307179586
    return radius * tl.cos(angle), radius * tl.sin(angle)


@triton.jit
def _from_pair(low, high):
    bits = (high.to(tl.int64) << 21) | (low >> 11).to(tl.int64)
    return bits.to(tl.float64) * 1.1102230246251565e-16


@triton.jit
def _store(out, values, counters, blocks, size, whole: tl.constexpr, values_each: tl.constexpr):
    """Stores `values` [COUNTERS * values_each], those of a counter side by side; a row's last block may be used in part."""
    place = tl.program_id(0).to(tl.int64) * (COUNTERS * values_each) + tl.arange(0, COUNTERS * values_each)
    stored = place < counters.to(tl.int64) * values_each
    if not whole:
        row = place // (blocks * values_each)
        element = place % (blocks * values_each)
        place = row * size + element
        stored = stored & (element < size)
    tl.store(out + place, values, mask=stored)
