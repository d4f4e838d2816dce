import os
from collections.abc import Iterator

import pytest
import torch

# cuBLAS reads it when it is first used, which in a test run is before a run that is deterministic.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@pytest.fixture(autouse=True)
def kernels_as_in_a_run() -> Iterator[None]:
    """No TF32 (cluster/launch.py); and what a trainer sets for its process does not stay."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before[:2]
    torch.set_float32_matmul_precision(before[2])
