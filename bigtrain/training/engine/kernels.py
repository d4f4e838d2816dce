"""Which kernels are used, and in what precision."""

import contextlib
import os

import torch


def configure_kernels(deterministic: bool) -> None:
    """`deterministic`: only kernels that give the same bits in every run."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bf16: matrix products and convolutions in bfloat16, everything else in the weights' own precision."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
