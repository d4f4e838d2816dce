"""Which kernels are used, and in what precision."""

import contextlib
import os
from collections.abc import Iterator

import torch

TENSOR_CORES = (8, 0)
"""The compute capability from which NVIDIA's GPUs multiply in TF32 (Ampere)."""


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


@contextlib.contextmanager
def tf32(precision: str, device: torch.device) -> Iterator[None]:
    """tf32: on a GPU, float32 factors of matrix products and convolutions are rounded to 10 bits of mantissa; sums are float32.
    Only within, since what is drawn and measured must not depend on how a model was trained."""
    if precision != "tf32" or device.type != "cuda":
        yield
        return
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def faster_precision(precision: str, device: torch.device) -> str | None:
    """A sentence for a run in fp32 on a GPU that has faster products; None for any other."""
    if precision != "fp32" or device.type != "cuda" or torch.version.hip is not None:
        return None
    if torch.cuda.get_device_capability(device) < TENSOR_CORES:
        return None
    return (
        f"train.precision: fp32 does without the tensor cores of this {torch.cuda.get_device_name(device)}; a new run with "
        "train.precision=tf32 is several times as fast with weights and sums in float32, and bf16 faster still"
    )
