"""FLOPs and memory of a step, counted on tensors without storage: no data, no GPU, seconds for any size.

Every phase runs once, forward and backward, under PyTorch's FakeTensorMode with the kernels and the autocast rules of a CPU.
Three things differ on a GPU: a kernel may keep other intermediates; attention with different sizes of keys and values
(BigGAN's) is fused there, while here its matrix of logits is computed; cuDNN and NCCL have their own workspaces.
"""

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bigtrain.cluster import world
from bigtrain.data.fields.label import KNOWN_LABEL
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Microbatch, OptimizerOptions, Phase
from bigtrain.networks.layers import statistics
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.randomness import Draws, Indices
from bigtrain.training.engine.kernels import autocast
from bigtrain.training.engine.optimizers import moments_per_weight
from bigtrain.training.phases import trained

CPU = torch.device("cpu")


@dataclass(frozen=True)
class ComponentCost:
    """One component's full tensors in bytes; `parameters` is a count."""

    parameters: int
    weights: int
    buffers: int
    """Statistics: running moments, power-iteration vectors, codebooks, and the buffers that record a batch's statistics."""
    moments: int
    """The optimizer's state."""
    average: int
    """One average of this component; 0 if it is not averaged."""
    trained: bool = True
    """Whether it has an optimizer, and so gradients."""


@dataclass(frozen=True)
class PhaseCost:
    """One phase on one rank's slice of one microbatch; FLOPs count a multiplication and an addition as two."""

    name: str
    flops: int
    """Of matrix products and convolutions, forward and backward, not counting what activation checkpointing recomputes."""
    update_flops: int
    """Of the weight penalty, once per update."""
    kept: int
    """Bytes that the forward pass keeps for the backward pass."""
    peak: int
    """Largest number of bytes at one time in forward and backward, besides weights, buffers and gradients."""
    runs: float
    """Mean number of updates of this phase per step."""


@dataclass(frozen=True)
class StepCost:
    """The cost of one step on one rank, with `samples` per microbatch and `accumulate` microbatches per update."""

    samples: int
    accumulate: int
    components: Mapping[str, ComponentCost]
    phases: tuple[PhaseCost, ...]
    batch: int
    """Bytes of the images or codes of one microbatch on the device."""

    @property
    def flops(self) -> float:
        """FLOPs of this rank in one step."""
        return sum(phase.runs * (self.accumulate * phase.flops + phase.update_flops) for phase in self.phases)

    @property
    def flops_per_image(self) -> float:
        """FLOPs of one step, all phases together, divided by the images of an update."""
        return self.flops / (self.samples * self.accumulate)

    @property
    def peak(self) -> int:
        """The peak of the phase with the largest peak."""
        return max(phase.peak for phase in self.phases)


def step_cost(
    family: Family,
    samples: int,
    precision: str,
    *,
    accumulate: int = 1,
    steps: int = 1,
    recompute: bool = False,
) -> StepCost:
    """Counts a step of `family` with `samples` per rank and microbatch.

    `steps`: of the run, over which the number of updates of a phase that is not the same at all steps is averaged.
    `recompute`: with activation checkpointing.
    """
    # A rank that counts must not wait for others.
    with world.alone(), FakeTensorMode(allow_non_fake_inputs=True):
        networks = {name: _prepared(component.build()) for name, component in family.components.items()}
        microbatch = _microbatch(family, samples, accumulate)
        counted = {phase.name: _counted(family, phase, networks, microbatch, precision) for phase in family.phases}
        if recompute:
            for name in networks:
                if family.components[name].optimizer is not None:
                    recompute_blocks(networks[name])
            again = {phase.name: _counted(family, phase, networks, microbatch, precision) for phase in family.phases}
            counted = {name: (*counted[name][:2], *again[name][2:]) for name in counted}
        components = {
            name: _component_cost(networks[name], component.optimizer, component.averaged)
            for name, component in family.components.items()
        }
    phases = tuple(
        PhaseCost(phase.name, *counted[phase.name], runs=phase.mean_updates(steps)) for phase in family.phases
    )
    return StepCost(samples, accumulate, components, phases, sum(field.nbytes for field in microbatch.values()))


def flops_of_all_ranks(family: Family, batch_size: int, accumulate: int, precision: str, steps: int) -> float:
    """FLOPs of a mean step of a run over all ranks together: those of a single rank that does all the work."""
    samples = batch_size // accumulate
    return step_cost(family, samples, precision, accumulate=accumulate, steps=steps).flops


def parameters_of(family: Family) -> int:
    """The number of weights of all components."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        networks = [component.build() for component in family.components.values()]
        return sum(parameter.numel() for network in networks for parameter in network.parameters())


class _NoDraws(Draws):
    """Tensors of the right shapes instead of draws, as no values are computed."""

    @property
    def fixed(self) -> Draws:
        return self

    def normal(self, stream: str, indices: Indices, shape: tuple[int, ...], sampler_step: int = 0) -> Tensor:
        return torch.empty(len(indices), *shape)

    def uniform(self, stream: str, indices: Indices, shape: tuple[int, ...] = (), sampler_step: int = 0) -> Tensor:
        return torch.empty(len(indices), *shape, dtype=torch.float64)

    def integers(self, stream: str, indices: Indices, high: int) -> Tensor:
        return torch.empty(len(indices), dtype=torch.int64)

    def categories(self, stream: str, indices: Indices, counts: tuple[int, ...]) -> Tensor:
        return torch.empty(len(indices), dtype=torch.int64)


def _prepared(network: nn.Module) -> nn.Module:
    """The network in train mode and in its layout there. Fake tensors are replaced, as `Module.to` cannot change them."""
    for module in network.train().modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() == 4:
                setattr(module, name, nn.Parameter(parameter.detach().contiguous(memory_format=torch.channels_last)))
    return network


def _microbatch(family: Family, samples: int, accumulate: int) -> Microbatch:
    spec = family.spec
    fields = {name: field for name, field in _fields(spec, samples).items() if name in family.reads}
    return Microbatch(fields, range(samples), _NoDraws(0), CPU, samples * accumulate)


def _fields(spec: DataSpec, samples: int) -> dict[str, Tensor]:
    """Tensors of the data's shapes."""
    fields = {name: torch.empty(samples, dtype=torch.int64) for name in ("label", KNOWN_LABEL)}
    if spec.codes is None:
        images = {name: facts for name, facts in spec.fields.items() if facts["kind"] == "image"}
        shapes: dict[str, tuple[int, ...]] = {
            name: (facts.get("channels", spec.channels), *facts.get("size", spec.size))
            for name, facts in images.items()
        }
        shapes |= {name: tuple(facts["shape"]) for name, facts in spec.fields.items() if facts["kind"] == "array"}
        return fields | {name: torch.empty(samples, *shape) for name, shape in shapes.items()}
    grids = {name: torch.empty(samples, *level.grid, dtype=torch.int64) for name, level in spec.codes.items()}
    return fields | grids


def _counted(
    family: Family, phase: Phase, networks: Mapping[str, nn.Module], microbatch: Microbatch, precision: str
) -> tuple[int, int, int, int]:
    """(FLOPs of one microbatch, of the weight penalty, bytes kept for the backward pass, largest number at one time)."""
    with _focused(family, phase, networks):
        of_penalty = Counter()
        if phase.weight_penalty is not None:
            with of_penalty:
                phase.weight_penalty(networks).backward()
        with Counter() as counter:
            loss = _total(phase, networks, microbatch, precision)
            kept = counter.bytes
            if phase.weight_penalty is not None:
                loss = loss + phase.weight_penalty(networks)
            loss.backward()
            del loss
            constants = counter.bytes  # made once and kept for all steps, by whichever pass needs them first
        return counter.flops - of_penalty.flops, of_penalty.flops, kept - constants, counter.peak - constants


def _total(phase: Phase, networks: Mapping[str, nn.Module], microbatch: Microbatch, precision: str) -> Tensor:
    if phase.batch == "none":
        microbatch = Microbatch({}, microbatch.indices, microbatch.draws, CPU, microbatch.global_batch_size)
    with autocast(precision, CPU):
        return phase.loss(networks, microbatch).total


@contextmanager
def _focused(family: Family, phase: Phase, networks: Mapping[str, nn.Module]) -> Iterator[None]:
    """As in training: only the phase's components have gradients and record statistics. Their gradients exist already, so
    that they are not counted."""
    learners = trained(family, phase)
    for name, network in networks.items():
        network.requires_grad_(name in learners)
        statistics.set_recording(network, name in phase.trains)
    parameters = [parameter for name in learners for parameter in networks[name].parameters()]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    yield
    for parameter in parameters:
        parameter.grad = None


class Counter(TorchDispatchMode):
    """Counts the FLOPs of matrix products and convolutions by PyTorch's formulas, and the bytes of tensors that were created
    since it was entered and are still alive.

    A storage counts once, however many tensors share it; tensors that only the autograd graph or an activation checkpoint
    holds count too. PyTorch's FlopCounterMode, which counts by module, would keep some of them alive.
    """

    def __init__(self) -> None:
        from torch.utils.flop_counter import flop_registry  # half a second, and only a count needs it

        super().__init__()
        self.flops = 0
        self._formulas = flop_registry
        self.bytes = 0
        self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {self._address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and (address := self._address(leaf)) not in before:
                self._add(address, leaf.untyped_storage())
        if (formula := self._formulas.get(func.overloadpacket)) is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out

    @staticmethod
    def _address(tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def _add(self, address: int, storage: torch.UntypedStorage) -> None:
        if address in self._sizes:
            return
        self._sizes[address] = storage.nbytes()
        self.bytes += storage.nbytes()
        self.peak = max(self.peak, self.bytes)
        weakref.finalize(storage, self._drop, address).atexit = False

    def _drop(self, address: int) -> None:
        self.bytes -= self._sizes.pop(address)


def _component_cost(network: nn.Module, optimizer: OptimizerOptions | None, averaged: bool) -> ComponentCost:
    parameters = list(network.parameters())
    weights = sum(parameter.nbytes for parameter in parameters)
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    return ComponentCost(
        sum(parameter.numel() for parameter in parameters),
        weights,
        buffers,
        moments_per_weight(optimizer) * weights if optimizer is not None else 0,
        weights + buffers if averaged else 0,
        trained=optimizer is not None,
    )
