"""The npy format (NumPy Enhancement Proposal 1) of plain numbers: a header and an array's bytes. Nothing is unpickled."""

import io
from functools import lru_cache

import numpy as np

MAGIC = b"\x93NUMPY"


@lru_cache(maxsize=64)
def npy_header(dtype: np.dtype, shape: tuple[int, ...]) -> bytes:
    """The header's bytes, format version 1.0, in C order."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return file.getvalue()


def read_npy_header(data: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    """(dtype, shape, offset of the array's bytes). Raises ValueError unless it is npy in C order."""
    file = io.BytesIO(data)
    try:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran_order, dtype = read(file)
    except Exception as error:  # numpy parses a Python literal, and damaged ones raise nearly anything
        raise ValueError(f"is not npy: {error}") from None
    if any(isinstance(side, bool) or side < 0 for side in shape):
        raise ValueError(f"holds {dtype} {shape}, which is no shape")
    if fortran_order:
        raise ValueError(
            f"holds {dtype} {shape} in Fortran order, not in C order, in which numpy.ascontiguousarray gives it"
        )
    return dtype, shape, file.tell()
