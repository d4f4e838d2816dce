"""Where a component's parameters are in the flat partitions of ZeRO's ranks, and copies in both directions.

ZeRO-1 and ZeRO-2 concatenate all parameters and cut the result into equal partitions, one per rank. ZeRO-3 cuts every
parameter into equal parts and concatenates each rank's parts. Ends are padded; values in the padding have no meaning.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Piece:
    """A slice of one flattened parameter, in its logical order, and where it is in a rank's partition."""

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


def copy_into(tensors: Mapping[str, Tensor], partition: Tensor, pieces: Sequence[Piece]) -> None:
    """Writes a rank's partition into the full (contiguous) tensors, by parameter name."""
    for piece in pieces:
        tensor = tensors[piece.name]
        tensor.view(-1)[piece.of_parameter] = partition[piece.of_partition].to(tensor.device)


def cut(tensors: Mapping[str, Tensor], pieces: Sequence[Piece], partition: Tensor) -> None:
    """Fills a rank's partition from the full tensors; does not change its padding."""
    for piece in pieces:
        partition[piece.of_partition] = torch.flatten(tensors[piece.name])[piece.of_parameter].to(partition)
