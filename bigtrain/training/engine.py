"""Backward passes and updates of one player under a strategy. The trainer sees `TrainedPlayer` and no more.

`ddp` replicates every player on every rank. A strategy that shards (ZeRO) is another class with the same five methods
(`backward`, `update`, `tensors`, `load` and `averages`); what a checkpoint holds is the same under each.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.families.family import OptimizerOptions, Player
from bigtrain.networks import statistics
from bigtrain.networks.recomputation import recompute_blocks
from bigtrain.options import Options
from bigtrain.training.averaging import Average, EmaOptions
from bigtrain.training.gradients import GradientSum
from bigtrain.training.schedule import learning_rate


class EngineOptions(Options):
    """How the work is spread over devices; never what is computed."""

    strategy: Literal["ddp"] = "ddp"
    """ddp: every rank holds every player, gradients are summed over ranks."""
    compile: bool = False
    """Compile each player's network with torch.compile."""
    activation_checkpointing: bool = False
    """Keep only the inputs of each block of a network, and compute its activations again in the backward pass: less memory
    for about a third more work, and the same result."""


class TrainedPlayer:
    """One player under `ddp`: its network on the device, its optimizer, its gradients, its average.

    Tensors of a checkpoint are named by parameter: `weights` (parameters and buffers), `optimizer` (NAME/exp_avg and so
    on) and, for an averaged player, `average` and `average_NAME` for each further average.
    """

    def __init__(
        self, network: nn.Module, player: Player, ema: EmaOptions, engine: EngineOptions, device: torch.device
    ) -> None:
        """`network`: freshly built, equal on every rank, on the CPU; it is moved to the device."""
        self.options = player.optimizer
        self.network = network.train().to(device).to(memory_format=torch.channels_last)
        self.averages: dict[str, Average] = {}
        if player.averaged:
            self.averages["average"] = Average(self.network, ema)
            for name, further in ema.further.items():
                self.averages[f"average_{name}"] = Average(self.network, further)
        self._named = dict(self.network.named_parameters())
        self._parameters = list(self._named.values())
        self._optimizer = build_optimizer(player.optimizer, self._parameters)
        self._gradients = GradientSum(self._parameters, world.size())
        if engine.activation_checkpointing:  # after the averages, which have no backward pass
            recompute_blocks(self.network)
        if engine.compile:
            self.network.compile()

    @property
    def learning_rate(self) -> float:
        """The rate of the last update."""
        return self._optimizer.param_groups[0]["lr"]

    def waited_s(self) -> float | None:
        """Seconds since the last call that this rank waited for the sum of gradients; waits for the device.

        A strategy that waits within DeepSpeed, where nobody can see it, returns None.
        """
        return self._gradients.waits.read()

    def focus(self, on: bool) -> None:
        """Whether the current phase trains this player: gradients flow into it and its statistics take notes."""
        for parameter in self._parameters:
            parameter.requires_grad_(on)
        statistics.set_recording(self.network, on)

    def start_update(self) -> None:
        self._gradients.reset()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Adds the gradient of `loss`, this rank's share of the update's loss; `last`: no other backward follows."""
        if last:
            self._gradients.arm()
        (loss / world.size()).backward()

    def update(self, step: int, sound: Tensor) -> tuple[Tensor, Tensor]:
        """Clips, steps and commits statistics, unless a gradient is not finite or `sound` (bool scalar) is False.

        Returns (whether the update was made, the gradient's norm before clipping): scalars on the device.
        """
        gradients = self._gradients.wait()
        norm = torch.nn.utils.get_total_norm(gradients)
        finite = sound & torch.isfinite(norm)
        if self.options.clip_norm is not None:
            torch._foreach_mul_(gradients, (self.options.clip_norm / (norm + 1e-6)).clamp(max=1.0))
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step)
        # Fused optimizers make no update, and count none, where found_inf is 1: no host has to look at the flag.
        self._optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        statistics.commit(self.network, finite)
        return finite, norm

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of this player, whole on every rank."""
        state = self._optimizer.state
        moments = {
            f"{name}/{key}": value
            for name, parameter in self._named.items()
            for key, value in state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        groups = {"weights": self.network.state_dict(), "optimizer": moments}
        return groups | {name: average.network.state_dict() for name, average in self.averages.items()}

    @torch.no_grad()
    def load(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes over what `tensors` gave, in place, in the memory layout of this device."""
        self.network.load_state_dict(groups["weights"])
        for name, average in self.averages.items():
            average.network.load_state_dict(groups[name])
        self._optimizer.state.clear()
        for name, value in groups["optimizer"].items():
            parameter_name, _, key = name.rpartition("/")
            parameter = self._named[parameter_name]
            moment = torch.empty_like(parameter, dtype=value.dtype) if value.shape == parameter.shape else value
            self._optimizer.state[parameter][key] = moment.to(parameter.device).copy_(value)


def build_optimizer(options: OptimizerOptions, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """A fused optimizer: one kernel, and a device flag (`found_inf`) that turns its step into nothing."""
    if options.kind == "sgd":
        sgd = torch.optim.SGD(
            parameters, options.lr, momentum=options.momentum, weight_decay=options.weight_decay, fused=True
        )
        if options.momentum:  # else a skipped first update would leave the buffer that it allocates unwritten
            for parameter in parameters:
                sgd.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return sgd
    kind = torch.optim.Adam if options.kind == "adam" else torch.optim.AdamW
    return kind(
        parameters, options.lr, betas=options.betas, eps=options.eps, weight_decay=options.weight_decay, fused=True
    )


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
