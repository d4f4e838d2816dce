"""The sum of gradients over ranks, overlapped with the backward pass, in a fixed order.

Why not DistributedDataParallel: it rebuilds its buckets after a process's first backward pass. From three ranks on, the
layout decides the order in which a ring adds. So a resumed run, whose process is new, would differ from the run that was
never stopped in the last bit of its first step. Here the layout is a function of the parameters alone. And a network remains
a plain module, which a phase may call as often as it likes, frozen or not.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.training.monitoring.comm_timer import CommTimer

BUCKET_BYTES = 25 * 2**20
"""Large enough to fill the links, small enough to start early; what DistributedDataParallel uses."""


class _Bucket:
    """Gradients that are reduced together: views of one flat buffer, into which autograd adds."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.parameters = parameters
        first = parameters[0]
        self.flat = torch.zeros(sum(p.numel() for p in parameters), dtype=first.dtype, device=first.device)
        self.missing = 0
        self.work: Any = None
        offset = 0
        for parameter in parameters:
            # The parameter's own strides (channels_last), because fused optimizers read both as flat memory.
            parameter.grad = self.flat.as_strided(parameter.size(), parameter.stride(), offset)
            offset += parameter.numel()


class GradientSum:
    """Sums the gradients of `parameters` over all ranks during the backward pass of the last microbatch.

    Usage per update: `reset()`, backward passes, `arm()` before the last of them, `wait()` after it. On a single rank there
    are no buckets, and nothing is summed. Where a backward pass reaches several components, each has its own sum: the order of
    their collectives is that in which the pass reaches them, which is the same on all ranks.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], world: int) -> None:
        self._parameters = parameters
        self._armed = False
        self._arrivals = 0
        self._buckets = [_Bucket(group) for group in _groups(parameters)] if world > 1 else []
        self._next = 0
        self.waits = CommTimer(parameters[0].device)
        """The time of the sum that did not overlap with the backward pass."""
        for bucket in self._buckets:
            for parameter in bucket.parameters:
                parameter.register_post_accumulate_grad_hook(lambda _, bucket=bucket: self._arrived(bucket))

    @property
    def reached(self) -> bool:
        """Whether a gradient has reached one of the parameters since `reset`, on this rank; until `wait`."""
        return self._arrivals > 0 if self._buckets else any(p.grad is not None for p in self._parameters)

    def reset(self) -> None:
        self._arrivals = 0
        if not self._buckets:
            for parameter in self._parameters:
                parameter.grad = None
        for bucket in self._buckets:
            bucket.flat.zero_()

    def arm(self) -> None:
        """The next backward pass is the update's last: reduce each bucket as soon as it is complete."""
        self._armed = True
        self._next = 0
        for bucket in self._buckets:
            bucket.missing = len(bucket.parameters)

    def wait(self) -> list[Tensor]:
        """The summed gradients, once all have arrived; zero for a parameter that the loss does not depend on."""
        self._send(everything=True)
        self._armed = False
        with self.waits.waiting():
            for bucket in self._buckets:
                bucket.work.wait()
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        return [parameter.grad for parameter in self._parameters if parameter.grad is not None]

    def _arrived(self, bucket: _Bucket) -> None:
        self._arrivals += 1
        if self._armed:
            bucket.missing -= 1
            self._send(everything=False)

    def _send(self, everything: bool) -> None:
        """Reduces complete buckets in their fixed order, so that all ranks call the same collectives in the same order."""
        while self._next < len(self._buckets) and (everything or self._buckets[self._next].missing <= 0):
            bucket = self._buckets[self._next]
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self._next += 1


def _groups(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Parameters by bucket, in the order in which a backward pass reaches them: roughly the reverse of registration."""
    groups: list[list[nn.Parameter]] = []
    free = 0
    for parameter in reversed(parameters):
        size = parameter.numel() * parameter.element_size()
        if not groups or size > free or groups[-1][0].dtype != parameter.dtype:
            groups.append([])
            free = BUCKET_BYTES
        groups[-1].append(parameter)
        free -= size
    return groups
