"""A GPU that is not there: tensors without storage that say they are on `cuda:0`, and what the host would wait for.

PyTorch's FakeTensorMode runs our code as on a GPU (autocast of CUDA, branches by device) and refuses operations between
devices. Kernels do not run. `Waits` names each operation for which the host would wait for the device.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigtrain.randomness.draws import _bounds, _compiled
from bigtrain.training import trainer
from bigtrain.training.engine.options import EngineOptions

DEVICE = torch.device("cuda", 0)
READ_BY_THE_HOST = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "masked_select", "unique", "_unique2",
    "unique_consecutive", "unique_dim", "bincount", "argwhere",
}  # fmt: skip
"""Operations that wait for their result or its size."""


class Waits(TorchDispatchMode):
    """While `watching`, `found` gets the name of every operation that would make the host wait for the GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.watching = False
        self.found: list[str] = []
        self._pinned: list[Tensor] = []

    def pin(self, tensor: Tensor, device: Any = None) -> Tensor:
        """What Tensor.pin_memory is on a GPU's host."""
        copy = tensor.clone()
        self._pinned.append(copy)
        return copy

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if self.watching and (reason := self._reason(func, args, kwargs, out)) is not None:
            self.found.append(f"{func}: {reason}")
        return out

    def _reason(self, func: Any, args: Any, kwargs: Any, out: Any) -> str | None:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_gpu = any(tensor.device.type == "cuda" for tensor in tensors)
        name = func.overloadpacket.__name__
        if on_gpu and name in READ_BY_THE_HOST:
            return "the host reads a value"
        if on_gpu and name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            if any(tensor.dtype == torch.bool for tensor in tree_leaves(args[1]) if isinstance(tensor, Tensor)):
                return "a mask selects an unknown number of elements"
            if any(tensor.device.type == "cpu" for tensor in tree_leaves(args[1]) if isinstance(tensor, Tensor)):
                return "an index is copied from the host"
        if name in ("_to_copy", "copy_", "_copy_from"):
            source, target = (args[1], args[0]) if name == "copy_" else (args[0], out)
            return self._reason_of_copy(source, target, kwargs.get("non_blocking", False) or args[2:3] == (True,))
        return None

    def _reason_of_copy(self, source: Tensor, target: Tensor, non_blocking: bool) -> str | None:
        if source.device.type == target.device.type:
            return None
        if target.device.type == "cpu":
            return "a copy to the host"
        pinned = any(source is one for one in self._pinned)
        return None if pinned and non_blocking else "a copy of pageable memory, or one that is waited for"


def _no_gradients(outputs: Tensor, inputs: Tensor | Sequence[Tensor], **options: Any) -> tuple[Tensor, ...]:
    return tuple(map(torch.zeros_like, [inputs] if isinstance(inputs, Tensor) else inputs))


@contextmanager
def pretended_gpu() -> Iterator[Waits]:
    """Within it torch behaves as on a machine with a GPU, on tensors without storage."""
    waits = Waits()
    _compiled.cache_clear()
    _bounds.cache_clear()
    patches = (
        mock.patch.object(trainer, "to_device", moved),
        # Autograd asks a real GPU for its streams.
        mock.patch.object(trainer, "backward"),
        mock.patch.object(torch.autograd, "grad", _no_gradients),
        mock.patch.object(Tensor, "pin_memory", lambda tensor, device=None: waits.pin(tensor)),
        mock.patch.object(torch.cuda, "default_generators", (torch.default_generator,)),
        mock.patch.object(torch.cuda, "init"),
        mock.patch.object(torch.cuda, "synchronize", side_effect=lambda *_: waits.found.append("synchronize")),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
        mock.patch.object(torch.cuda, "get_device_name", return_value="no GPU"),
        mock.patch.object(torch.cuda, "is_bf16_supported", return_value=True),
        mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", return_value=False),
    )
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(waits)
        yield waits
    _compiled.cache_clear()
    _bounds.cache_clear()


def moved(network: nn.Module, device: torch.device, engine: EngineOptions) -> nn.Module:
    """As the trainer's `to_device` does; torch cannot move the tensors of FakeTensorMode in place, so they are replaced."""
    for module in network.train().modules():
        for name, parameter in module.named_parameters(recurse=False):
            there = parameter.detach().to(device)
            in_layout = there.contiguous(memory_format=torch.channels_last) if there.dim() == 4 else there
            setattr(module, name, nn.Parameter(in_layout))
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)
    return network
