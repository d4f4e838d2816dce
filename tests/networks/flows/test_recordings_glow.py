"""Glow is that of the authors' code, by their formulas written anew (tests/recordings/glow.py) and by published counts."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.networks.flows.glow import GlowOptions
from bigtrain.networks.flows.image_flow import DequantisedFlow
from bigtrain.networks.layers.dequantisation import Uniform
from tests.recordings.formula import pattern, weight
from tests.recordings.glow import bits_x

LEVELS, DEPTH, WIDTH, CLASSES, IMAGE = 2, 2, 6, 3, (3, 8, 8)
OURS = {
    "norm": "actnorm", "norm1": "f1/l_1/actnorm", "norm2": "f1/l_2/actnorm", "conv1": "f1/l_1", "conv2": "f1/l_2",
    "conv3": "f1/l_last", "mixing": "invconv", "conv": "p", "by_class": "y_emb",
}  # fmt: skip


def their_name(name: str) -> str:
    """Of one of our tensors, theirs."""
    *modules, last = name.split(".")
    own = {"weight": "W", "bias": "b"}.get(last, last)
    if modules[0] == "top":
        return f"prior/{OURS[modules[1]]}/{own}"
    if modules[2] == "conditional":
        return f"pool{modules[1]}/conv/{own}"
    layer = OURS[modules[-1]]
    part = {"bias": "_center", "logs": "_scale"}[last] if layer.endswith("actnorm") else ""
    return f"{modules[1]}/{modules[3]}/{layer}{part}/{own}"


def their_tensor(name: str, tensor: Tensor) -> Tensor:
    """A matrix or a kernel as they lie there: height, width, in, out."""
    if tensor.ndim == 4:
        return tensor.permute(2, 3, 1, 0)
    return tensor.T if "mixing" in name else tensor


@pytest.mark.parametrize("coupling", ["affine", "additive"])
@pytest.mark.parametrize("bits", [8, 5])
def test_bits_per_dimension_and_gradients_are_the_authors(coupling: Any, bits: int) -> None:
    options = GlowOptions(levels=LEVELS, steps=DEPTH, channels=WIDTH, coupling=coupling)
    network = DequantisedFlow(options, Uniform(), bits, IMAGE, CLASSES).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            identity = torch.eye(len(parameter)) if "mixing" in name else 0
            parameter.copy_(0.4 * weight(name, parameter.shape) + identity)
    values = ((pattern("values", (4, *IMAGE), 0.5) + 0.5) * 255.999).floor()
    uniforms = (pattern("noise", (4, *IMAGE), 0.5) + 0.5).mul(2**16).floor().clamp_max(2**16 - 1) / 2**16
    labels = torch.tensor([0, 1, 2, 1])
    ours = network(values / 127.5 - 1, uniforms, labels).nats / (math.log(2) * values[0].numel())
    own = dict(network.flow.named_parameters())
    theirs = {their_name(name): their_tensor(name, p.detach()).clone().requires_grad_() for name, p in own.items()}
    x, noise = (tensor.permute(0, 2, 3, 1) for tensor in (values, uniforms))
    one_hot = torch.eye(CLASSES).double()[labels]
    expected = bits_x(theirs, x, noise, one_hot, LEVELS, DEPTH, bits, coupling == "affine")
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)
    (ours * pattern("objective", ours.shape)).sum().backward()
    (expected * pattern("objective", ours.shape)).sum().backward()
    for name, parameter in own.items():
        gradient = their_tensor(name, parameter.grad)
        torch.testing.assert_close(gradient, theirs[their_name(name)].grad, rtol=1e-9, atol=1e-11, msg=name)


@pytest.mark.parametrize(
    ("options", "size", "parameters"),
    [
        ({}, 32, 44_603_604),
        ({"coupling": "additive"}, 32, 38_395_668),
        ({"steps": 48}, 32, 66_861_588),
        ({"levels": 4, "steps": 48}, 64, 112_377_540),
    ],
    ids=str,
)
def test_the_published_networks_have_their_parameters(options: dict[str, Any], size: int, parameters: int) -> None:
    with torch.device("meta"):
        network = GlowOptions(**options).build((3, size, size), 0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
