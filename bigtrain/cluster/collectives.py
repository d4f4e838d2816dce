"""Sums, means and gathers over ranks that gradients flow through, for losses that couple the samples of a global microbatch.

Every rank's loss is its share of one loss: the mean of the ranks' losses is minimised, and the engine sums the gradients that
each rank gets of loss / ranks. Under that convention the derivative of a sum over ranks is a sum over ranks, and so on: all of
these may be differentiated any number of times. All ranks must call them, and differentiate through them, in the same order.
On one rank they return what they are given.
"""

from typing import Any

import torch
from torch import Tensor

from bigtrain.cluster import world


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of all ranks' `x`, which have the same shape; a new tensor on every rank, unlike that of `world`."""
    return _Sum.apply(x) if world.size() > 1 else x


def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of all ranks' `x`, which have the same shape, on every rank."""
    return sum_over_ranks(x) / world.size() if world.size() > 1 else x


def gather_over_ranks(x: Tensor) -> Tensor:
    """All ranks' `x` [n, ...], which have the same shape, in the order of ranks: [ranks n, ...] on every rank."""
    return _Gather.apply(x) if world.size() > 1 else x


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return world.sum_over_ranks(x.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Sum.apply(grads[0])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return world.concatenated_over_ranks(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return _Sum.apply(grads[0]).chunk(world.size())[world.rank()]
