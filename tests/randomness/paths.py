"""The two functions of `philox_numpy`, `philox_torch` and `philox_triton`, called in one way."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.randomness import philox_numpy, philox_torch

NUMPY = {torch.float32: np.float32, torch.float64: np.float64}


def signed(number: int) -> int:
    """The 64 bits of `number` as a signed number."""
    return number - 2**64 if number >= 2**63 else number


def by_numpy(
    what: str, key: int, indices: Sequence[int], size: int, step: int, dtype: torch.dtype = torch.float32
) -> Tensor:
    kind = (NUMPY[dtype],) if what == "normals" else ()
    return torch.from_numpy(getattr(philox_numpy, what)(key, np.array(indices, dtype=np.int64), size, step, *kind))


def by_torch(
    what: str,
    key: int,
    indices: Any,
    size: int,
    step: int,
    dtype: torch.dtype = torch.float32,
    module: Any = philox_torch,
) -> Tensor:
    kind = (dtype,) if what == "normals" else ()
    rows = indices if isinstance(indices, range) else torch.tensor(indices, dtype=torch.int64)
    return getattr(module, what)(torch.tensor(signed(key)), rows, size, step, *kind)


def assert_normals_agree(first: Tensor, second: Tensor) -> None:
    """But for rounding: of the angle, up to 2 pi, and of the radius, up to 6.8."""
    assert first.dtype == second.dtype
    torch.testing.assert_close(first, second, rtol=0, atol=32 * torch.finfo(first.dtype).eps)
