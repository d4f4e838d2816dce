"""Activation checkpointing: a block keeps its inputs alone and computes the rest again in the backward pass.

After Chen et al. 2016 (arXiv:1604.06174). A network says in `recomputed_blocks` which of its modules are blocks. Nothing
else changes: names of weights, the random numbers of dropout and, because forward is pure (statistics.py), what is computed.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from bigtrain.errors import UserError


def recompute_blocks(network: nn.Module) -> None:
    """From now on `network` computes its blocks again in the backward pass instead of keeping their activations.

    Blocks are the modules of the classes in its `recomputed_blocks`, and none of them holds another. Every collective within
    a block is issued a second time, in the order of the backward pass, which is the same on all ranks. Without gradients
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
        # On the instance, around its own forward: a wrapper module would change the names of weights.
        block.forward = _Recomputed(block.forward, _draws(block))


class _Recomputed:
    """A block's forward. An object of its own rather than a closure, so that a deep copy of the block runs the copy."""

    def __init__(self, forward: Callable[..., Any], draws: bool) -> None:
        self.forward, self.draws = forward, draws

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args, **kwargs)
        return checkpoint(self.forward, *args, use_reentrant=False, preserve_rng_state=self.draws, **kwargs)


def _draws(block: nn.Module) -> bool:
    """Whether the block draws random numbers, whose generator's state must then be kept with its inputs."""
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in block.modules())
