"""The trainer's interface to one component, the same under every strategy.

`ddp` (replicated.py) keeps every component on every rank; `zero1`, `zero2` and `zero3` (zero.py) shard it with DeepSpeed.
Checkpoints have the same content under each, so a run may be resumed with another strategy and number of processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bigtrain.families.phases import OptimizerOptions
from bigtrain.networks.layers import statistics
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.training.engine.options import EngineOptions

Groups = Mapping[str, Mapping[str, Tensor]]
"""A checkpoint's tensors of one component, on the CPU, by parameter name: `weights` (parameters and buffers), `optimizer`
(NAME/exp_avg and so on) and, for an averaged component, `average` and `average_NAME` for each extra average. Tensors of a
checkpoint that is resumed are memory-mapped from its files: copy what is kept."""


class ComponentTrainer(ABC):
    """One component while it is trained: its network, its optimizer, its gradients, its averages."""

    def __init__(self, network: nn.Module, options: OptimizerOptions) -> None:
        self.network = network
        self.options = options
        self._parameters = dict(network.named_parameters())

    def focus(self, on: bool) -> None:
        """`on`: the current phase trains this component, so its parameters get gradients and its statistics are recorded."""
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

        None under a strategy that waits inside DeepSpeed, where it cannot be measured.
        """

    @abstractmethod
    def start_update(self) -> None:
        """Clears the gradients of the last update."""

    @abstractmethod
    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of `loss`, this rank's share of the update's loss; `last`: the update's last backward."""

    @abstractmethod
    def update(self, step: int, loss_finite: Tensor) -> tuple[Tensor, Tensor]:
        """Clips, steps and commits statistics, unless a gradient is not finite or `loss_finite` (bool scalar) is False.

        Returns (whether the update was applied, the gradient's norm before clipping): scalars on the device.
        """

    @abstractmethod
    def update_averages(self, step: int, finite: Tensor) -> None:
        """Call after the updates of `step`; if `finite` (a bool scalar on the device) is False the averages do not move."""

    @abstractmethod
    def averaged_network(self) -> nn.Module:
        """The main average as a full network, or the network itself if the component has none; called on every rank."""

    @abstractmethod
    def snapshot(self) -> Groups:
        """The component's tensors for a checkpoint, copied to host memory, on the main rank; empty on the others. Called on
        every rank. Later updates do not change it."""


def to_device(network: nn.Module, device: torch.device, engine: EngineOptions) -> nn.Module:
    """The network on its device, in train mode and in the memory layout of its strategy."""
    network = network.train().to(device)
    # DeepSpeed copies all parameters into one flat buffer, in their logical order.
    return network.to(memory_format=torch.channels_last) if engine.strategy == "ddp" else network


def prepare_forward(network: nn.Module, engine: EngineOptions) -> None:
    """Activation checkpointing and compilation, in place. Call it after the averages were copied, which need neither."""
    if engine.activation_checkpointing:
        recompute_blocks(network)
    if engine.compile:
        network.compile()
