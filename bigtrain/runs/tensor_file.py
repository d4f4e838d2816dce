"""Writes safetensors files piece by piece, each a sign of life, and flushes each GiB to the disk.

The library writes a file in one call, which tells nobody whether it goes on. The format (huggingface/safetensors, "Format"):
the length of the header, u64 little-endian; the header, JSON: {NAME: {dtype, shape, data_offsets: [begin, end]}}; the bytes
of all tensors without gaps. Larger elements come first, so that each tensor is aligned.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bigtrain import beats

_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_PIECE = 2**26
"""Bytes between two signs of life."""
_UNFLUSHED = 2**30
"""Bytes that may wait for the disk: flushing all of 100 GB at the end would take long without a sign of life."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a new file, and flushes it to the disk. Raises OSError."""
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    with open(path, "wb", buffering=0) as file:
        _write_all(file, _header(ordered))
        unflushed = 0
        for _, tensor in ordered:
            data: Any = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            for begin in range(0, len(data), _PIECE):
                piece = data[begin : begin + _PIECE]
                if unflushed + len(piece) > _UNFLUSHED:
                    os.fsync(file.fileno())
                    unflushed = 0
                _write_all(file, piece)
                unflushed += len(piece)
                beats.beat()
        os.fsync(file.fileno())
    beats.beat()


def _header(tensors: list[tuple[str, Tensor]]) -> bytes:
    entries: dict[str, Any] = {}
    begin = 0
    for name, tensor in tensors:
        end = begin + tensor.numel() * tensor.element_size()
        entries[name] = {"dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    """An unbuffered file may write a part."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]
