"""Tensors in few numbers, how they are compared, and the file that holds them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.recordings.formula import pattern

RELATIVE, ABSOLUTE = 1e-9, 1e-11
"""What may differ in float64. Absolute: where a gradient is 0 but for rounding, as that of a bias before a batch norm."""
DIGITS = 13
"""Significant decimal digits that are written: four more than are compared."""
LARGEST_WHOLE = 100
"""Elements of an output that is recorded whole; of a larger one so many at most, evenly spaced."""


def objective(output: Tensor) -> Tensor:
    """What is differentiated: an output's dot product with a pattern, so that no gradient vanishes by symmetry."""
    return (output * pattern("objective", output.shape)).sum()


def summary(name: str, tensor: Tensor) -> list[float]:
    """[the dot product with the pattern of `name`, the L2 norm] of a tensor of any dtype."""
    exact = tensor.detach().double()
    return [(exact * pattern(name, exact.shape)).sum().item(), torch.linalg.vector_norm(exact).item()]


def excerpt(tensor: Tensor) -> dict[str, Any]:
    """An output: its shape, its summary and its values, or of a large one every nth of the flattened values."""
    exact = tensor.detach().double().flatten()
    every = -(-exact.numel() // LARGEST_WHOLE)
    return {"shape": list(tensor.shape), "summary": summary("output", tensor), "values": exact[::every].tolist()}


def gradients(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    """Summaries of the gradients of leaves by their names."""
    assert all(tensor.grad is not None for tensor in tensors.values())
    return {name: summary(name, tensor.grad) for name, tensor in tensors.items() if tensor.grad is not None}


def assert_excerpt(ours: Tensor, recorded: dict[str, Any], what: str) -> None:
    """The summary as below, and values to 1e-9 of the largest recorded one; raises AssertionError."""
    assert list(ours.shape) == recorded["shape"], what
    found = excerpt(ours)
    values, expected = (torch.tensor(those["values"], dtype=torch.float64) for those in (found, recorded))
    allowed = RELATIVE * expected.abs().max().item()
    difference = (values - expected).abs().max().item()
    assert difference <= allowed, f"{what}: values differ by {difference:.2e}, more than {allowed:.2e}"
    assert_summaries({what: found["summary"]}, {what: recorded["summary"]})


def assert_summaries(ours: dict[str, list[float]], recorded: dict[str, list[float]]) -> None:
    """Both numbers of every tensor to 1e-9 of its recorded norm, or 1e-11; raises AssertionError."""
    assert ours.keys() == recorded.keys()
    wrong = {name: (ours[name], recorded[name]) for name in recorded if not _agree(ours[name], recorded[name])}
    assert not wrong, f"[dot product, norm] of ours and of the recording: {wrong}"


def _agree(ours: list[float], recorded: list[float]) -> bool:
    difference = max(abs(a - b) for a, b in zip(ours, recorded, strict=True))
    return difference <= max(RELATIVE * recorded[1], ABSOLUTE)


def read(name: str) -> dict[str, Any]:
    """What the script `name` has recorded."""
    return json.loads((Path(__file__).parent / f"{name}.json").read_text(encoding="utf-8"))


def open_checkout(commit: str) -> Path:
    """The authors' checkout that the command line names, on sys.path. Exits with a sentence if it is of another commit."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} PATH_OF_THE_AUTHORS_CHECKOUT")
    checkout = Path(sys.argv[1])
    found = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
    ).stdout
    if found.strip() != commit:
        sys.exit(f"{checkout} is of commit {found.strip()}; the recording is of {commit}")
    sys.path.insert(0, str(checkout))
    return checkout


def counted(build: Callable[..., nn.Module], arguments: Any) -> dict[str, Any]:
    """The number of parameters of the network that `build` makes of the arguments of its published size."""
    with torch.device("meta"):
        network = build(arguments)
    return {"arguments": arguments, "parameters": sum(parameter.numel() for parameter in network.parameters())}


def write(script: str, recording: dict[str, Any]) -> None:
    """NAME.json beside the script NAME.py; lists of numbers on one line each."""
    text = json.dumps(_rounded(recording), indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text)
    Path(script).with_suffix(".json").write_text(text + "\n", encoding="utf-8")


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return {key: _rounded(item) for key, item in value.items()} if isinstance(value, dict) else value
