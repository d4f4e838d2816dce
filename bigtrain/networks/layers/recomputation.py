"""Activation checkpointing: a block keeps only its inputs and computes the rest again in the backward pass.

After Chen et al. 2016 (arXiv:1604.06174). A network lists in `recomputed_blocks` the classes of its blocks. Everything else
stays the same: names of weights, dropout masks and, because forward is pure (statistics.py), all results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bigtrain.errors import UserError
from bigtrain.networks.layers.double_backward import with_attention_as_now


def recompute_blocks(network: nn.Module) -> None:
    """Makes `network` compute its blocks again in the backward pass instead of keeping their activations.

    Blocks are the modules of the classes in its `recomputed_blocks`; no block contains another. Every collective within a
    block is called a second time, in the order of the backward pass, which is the same on all ranks. Without gradients
    nothing changes. Raises UserError if the network names no blocks, or has none.
    """
    kinds: tuple[type[nn.Module], ...] = getattr(network, "recomputed_blocks", ())
    blocks = [module for module in network.modules() if isinstance(module, kinds)]
    if not blocks:
        raise UserError(
            f"engine.activation_checkpointing: a {type(network).__name__} does not say which of its modules are blocks; set it "
            "to false, or name their classes in its recomputed_blocks"
        )
    for block in blocks:
        # Replaces forward on the instance: a wrapper module would change the names of weights.
        block.forward = _Recomputed(block.forward, _draws(block))


class _Recomputed:
    """A block's forward. An object and not a closure, so that a deep copy of the block calls the copy's forward."""

    def __init__(self, forward: Callable[..., Any], draws: bool) -> None:
        self.forward, self.draws = forward, draws

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        forward = with_attention_as_now(self.forward)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=self.draws, **kwargs)


def _draws(block: nn.Module) -> bool:
    """Whether the block draws random numbers; then the state of their generator must be kept with its inputs."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules())
