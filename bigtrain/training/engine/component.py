"""The trainer's interface to one component, the same under every strategy.

`ddp` (replicated.py) keeps every component on every rank; `zero1`, `zero2` and `zero3` (zero.py) shard it with DeepSpeed. A
frozen component (frozen.py) is on every rank in any case.
Checkpoints have the same content under each, so a run may be resumed with another strategy and number of processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor, nn

from bigtrain.families.phases import Component
from bigtrain.networks.layers import statistics
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.training.engine.options import EngineOptions

Groups = Mapping[str, Mapping[str, Tensor]]
"""A checkpoint's tensors of one component, on the CPU, by parameter name: `weights` (parameters and buffers), `optimizer`
(NAME/exp_avg and so on) and, for an averaged component, `average` and `average_NAME` for each extra average. Tensors of a
checkpoint that is resumed are memory-mapped from its files: copy what is kept."""


class ComponentTrainer(ABC):
    """One component while the family is trained: its network, its statistics, its averages."""

    learning_rate: float | None = None
    """The rate of the last update, in units of which each parameter group has its own; None for a frozen component."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network

    def focus(self, on: bool) -> None:
        """`on`: the current phase trains this component, so its statistics are recorded."""
        statistics.set_recording(self.network, on)

    def commit(self, applied: Tensor) -> None:
        """Applies the statistics that the update's forward passes recorded, unless `applied` (bool scalar) is False."""
        statistics.commit(self.network, applied)

    @abstractmethod
    def update_averages(self, step: int, applied: Tensor) -> None:
        """Call after the updates of `step`; if `applied` (a bool scalar on the device) is False the averages do not move."""

    @abstractmethod
    def averaged_network(self) -> nn.Module:
        """The main average as a full network, or the network itself if the component has none; called on every rank."""

    @abstractmethod
    def averages(self, names: Collection[str]) -> Groups:
        """Those of the component's averages that are named as in a checkpoint, copied to host memory, on the main rank; empty
        on the others, and for a component that has none. Called on every rank. Later updates do not change them."""

    @abstractmethod
    def snapshot(self) -> Groups:
        """The component's tensors for a checkpoint, copied to host memory, on the main rank; empty on the others. Called on
        every rank. Later updates do not change it."""


class TrainedComponent(ComponentTrainer):
    """A component with an optimizer. An update: `start_update`; `backward` once a microbatch, for all components of the phase
    together; `gradient_norm`; and then `update`, when the norms of all of them are known."""

    loss_divisor: int
    """What a rank's loss is divided by before the backward pass, so that gradients become those of the ranks' mean loss."""

    def __init__(self, network: nn.Module, component: Component) -> None:
        super().__init__(network)
        assert component.optimizer is not None, "a frozen component is not trained"
        self.options = component.optimizer
        self.learning_rate: float = self.options.lr
        self._parameters = {
            name: parameter for name, parameter in network.named_parameters() if name not in component.frozen
        }
        for name in component.frozen:
            network.get_parameter(name).requires_grad_(False)

    def focus(self, on: bool) -> None:
        """`on`: the parameters get gradients, too."""
        super().focus(on)
        for parameter in self._parameters.values():
            parameter.requires_grad_(on)

    @abstractmethod
    def waited_s(self) -> float | None:
        """Seconds since the last call that this rank waited for the sum of gradients; waits for the device.

        None under a strategy that waits inside DeepSpeed, where it cannot be measured.
        """

    @abstractmethod
    def start_update(self) -> None:
        """Clears the gradients of the last update."""

    @abstractmethod
    def before_backward(self, last: bool) -> None:
        """A backward pass begins; `last`: the update's last one."""

    @abstractmethod
    def after_backward(self) -> None:
        """The backward pass has ended."""

    @property
    @abstractmethod
    def reached(self) -> bool:
        """Whether a gradient has reached one of the parameters in this update, on this rank; until `gradient_norm`."""

    @abstractmethod
    def gradient_norm(self) -> Tensor:
        """The global norm of the gradient that is summed over microbatches and ranks, a scalar; waits for the sum."""

    @abstractmethod
    def update(self, step: int, applied: Tensor, weight_clip: float | None) -> None:
        """Clips the gradient, steps, and clamps the parameters to [-weight_clip, weight_clip].

        If `applied` (bool scalar on the device) is False, parameters and the optimizer's state stay as they are.
        """


def backward(loss: Tensor, components: Sequence[TrainedComponent], last: bool) -> None:
    """Adds the gradients of `loss`, this rank's share of the update's loss, to all components that it trains.

    `last`: the update's last backward pass.
    """
    for component in components:
        component.before_backward(last)
    (loss / components[0].loss_divisor).backward()
    for component in components:
        component.after_backward()


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
