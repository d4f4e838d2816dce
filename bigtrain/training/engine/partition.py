"""How a component's parameters lie in the flat partitions of ZeRO's ranks: pure arithmetic, both ways.

ZeRO-1 and ZeRO-2 lay all parameters end to end and cut the whole into equal partitions, one a rank. ZeRO-3 cuts every
parameter into equal parts and lays each rank's parts end to end. Ends are padded; what lies in the padding means nothing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A stretch of one parameter, in its logical order, and where it lies in a rank's partition."""

    name: str
    of_parameter: slice
    of_partition: slice


def pieces_end_to_end(sizes: Mapping[str, int], rank: int, partition: int) -> list[Piece]:
    """The pieces of `rank` under ZeRO-1 and ZeRO-2. `sizes`: elements of each parameter, in their order; `partition`:
    elements of a rank's partition."""
    pieces, first = [], 0
    for name, size in sizes.items():
        begin = max(first, rank * partition)
        end = min(first + size, (rank + 1) * partition)
        if begin < end:
            here = begin - rank * partition
            pieces.append(Piece(name, slice(begin - first, end - first), slice(here, here + end - begin)))
        first += size
    return pieces


def pieces_of_each(sizes: Mapping[str, int], rank: int, ranks: int) -> list[Piece]:
    """The pieces of `rank` of `ranks` under ZeRO-3."""
    pieces, first = [], 0
    for name, size in sizes.items():
        part = math.ceil(size / ranks)
        begin, end = min(rank * part, size), min((rank + 1) * part, size)
        if begin < end:
            pieces.append(Piece(name, slice(begin, end), slice(first, first + end - begin)))
        first += part
    return pieces


def copy_into(whole: Mapping[str, Tensor], partition: Tensor, pieces: Sequence[Piece]) -> None:
    """Writes a rank's partition into the whole (contiguous) tensors that it is a partition of."""
    for piece in pieces:
        whole[piece.name].view(-1)[piece.of_parameter] = partition[piece.of_partition].to(whole[piece.name].device)


def cut(whole: Mapping[str, Tensor], pieces: Sequence[Piece], partition: Tensor) -> None:
    """Fills a rank's partition from whole tensors; its padding stays as it is."""
    for piece in pieces:
        partition[piece.of_partition] = torch.flatten(whole[piece.name])[piece.of_parameter].to(partition)
