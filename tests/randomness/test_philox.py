"""Philox 4x32-10 by numpy, by torch and by the kernel: the known answers, and the same values in all three."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigtrain.randomness import philox_numpy, philox_torch
from tests.randomness.paths import assert_normals_agree, by_numpy, by_torch, signed

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]
"""Counter, key and words of philox4x32-10 in the file kat_vectors of Random123 (Salmon et al. 2011)."""

KEYS = st.integers(0, 2**64 - 1)
INDICES = st.lists(st.integers(0, 2**63 - 1), max_size=5)
STEPS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 19)
no_compiler = importlib.util.find_spec("triton") is None
without_triton = pytest.mark.skipif(no_compiler, reason="triton is not installed, so its kernel cannot be tested")


def words_of(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_known_answers(counter: str, key: str, words: str) -> None:
    block, low, high, step = words_of(counter)
    key_low, key_high = words_of(key)
    index, number = low + (high << 32), key_low + (key_high << 32)
    buffers = np.zeros((6, 1, 1), dtype=np.uint64)
    unsigned = [np.array([[value]], dtype=np.uint64) for value in (block, index)]
    assert [int(word.item()) for word in philox_numpy.philox(number, *unsigned, step, buffers)] == words_of(words)
    tensors = [torch.tensor(value) for value in (signed(number), block, signed(index))]
    assert [int(word) for word in philox_torch.philox(*tensors, step)] == words_of(words)


@given(KEYS, INDICES, SIZES, STEPS)
@settings(max_examples=100, deadline=None)
def test_torch_draws_what_numpy_draws(key: int, indices: list[int], size: int, step: int) -> None:
    assert torch.equal(by_torch("uniforms", key, indices, size, step), by_numpy("uniforms", key, indices, size, step))
    for dtype in (torch.float32, torch.float64):
        ours, theirs = (by("normals", key, indices, size, step, dtype) for by in (by_numpy, by_torch))
        assert_normals_agree(ours, theirs)


@given(KEYS, INDICES, SIZES, STEPS, st.integers(1, 30))
@settings(max_examples=100, deadline=None)
def test_chunks_change_nothing(key: int, indices: list[int], size: int, step: int, chunk: int) -> None:
    whole = [by_numpy("uniforms", key, indices, size, step), by_numpy("normals", key, indices, size, step)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(philox_numpy, "CHUNK", chunk)
        parts = [by_numpy("uniforms", key, indices, size, step), by_numpy("normals", key, indices, size, step)]
    assert all(map(torch.equal, whole, parts))


def test_the_least_and_the_largest_words_give_finite_normals() -> None:
    """float32 rounds the largest word to 2^32, so that u is 1 and the radius 0; u is never 0."""
    words = [np.array([[word]], dtype=np.uint32) for word in (0, 0, 2**32 - 1, 2**32 - 1)]
    for dtype in (np.float32, np.float64):
        out = np.empty((1, 1, 4), dtype=dtype)
        philox_numpy._box_muller(out, (words[0], words[1], words[2], words[3]))
        assert np.isfinite(out).all()
        assert out[0, 0, 0] == pytest.approx(np.sqrt(2 * 33 * np.log(2)))
        assert abs(out[0, 0, 2]) < 1e-4


@without_triton
def test_the_kernel_draws_what_torch_draws() -> None:
    """In Triton's interpreter, which must be chosen before Triton is imported."""
    script = Path(__file__).parent / "interpreted_kernel.py"
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    result = subprocess.run([sys.executable, str(script)], env=environment, text=True, capture_output=True)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout == "compared 48 draws\n"


@without_triton
@pytest.mark.parametrize("listed", [True, False], ids=["listed", "range"])
@pytest.mark.parametrize("whole", [True, False], ids=["whole blocks", "a part of the last block"])
@pytest.mark.parametrize(("kernel", "dtype"), [("_normals", "fp32"), ("_normals", "fp64"), ("_uniforms", "fp64")])
def test_the_kernel_compiles_for_a_gpu(
    kernel: str, dtype: str, listed: bool, whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which needs no GPU; the interpreter takes code that the compiler refuses."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bigtrain.randomness import philox_triton

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    signature = dict.fromkeys(("first", "stride", "step", "counters", "blocks", "size"), "i32")
    signature |= {"out": f"*{dtype}", "key": "*i64", "rows": "*i64", "listed": "constexpr", "whole": "constexpr"}
    function = getattr(philox_triton, kernel)
    source = ASTSource(
        fn=function,
        signature={name: signature[name] for name in function.arg_names},
        constexprs={"listed": listed, "whole": whole},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    assert "st.global" in compiled.asm["ptx"]
