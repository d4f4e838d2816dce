"""The keys of random draws, and the generators and seeds that are made of the same parts: (seed, stream, step, repeat).

numpy's Philox 4x64-10 has (seed, stream) as its key and (step, repeat, index) as its counter (Salmon et al. 2011, "Parallel
random numbers: as easy as 1, 2, 3").
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


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


STREAMS = 64
"""The largest number of streams of one phase."""


@lru_cache(maxsize=1024)
def draw_key(seed: int, stream: str, step: int = 0, repeat: int = 0) -> int:
    """The key of one draw for Philox 4x32-10: 64 bits."""
    digest = hashlib.blake2b(f"{seed}/{stream}/{step}/{repeat}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


class DeviceKeys:
    """The keys of one step and repeat of a phase, in memory of the device that never moves.

    A captured CUDA graph reads them from there, and so must not be handed other tensors at other steps. Which streams a phase
    draws is learned at their first use; from then on `fill` copies the keys of all of them at once.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.step, self.repeat = 0, 0
        self.step_number = torch.zeros((), dtype=torch.int64, device=device)
        """The step: int64 [], always the same tensor."""
        self._seed = seed
        self._keys = torch.empty(STREAMS, dtype=torch.int64, device=device)
        self._slots: dict[str, int] = {}

    def fill(self, step: int, repeat: int) -> None:
        """Replaces the keys by those of another step or repeat."""
        if (step, repeat) != (self.step, self.repeat):
            self.step, self.repeat = step, repeat
            self.step_number.fill_(step)
            self._copy(list(self._slots), 0)

    def key(self, stream: str) -> Tensor:
        """The stream's key: int64 [], always the same tensor."""
        if stream not in self._slots:
            self._add(stream)
        return self._keys[self._slots[stream]]

    def _add(self, stream: str) -> None:
        assert len(self._slots) < STREAMS, f"a phase draws more than {STREAMS} streams: {stream}"
        assert self._keys.device.type != "cuda" or not torch.cuda.is_current_stream_capturing(), (
            f"stream {stream} is drawn for the first time while a graph is captured; draw it once before"
        )
        self._slots[stream] = len(self._slots)
        self._copy([stream], self._slots[stream])

    def _copy(self, streams: Sequence[str], first: int) -> None:
        """Copies the keys of `streams` to the slots from `first`; the host does not wait."""
        if streams:
            keys = np.array([draw_key(self._seed, name, self.step, self.repeat) for name in streams], dtype=np.uint64)
            here = pinned(torch.from_numpy(keys.view(np.int64)), self._keys.device)
            self._keys[first : first + len(streams)].copy_(here, non_blocking=True)


def pinned(values: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor that is about to be copied to the device; for a GPU in pinned memory, or else the host would wait."""
    return values.pin_memory() if device.type == "cuda" else values


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """A copy of a CPU tensor on the device, for which the host does not wait."""
    return pinned(values, device).to(device, non_blocking=True)
