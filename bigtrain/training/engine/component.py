"""One component while it is trained, as the trainer sees it under any strategy.

`ddp` (replicated.py) holds every component whole on every rank; `zero1`, `zero2` and `zero3` (zero.py) shard it with DeepSpeed.
What a checkpoint holds is the same under each, so a run may go on under another strategy and another number of processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigtrain.families.family import OptimizerOptions
from bigtrain.networks.layers import statistics
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.training.engine.options import EngineOptions

Groups = Mapping[str, Mapping[str, Tensor]]
"""A checkpoint's tensors of one component, on the CPU, by parameter name: `weights` (parameters and buffers), `optimizer`
(NAME/exp_avg and so on) and, for an averaged component, `average` and `average_NAME` for each further average. Those of a
checkpoint that is taken over are mapped from its files: what stays of them is copied."""


class ComponentTrainer(ABC):
    """One component while it is trained: its network, its optimizer, its gradients, its averages."""

    def __init__(self, network: nn.Module, options: OptimizerOptions) -> None:
        self.network = network
        self.options = options
        self._parameters = dict(network.named_parameters())

    def focus(self, on: bool) -> None:
        """Whether the current phase trains this component: gradients flow into it and its statistics take notes."""
        for parameter in self._parameters.values():
            parameter.requires_grad_(on)
        statistics.set_recording(self.network, on)

    @property
    @abstractmethod
    def learning_rate(self) -> float:
        """The rate of the last update."""

    @abstractmethod
    def waited_s(self) -> float | None:
        """Seconds since the last call that this rank waited for the sum of gradients; waits for the device.

        A strategy that waits within DeepSpeed, where nobody can see it, returns None.
        """

    @abstractmethod
    def start_update(self) -> None:
        """Forgets the gradients of the last update."""

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of `loss`, this rank's share of the update's loss; `last`: no other backward follows."""

    @abstractmethod
    def update(self, step: int, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Clips, steps and commits statistics, unless a gradient is not finite or `sound` (bool scalar) is False.

        Returns (whether the update was made, the gradient's norm before clipping): scalars on the device.
        """

    @abstractmethod
    def update_averages(self, step: int, finite: Tensor) -> None:
        """After the updates of `step`; where `finite` (a bool scalar on the device) is False the averages stay."""

    @abstractmethod
    def averaged_network(self) -> nn.Module:
        """The main average, or the network itself of a component that has none, whole; called on every rank."""

    @abstractmethod
    def snapshot(self) -> Groups:
        """What a checkpoint holds of this component, copied to host memory, on the main rank; called on every rank, empty on
        the others. Later updates do not change it."""


def to_device(network: nn.Module, device: torch.device, engine: EngineOptions) -> nn.Module:
    """The network on its device, in train mode and in the memory layout of its strategy."""
    network = network.train().to(device)
    # DeepSpeed lays all parameters into one flat buffer, in their logical order.
    return network.to(memory_format=torch.channels_last) if engine.strategy == "ddp" else network


def prepare_forward(network: nn.Module, engine: EngineOptions) -> None:
    """Activation checkpointing and compilation, in place; after averages were copied, which have no backward pass."""
    if engine.activation_checkpointing:
        recompute_blocks(network)
    if engine.compile:
        network.compile()
