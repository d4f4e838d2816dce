"""Noise, labels and times: drawn on the device, each row from its index."""

import math
import warnings
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from bigtrain.randomness import philox_numpy, philox_torch
from bigtrain.randomness.keys import DeviceKeys, draw_key, to_device

CPU = torch.device("cpu")
_IN_NUMPY = {"cpu"}
"""Types of the devices whose draws numpy makes; those of others are made by torch or by a compiled kernel."""

Indices = Sequence[int] | Tensor
"""Numbers of samples: a range, a list, or int64 [n] on the device. Only a list is copied to the device, at every draw."""


class Draws:
    """The draws of one repeat of one phase at one step; an index is the sample's number in the global batch.

    All methods return one row per index, on `device`. The integers behind them are the same on every device, and so are
    uniforms; normals are but for rounding. So a sample is the same at every batch size and at every world size.

    `sampler_step` (0 .. 2^32 - 1) counts the steps of a sampler, which all draw with the key of one stream. `keys`: a phase's
    keys of this step and repeat on the device, where there is one.
    """

    def __init__(
        self,
        seed: int,
        step: int = 0,
        repeat: int = 0,
        *,
        device: torch.device = CPU,
        keys: DeviceKeys | None = None,
    ) -> None:
        self.seed, self.step, self.repeat, self.device = seed, step, repeat, device
        self._keys = keys

    def normal(self, stream: str, indices: Indices, shape: tuple[int, ...], sampler_step: int = 0) -> Tensor:
        """Standard normal, [len(indices), *shape], in torch's default dtype. In float32 at most 6.8 in magnitude."""
        dtype = torch.float64 if torch.get_default_dtype() == torch.float64 else torch.float32
        size = math.prod(shape)
        if self.device.type in _IN_NUMPY:
            exact = np.float64 if dtype == torch.float64 else np.float32
            key = draw_key(self.seed, stream, self.step, self.repeat)
            values = torch.from_numpy(philox_numpy.normals(key, _on_cpu(indices), size, sampler_step, exact))
        else:
            source, rows = self._source(indices)
            values = source.normals(self._key(stream), rows, size, sampler_step, dtype)
        return values.view(len(indices), *shape).to(torch.get_default_dtype())

    def uniform(self, stream: str, indices: Indices, shape: tuple[int, ...] = (), sampler_step: int = 0) -> Tensor:
        """Uniform in [0, 1), [len(indices), *shape], in float64: the low bits matter to an inverse distribution."""
        size = math.prod(shape)
        if self.device.type in _IN_NUMPY:
            key = draw_key(self.seed, stream, self.step, self.repeat)
            values = torch.from_numpy(philox_numpy.uniforms(key, _on_cpu(indices), size, sampler_step))
        else:
            source, rows = self._source(indices)
            values = source.uniforms(self._key(stream), rows, size, sampler_step)
        return values.view(len(indices), *shape)

    def integers(self, stream: str, indices: Indices, high: int) -> Tensor:
        """Uniform over 0 .. high - 1, int64 [len(indices)]; high is at most 2^53."""
        return (self.uniform(stream, indices) * high).long()

    def categories(self, stream: str, indices: Indices, counts: tuple[int, ...]) -> Tensor:
        """k with probability counts[k] / sum(counts), int64 [len(indices)]."""
        return torch.searchsorted(_bounds(counts, self.device), self.integers(stream, indices, sum(counts)), right=True)

    @property
    def fixed(self) -> "Draws":
        """Draws on the same device that are the same in every run and at every step: of the stream and the index alone."""
        return _fixed(self.device)

    def numbers(self, indices: Indices) -> Tensor:
        """Indices as int64 [n] on the device."""
        if isinstance(indices, Tensor):
            return indices.to(self.device)
        if isinstance(indices, range):
            return torch.arange(indices.start, indices.stop, indices.step, device=self.device)
        return to_device(torch.from_numpy(np.asarray(indices, dtype=np.int64)), self.device)

    @property
    def step_number(self) -> Tensor:
        """The step, int64 [] on the device, for schedules within a loss: a number of Python's would be frozen into a captured
        graph, and would compile a compiled loss again at every step."""
        return self._device_keys().step_number

    def _key(self, stream: str) -> Tensor:
        return self._device_keys().key(stream)

    def _device_keys(self) -> DeviceKeys:
        if self._keys is None:
            self._keys = DeviceKeys(self.seed, self.device)
            self._keys.fill(self.step, self.repeat)
        made_for = self._keys.step, self._keys.repeat
        assert made_for == (self.step, self.repeat), f"keys of {made_for} for draws of {(self.step, self.repeat)}"
        return self._keys

    def _source(self, indices: Indices) -> tuple[ModuleType, range | Tensor]:
        """What draws on this device, and the indices as it takes them."""
        source = _compiled(self.device)
        if source is None:
            return philox_torch, self.numbers(indices)
        return source, indices if isinstance(indices, range) else self.numbers(indices)


def _on_cpu(indices: Indices) -> np.ndarray:
    return indices.numpy() if isinstance(indices, Tensor) else np.asarray(indices, dtype=np.int64)


@lru_cache
def _bounds(counts: tuple[int, ...], device: torch.device) -> Tensor:
    """Sums of the first 1, 2, ... counts, int64 on the device; copied once, not at every step."""
    return to_device(torch.tensor(list(accumulate(counts))), device)


@lru_cache
def _fixed(device: torch.device) -> Draws:
    return Draws(0, device=device)


@lru_cache
def _compiled(device: torch.device) -> ModuleType | None:
    """The module of the compiled kernel; None, with a warning, where the device has no compiler for it."""
    try:
        from bigtrain.randomness import philox_triton

        philox_triton.uniforms(torch.zeros((), dtype=torch.int64, device=device), range(1), 1, 0)
    except Exception as error:  # a compiler fails in many ways: not installed, no C compiler, no such device
        warnings.warn(
            f"random draws on {device} are made without a compiled kernel, which is slower: {type(error).__name__}: {error}",
            stacklevel=2,
        )
        return None
    return philox_triton
