"""Keyed random draws: every draw is a pure function of (seed, stream, step, repeat, index).

There is no state, so none has to be saved: a draw never depends on the rank, the worker, the batch size or the clock.
Philox is a counter-based generator: its key is (seed, stream), its counter (step, repeat, index) (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3").
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

BLOCK = 16
"""Indices that share a generator in `Draws`. It determines the draws of a seed, so it must never change."""


@lru_cache(maxsize=1024)
def _key(seed: int, stream: str) -> tuple[int, int]:
    """128 bits from the seed and the stream's name. Not Python's `hash`, which differs from process to process."""
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def generator(seed: int, stream: str, *, step: int = 0, repeat: int = 0, index: int = 0) -> np.random.Generator:
    """The generator of one draw. All of step, repeat and index are non-negative and below 2**64."""
    counter = np.array([0, index, repeat, step], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array(_key(seed, stream), dtype=np.uint64), counter=counter))


def torch_seed(seed: int, stream: str, *, step: int = 0, repeat: int = 0, index: int = 0) -> int:
    """A 63-bit seed for code that only knows torch's own generators (initialisation, dropout)."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{repeat}/{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@dataclass(frozen=True)
class Draws:
    """The draws of one repeat of one phase at one step; an index is the sample's number in the global batch.

    All methods return one row per index, drawn in float64 on the CPU and then cast, so that a sample is the same on
    every device, at every batch size and at every world size. Making a generator costs more than drawing a row of z, so
    BLOCK consecutive indices share one, keyed by the block's number: a row is still a function of its index alone.
    """

    seed: int
    step: int = 0
    repeat: int = 0

    def normal(self, stream: str, indices: Sequence[int], shape: tuple[int, ...]) -> Tensor:
        """Standard normal, [len(indices), *shape], in torch's default dtype."""
        values = self._rows(stream, indices, shape, lambda generator, size: generator.standard_normal(size))
        return torch.from_numpy(values).to(torch.get_default_dtype())

    def uniform(self, stream: str, indices: Sequence[int], shape: tuple[int, ...] = ()) -> Tensor:
        """Uniform in [0, 1), [len(indices), *shape], in float64: the low bits matter to an inverse distribution."""
        return torch.from_numpy(self._rows(stream, indices, shape, lambda generator, size: generator.random(size)))

    def integers(self, stream: str, indices: Sequence[int], high: int) -> Tensor:
        """Uniform over 0 .. high - 1, int64 [len(indices)]."""
        return torch.from_numpy(
            self._rows(stream, indices, (), lambda generator, size: generator.integers(high, size=size))
        )

    def _rows(
        self,
        stream: str,
        indices: Sequence[int],
        shape: tuple[int, ...],
        draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray],
    ) -> np.ndarray:
        numbers = np.asarray(indices, dtype=np.int64)
        blocks, block_of = np.unique(numbers // BLOCK, return_inverse=True)
        rows = [
            draw(generator(self.seed, stream, step=self.step, repeat=self.repeat, index=int(block)), (BLOCK, *shape))
            for block in blocks
        ]
        return np.stack(rows)[block_of, numbers % BLOCK] if rows else draw(generator(self.seed, stream), (0, *shape))
