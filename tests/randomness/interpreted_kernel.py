"""Compares the kernel, in Triton's interpreter, with torch: TRITON_INTERPRET=1 python tests/randomness/interpreted_kernel.py"""

import torch

from bigtrain.randomness import philox_triton
from tests.randomness.paths import assert_normals_agree, by_torch

ROWS = ([0, 1, 7, 2**33 + 5, 2**63 - 1], range(3, 900, 4), range(0))

if __name__ == "__main__":
    compared = 0
    for rows in ROWS:
        listed = list(rows)
        for size in (1, 4, 6, 31):
            for key, step in ((0, 0), (0xF123456789ABCDEF, 2**32 - 1)):
                kernel = by_torch("uniforms", key, rows, size, step, module=philox_triton)
                assert torch.equal(kernel, by_torch("uniforms", key, listed, size, step)), (rows, size)
                for dtype in (torch.float32, torch.float64):
                    normals = by_torch("normals", key, rows, size, step, dtype, philox_triton)
                    assert_normals_agree(normals, by_torch("normals", key, listed, size, step, dtype))
                compared += 2
    print(f"compared {compared} draws")
