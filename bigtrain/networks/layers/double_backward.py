"""Forward passes whose gradients are differentiated again, for penalties on gradients.

Autograd differentiates twice all that the layers here are made of, on several ranks and through activation checkpoints too,
with two exceptions: the backward pass of a compiled network, and that of a fused attention kernel.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from bigtrain.networks.layers.statistics import nothing_recorded


def call_differentiable_twice(network: nn.Module, *inputs: Any) -> Any:
    """What `network(*inputs)` returns, by its plain forward, and with attention by matrix products. Records no statistics."""
    with nothing_recorded(network), sdpa_kernel(SDPBackend.MATH):
        return network._call_impl(*inputs)


def with_attention_as_now(forward: Callable[..., Any]) -> Callable[..., Any]:
    """`forward`, but when it is called again in a backward pass it computes attention as it would at this moment."""
    if torch.compiler.is_compiling() or _fused_attention():
        return forward
    return sdpa_kernel(SDPBackend.MATH)(forward)


def _fused_attention() -> bool:
    return cuda.flash_sdp_enabled() or cuda.mem_efficient_sdp_enabled() or cuda.cudnn_sdp_enabled()
