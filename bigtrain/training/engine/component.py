"""What the trainer sees of one player under a strategy, and what every strategy shares.

`ddp` (replicated.py) holds every player whole on every rank; `zero1`, `zero2` and `zero3` (zero.py) shard it with DeepSpeed.
What a checkpoint holds is the same under each, so a run may go on under another strategy and another number of processes.
"""

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from bigtrain.cluster.watchdog import START_S
from bigtrain.errors import UserMistake
from bigtrain.families.family import Family, OptimizerOptions, Player
from bigtrain.networks.layers import statistics
from bigtrain.networks.layers.recomputation import recompute_blocks
from bigtrain.options import Options
from bigtrain.training.averaging import EmaOptions

Groups = Mapping[str, Mapping[str, Tensor]]
"""A checkpoint's tensors of one player, on the CPU, by parameter name: `weights` (parameters and buffers), `optimizer`
(NAME/exp_avg and so on) and, for an averaged player, `average` and `average_NAME` for each further average. Those of a
checkpoint that is taken over are mapped from its files: what stays of them is copied."""


class EngineOptions(Options):
    """How the work is spread over devices; never what is computed."""

    strategy: Literal["ddp", "zero1", "zero2", "zero3"] = "ddp"
    """ddp: every rank holds every player whole. zero1: optimizer moments are sharded over ranks; zero2: gradients too;
    zero3: weights and averages too (Rajbhandari et al. 2020, arXiv:1910.02054; DeepSpeed)."""
    offload_optimizer: bool = False
    """Under zero1 to zero3: keep optimizer moments, and make the update, in host memory."""
    compile: bool = False
    """Compile each player's network with torch.compile; not under zero3, whose gathering of weights it would cut apart."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each block of a network, and compute its activations again in the backward pass: less memory
    for about a third more work, and the same result."""
    hang_timeout_s: float | None = Field(default=300.0, gt=0, le=START_S)
    """Seconds without progress after which a rank that hangs is named and the job ended; null never ends it (for a
    debugger). What may take long has half an hour: a first step, checkpoints, pictures, evaluations, data from a URL."""

    @model_validator(mode="after")
    def _fit_the_strategy(self) -> "EngineOptions":
        if self.offload_optimizer and self.strategy == "ddp":
            raise ValueError(
                "engine.offload_optimizer: needs a sharding strategy; set engine.strategy: zero1 (or zero2, zero3)"
            )
        if self.compile and self.strategy == "zero3":
            raise ValueError("engine.compile: cannot go with engine.strategy: zero3; take zero2, or compile: false")
        return self


class TrainedPlayer(ABC):
    """One player while it is trained: its network, its optimizer, its gradients, its averages."""

    def __init__(self, network: nn.Module, options: OptimizerOptions) -> None:
        self.network = network
        self.options = options
        self._parameters = dict(network.named_parameters())

    def focus(self, on: bool) -> None:
        """Whether the current phase trains this player: gradients flow into it and its statistics take notes."""
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
        """The main average, or the network itself of a player that has none, whole; called on every rank."""

    @abstractmethod
    def snapshot(self) -> Groups:
        """What a checkpoint holds of this player, copied to host memory, on the main rank; called on every rank, empty on
        the others. Later updates do not change it."""


def place(network: nn.Module, device: torch.device, engine: EngineOptions) -> nn.Module:
    """The network on its device, in train mode and in the memory layout of its strategy."""
    network = network.train().to(device)
    # DeepSpeed lays all parameters into one flat buffer, in their logical order.
    return network.to(memory_format=torch.channels_last) if engine.strategy == "ddp" else network


def make_player(
    network: nn.Module, player: Player, ema: EmaOptions, engine: EngineOptions, precision: str, saved: Groups | None
) -> TrainedPlayer:
    """Puts a network into training under the strategy; called on every rank, with equal networks.

    `network` comes from `place` and has the weights to begin with; `saved`: what a checkpoint holds of the player, whose
    optimizer and averages are taken over. Averages begin at the weights where there is none.
    """
    if engine.strategy == "ddp":
        from bigtrain.training.engine.replicated import ReplicatedPlayer

        return ReplicatedPlayer(network, player, ema, engine, saved)
    from bigtrain.training.engine.zero import ZeroPlayer  # imports DeepSpeed, which takes seconds

    return ZeroPlayer(network, player, ema, engine, precision, saved)


def prepare_forward(network: nn.Module, engine: EngineOptions) -> None:
    """Activation checkpointing and compilation, in place; after averages were copied, which have no backward pass."""
    if engine.activation_checkpointing:
        recompute_blocks(network)
    if engine.compile:
        network.compile()


def check_strategy(family: Family, engine: EngineOptions) -> None:
    """Raises UserMistake if a phase of the family cannot be trained under the strategy."""
    for phase in family.phases:
        if engine.strategy == "zero3" and phase.needs_whole_weights:
            raise UserMistake(
                f"engine.strategy: zero3 cannot train this recipe, because phase {phase.name} adds a penalty on whole weights "
                f"of the {phase.player}, which zero3 never holds; take zero2, or turn the penalty off (it is a key of family)"
            )


def optimizer_of(player: Player, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fused optimizer: one kernel, and a device flag (`found_inf`) that turns its step into nothing."""
    options = player.optimizer
    if options.kind == "sgd":
        return torch.optim.SGD(
            parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
        )
    kind = torch.optim.Adam if options.kind == "adam" else torch.optim.AdamW
    return kind(
        parameters, options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay, fused=True
    )


def allocate_momentum(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> None:
    """SGD would leave the momentum buffer, which it allocates at its first update, unwritten if that is skipped."""
    if optimizer.defaults.get("momentum"):
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def configure_kernels(deterministic: bool) -> None:
    """deterministic: kernels that give the same bits at every run."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it is first used
    torch.backends.cudnn.benchmark = not deterministic
    torch.use_deterministic_algorithms(deterministic)


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """bf16: matrix products and convolutions in bfloat16, everything else in the weights' own precision."""
    if precision == "bf16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()
