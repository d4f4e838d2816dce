"""RealNVP is that of the authors' code, by their formulas written anew (tests/recordings/real_nvp.py) and by its counts."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from bigtrain.networks.flows.image_flow import DequantisedFlow
from bigtrain.networks.flows.realnvp import RealNVPOptions
from bigtrain.networks.layers.dequantisation import Uniform
from tests.recordings.formula import pattern, weight
from tests.recordings.real_nvp import bit_per_dim

SCALES, BLOCKS, WIDTH, IMAGE = 2, 2, 4, (3, 8, 8)
# One after another.
REPLACEMENTS = (
    (r"^scales\.(\d+)\.over_pixels\.(\d+)\.scale$", r"scale_\1/coupling_\2/rescaling_scale"),
    (r"^scales\.(\d+)\.over_pixels\.(\d+)\.", r"scale_\1/coupling_\2/"),
    (r"^scales\.(\d+)\.over_channels\.(\d+)\.", lambda found: f"scale_{found[1]}/coupling_{int(found[2]) + 4}/"),
    (r"network\.", "resnet/"),
    (r"blocks\.(\d+)\.norm1\.", r"block_\1/bn_in/"),
    (r"blocks\.(\d+)\.norm2\.", r"block_\1/bn_0/"),
    (r"blocks\.(\d+)\.conv1\.", r"block_\1/h_0/"),
    (r"blocks\.(\d+)\.conv2\.", r"block_\1/out/"),
    (r"skips\.(\d+)\.", r"skip_\1/"),
    (r"norm_in\.", "bn_in/"),
    (r"norm\.", "bn_pre_out/"),
    (r"conv_in\.", "h_in/"),
    (r"skip_in\.", "skip_in/"),
    (r"conv_out\.", "out/"),
    (r"(bn_\w+)/bias$", r"\1/beta"),
    (r"/bias$", "/biases"),
    (r"/weight$", "/weights"),
)


def their_name(name: str) -> str:
    """Of one of our tensors, theirs."""
    for before, after in REPLACEMENTS:
        name = re.sub(before, after, name)
    assert "." not in name, name
    return name


def their_tensor(tensor: Tensor) -> Tensor:
    """A kernel as it lies there: height, width, in, out."""
    return tensor.permute(2, 3, 1, 0) if tensor.ndim == 4 else tensor


def test_bits_per_dimension_and_gradients_are_the_authors() -> None:
    options = RealNVPOptions(scales=SCALES, channels=WIDTH, residual_blocks=BLOCKS)
    network = DequantisedFlow(options, Uniform(), 8, IMAGE, 0).double()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.copy_(weight(name, parameter.shape) + (0.7 if parameter.ndim < 2 else 0))
    values = ((pattern("values", (4, *IMAGE), 0.5) + 0.5) * 255.999).floor()
    uniforms = (pattern("noise", (4, *IMAGE), 0.5) + 0.5).mul(2**16).floor().clamp_max(2**16 - 1) / 2**16
    ours = network(values / 127.5 - 1, uniforms, None).nats / (math.log(2) * values[0].numel())
    own = dict(network.flow.named_parameters())
    theirs = {their_name(name): their_tensor(p.detach()).clone().requires_grad_() for name, p in own.items()}
    x, noise = (tensor.permute(0, 2, 3, 1) for tensor in (values, uniforms))
    expected = bit_per_dim(theirs, x, noise, SCALES, BLOCKS)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=0)
    (ours * pattern("objective", ours.shape)).sum().backward()
    (expected * pattern("objective", ours.shape)).sum().backward()
    for name, parameter in own.items():
        gradient = their_tensor(parameter.grad)
        torch.testing.assert_close(gradient, theirs[their_name(name)].grad, rtol=1e-9, atol=1e-10, msg=name)


@pytest.mark.parametrize(
    ("options", "size", "parameters"),
    [
        ({}, 32, 19_609_545),
        ({"scales": 4, "channels": 32, "residual_blocks": 4}, 32, 46_220_359),
        ({"scales": 5, "channels": 32, "residual_blocks": 2}, 64, 96_363_237),
    ],
    ids=str,
)
def test_the_published_networks_have_their_parameters(options: dict[str, Any], size: int, parameters: int) -> None:
    with torch.device("meta"):
        network = RealNVPOptions(**options).build((3, size, size), 0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_only_the_authors_scales_are_penalised() -> None:
    """Those in whose names there is "magnitude" or "rescaling_scale"."""
    options = RealNVPOptions(scales=2, channels=4, residual_blocks=1)
    for name, parameter in options.build((1, 8, 8), 0).named_parameters():
        expected = any(part in their_name(name) for part in ("magnitude", "rescaling_scale"))
        assert options.penalises(f"flow.{name}", parameter) == expected, name
