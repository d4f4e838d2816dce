"""The strategies `zero1`, `zero2` and `zero3`: one DeepSpeed engine per component (Rajbhandari et al. 2020, arXiv:1910.02054).

DeepSpeed holds the shards, moves gradients and weights between ranks and calls the optimizer on its shard. All that affects
results is our code, as with `ddp`: the loss and each rank's share of it, norm and clipping, the flag that skips an update,
the optimizer, schedules, statistics, averages, checkpoints. The configuration switches off DeepSpeed's own versions.

Forward passes call the plain network, never the engine, so a phase may use a network as often as it likes, frozen or not; and
the backward pass is the loss's own, which reaches as many engines as the phase trains.
The configuration comes from Accelerate's DeepSpeedPlugin. The engines are made in the same way as by `Accelerator.prepare`,
but not by it, because it supports only one engine and requires the transformers library.
"""

import copy
import logging
import os
import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.families.phases import Component
from bigtrain.training.averaging import (
    Average,
    EmaOptions,
    ExtraAverage,
    MovingAverage,
    averaged_and_copied_names,
)
from bigtrain.training.engine.component import Groups, TrainedComponent, prepare_forward
from bigtrain.training.engine.optimizers import (
    allocate_momentum,
    clamp,
    clip_scale,
    grouped_names,
    optimizer_of,
    set_rate,
)
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.partition import Piece, copy_into, cut, pieces_end_to_end, pieces_of_each
from bigtrain.training.engine.replicated import copied_to_host
from bigtrain.training.schedule import learning_rate

BUCKET_ELEMENTS = 2**24
"""Elements of a bucket of gradients; DeepSpeed's default, 5e8, would take two gigabytes per component."""
PERSISTENT_ELEMENTS = 10**5
"""zero3 keeps parameters up to this size on every rank, because gathering them would cost more than it saves."""


class ZeroTrainer(TrainedComponent):
    """One component under `zero1`, `zero2` or `zero3`."""

    loss_divisor = 1  # DeepSpeed divides the sum of gradients by the number of ranks

    def __init__(
        self,
        network: nn.Module,
        component: Component,
        ema: EmaOptions,
        options: EngineOptions,
        precision: str,
        saved: Groups | None,
    ) -> None:
        super().__init__(network, component)
        self._device = next(network.parameters()).device
        self._stage = int(options.strategy.removeprefix("zero"))
        self._offload = options.offload_optimizer
        self._shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        self._reached = False
        for parameter in self._parameters.values():
            assert parameter.dtype == torch.float32, "DeepSpeed keeps weights in float32"
            parameter.requires_grad_(True)  # DeepSpeed never trains a parameter that is frozen when it starts
            parameter.register_post_accumulate_grad_hook(self._arrived)
        for parameter in network.parameters():
            # DeepSpeed would broadcast every parameter, which all ranks have already, and fails with a scalar. This
            # attribute prevents it.
            parameter.ds_optim_param = False  # type: ignore[attr-defined]
        self._averages: Mapping[str, MovingAverage] = {}
        if self._stage < 3:
            self._averages = Average.all_of(network, component.averaged, ema)
        else:
            self._empty = _without_parameters(network)
            for parameter in network.parameters():  # zero3 broadcasts them nevertheless
                parameter.data = parameter.data.reshape(parameter.shape or (1,))
        prepare_forward(network, options)
        self._names = grouped_names(component, self._parameters)
        self._optimizer = optimizer_of(component, self._parameters)
        self._guard = _Guard(self._optimizer)
        self._engine = _start_engine(network, self._optimizer, options, precision, self._device)
        self._partitions = self._find_partitions()
        # zero3 cuts frozen parameters up as well. The last of the lists that follow are theirs, if there are any.
        self._all_names, self._all_partitions = list(self._names), list(self._partitions)
        if self._stage == 3 and component.frozen:
            frozen = {name: each for name, each in network.named_parameters() if name in component.frozen}
            self._all_names.append(list(frozen))
            self._all_partitions.append(torch.cat([_shard(each) for each in frozen.values()]))
        if self._stage == 3 and component.averaged:
            self._averages = {
                name: ShardedAverage(self._all_partitions, network, options) for name, options in ema.by_name().items()
            }
        allocate_momentum(self._optimizer, self._partitions)
        if saved is not None:
            self._load(saved)

    def _find_partitions(self) -> list[Tensor]:
        """This rank's flat float32 shard of each group of parameters, on which DeepSpeed calls the optimizer."""
        sharded = self._engine.optimizer
        flats = sharded.single_partition_of_fp32_groups if self._stage < 3 else sharded.fp32_partitioned_groups_flat
        assert len(flats) == len(self._names), f"{len(flats)} partitions of {len(self._names)} groups of parameters"
        return list(flats)

    def _pieces(self, rank: int) -> list[list[Piece]]:
        """The pieces of each partition."""
        pieces = []
        for names, partition in zip(self._all_names, self._all_partitions, strict=True):
            sizes = {name: self._shapes[name].numel() for name in names}
            if self._stage < 3:
                pieces.append(pieces_end_to_end(sizes, rank, partition.numel()))
            else:
                pieces.append(pieces_of_each(sizes, rank, world.size()))
        return pieces

    # -- an update --------------------------------------------------------------------------------------------------

    def waited_s(self) -> None:
        return None

    def start_update(self) -> None:
        """DeepSpeed clears gradients at the end of an update, but where it adds them up in one buffer it clears only what the
        next update reaches."""
        self._reached = False
        if self._stage == 3:
            self._engine.optimizer.grad_partitions_flat_buffer.zero_()
        if self._offload:
            for partition in self._partitions:
                if partition.grad is not None:
                    partition.grad.zero_()

    def before_backward(self, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # The engine's forward would do this; without it zero3 keeps only the last microbatch's gradient.
        self._engine.optimizer.clear_backward_seen_flag()

    def after_backward(self) -> None:
        """What the engine's own `backward` does after a loss's, which it can do for one engine only."""
        if self._stage < 3:
            self._engine.optimizer.setup_buckets()  # the first gradient would do this, but none may have come
        self._engine.allreduce_gradients()
        self._engine.optimizer.backward_epilogue()

    def _arrived(self, parameter: Tensor) -> None:
        self._reached = True

    @property
    def reached(self) -> bool:
        return self._reached

    def gradient_norm(self) -> Tensor:
        norms = torch.stack(torch._foreach_norm(self._gradients()))
        self._norm = world.sum_over_ranks(norms.square().sum().to(self._device)).sqrt()
        return self._norm

    def _gradients(self) -> list[Tensor]:
        """This rank's shard of the summed gradient, before DeepSpeed copies it to where the optimizer reads it."""
        if self._offload:
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)  # DeepSpeed's copies to host memory may still be under way
            return [partition.grad for partition in self._partitions if partition.grad is not None]
        averaged = self._engine.optimizer.averaged_gradients
        return [gradient for group in range(len(self._partitions)) for gradient in averaged[group]]

    def update(self, step: int, applied: Tensor, weight_clip: float | None) -> None:
        self.learning_rate = learning_rate(self.options, step)
        set_rate(self._optimizer, self.learning_rate)
        clipped_to = self.options.clipped_to
        scale = None if clipped_to is None else clip_scale(self._norm, clipped_to)
        self._guard.expect(applied.to(self._partitions[0].device), scale, weight_clip)
        self._engine.step()

    # -- averages ---------------------------------------------------------------------------------------------------

    def update_averages(self, step: int, applied: Tensor) -> None:
        for average in self._averages.values():
            average.update(step, applied)

    def averaged_network(self) -> nn.Module:
        average = self._averages.get("average")
        if self._stage < 3:
            return average.network if isinstance(average, Average) else self.network
        assert average is None or isinstance(average, ShardedAverage)
        full = {name: torch.empty(shape, device=self._device) for name, shape in self._shapes.items()}
        self._gather(self._all_partitions if average is None else average.partitions, full)
        parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in full.items()}
        network = copy.deepcopy(self._empty, {id(p): parameters[n] for n, p in self._empty.named_parameters()}).eval()
        for name, buffer in (average.buffers if average is not None else _buffers(self.network)).items():
            network.get_buffer(name).copy_(buffer)
        return network

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def averages(self, names: Collection[str]) -> Groups:
        groups: dict[str, Mapping[str, Tensor]] = {
            name: self._collect_whole(shard.partitions, shard.buffers)
            for name, shard in self._sharded_averages().items()
            if name in names
        }
        if not world.is_main():
            return {}
        full = {name: average.network.state_dict() for name, average in self._full_averages().items() if name in names}
        return {**copied_to_host(full), **groups}

    def snapshot(self) -> Groups:
        groups: dict[str, Mapping[str, Tensor]] = {"optimizer": self._collect_moments()}
        if self._stage == 3:
            groups["weights"] = self._collect_whole(self._all_partitions, _buffers(self.network))
        elif world.is_main():
            groups |= copied_to_host({"weights": self.network.state_dict()})
        groups |= self.averages(self._averages)
        return groups if world.is_main() else {}

    def _collect_whole(self, flats: Sequence[Tensor], buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**self._collect(flats), **copied_to_host({"buffers": buffers})["buffers"]}

    def _full_averages(self) -> dict[str, Average]:
        return {name: average for name, average in self._averages.items() if isinstance(average, Average)}

    def _sharded_averages(self) -> "dict[str, ShardedAverage]":
        return {name: average for name, average in self._averages.items() if isinstance(average, ShardedAverage)}

    def _collect_moments(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter, on the main rank; every rank takes part."""
        moments: dict[str, Tensor] = {}
        states = [self._optimizer.state.get(partition, {}) for partition in self._partitions]
        # Sorted, because after a resume the order may differ from rank to rank, and each key is a collective.
        for key in sorted(states[0]):
            values = [state[key] for state in states]
            if not isinstance(values[0], Tensor):
                continue
            if values[0].shape == self._partitions[0].shape:
                moments |= {f"{name}/{key}": moment for name, moment in self._collect(values).items()}
            else:  # a count, the same for all parameters of a group
                for names, value in zip(self._names, values, strict=True):
                    moments |= {f"{name}/{key}": value.detach().cpu().clone() for name in names}
        return moments

    def _collect(self, flats: Sequence[Tensor]) -> dict[str, Tensor]:
        """Full tensors by parameter from all ranks' flat shards, in host memory of the main rank; empty on other ranks."""
        groups = self._all_names[: len(flats)]
        full = {name: torch.empty(self._shapes[name] if world.is_main() else 0) for group in groups for name in group}
        self._gather(flats, full if world.is_main() else None)
        return full

    def _gather(self, flats: Sequence[Tensor], full: Mapping[str, Tensor] | None) -> None:
        """Copies every rank's flat shards into `full`, one rank at a time, so that it needs memory for one partition.

        `flats`: of all parameters, or, as moments are, of those that are trained."""
        for rank in range(world.size()):
            for flat, pieces in zip(flats, self._pieces(rank), strict=False):
                part = self._part(flat, rank)
                if full is not None:
                    copy_into(full, part, pieces)

    def _part(self, flat: Tensor, rank: int) -> Tensor:
        """The flat shard of a rank, on every rank."""
        own = rank == world.rank()
        part = flat.detach().to(self._device) if own else torch.empty_like(flat, device=self._device)
        if world.size() > 1:
            dist.broadcast(part, src=rank)
        return part

    @torch.no_grad()
    def _load(self, groups: Groups) -> None:
        """Restores optimizer and averages."""
        pieces = self._pieces(world.rank())
        for name, average in self._full_averages().items():
            average.network.load_state_dict(groups[name])
        for name, sharded in self._sharded_averages().items():
            for partition, of_partition in zip(sharded.partitions, pieces, strict=True):
                cut(groups[name], of_partition, partition)
            for key, buffer in sharded.buffers.items():
                buffer.copy_(groups[name][key])
        by_key: dict[str, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            parameter, _, key = name.rpartition("/")
            by_key.setdefault(key, {})[parameter] = value
        for key, values in by_key.items():
            counts = key == "step" or any(value.shape != self._shapes[name] for name, value in values.items())
            for names, partition, of_partition in zip(self._names, self._partitions, pieces, strict=False):
                if counts:  # the same for all parameters of a group
                    moment = values[names[0]].to(partition.device, copy=True)
                else:
                    moment = torch.zeros_like(partition)
                    cut(values, of_partition, moment)
                self._optimizer.state[partition][key] = moment


class ShardedAverage(MovingAverage):
    """One average under zero3: of this rank's flat shards of the weights, and of the buffers, which all ranks have."""

    def __init__(self, weights: Sequence[Tensor], network: nn.Module, options: EmaOptions | ExtraAverage) -> None:
        sources = _buffers(network)
        self.partitions = [partition.detach().clone() for partition in weights]
        self.buffers = {name: buffer.detach().clone() for name, buffer in sources.items()}
        names, copied = averaged_and_copied_names(network)
        averaged = [name for name in names if name in sources]
        super().__init__(
            options,
            (
                [*self.partitions, *(self.buffers[n] for n in averaged)],
                [*weights, *(sources[n] for n in averaged)],
            ),
            ([self.buffers[name] for name in copied], [sources[name] for name in copied]),
        )


class _Guard:
    """Hooks around the optimizer's step, which DeepSpeed calls once for each group of parameters: clip the gradient, set the
    flag that skips the step, and clamp the weights before DeepSpeed hands them to the network. All of it stays on the device.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    def expect(self, applied: Tensor, scale: Tensor | None, weight_clip: float | None) -> None:
        """Call before each update. `scale`: what gradients are multiplied by; None: they are not clipped."""
        self._applied, self._scale, self._weight_clip = applied, scale, weight_clip

    def _before_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        gradients = [weights.grad for weights in _weights_of(optimizer) if weights.grad is not None]
        if self._scale is not None:
            torch._foreach_mul_(gradients, self._scale.to(gradients[0].device))
        optimizer.found_inf = (~self._applied).float()

    @torch.no_grad()
    def _after_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        if self._weight_clip is not None:
            clamp(_weights_of(optimizer), self._weight_clip, self._applied)


def _weights_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The partition that DeepSpeed has the optimizer update now."""
    return [weights for group in optimizer.param_groups for weights in group["params"]]


def _configuration(options: EngineOptions, precision: str, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration, made by Accelerate's plugin. Batch sizes are only for DeepSpeed's own reports."""
    stage = int(options.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
        "sub_group_size": 2**62,  # one partition of any size for each group of parameters
    }
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    elif stage < 3:
        zero["compute_grad_norm"] = False  # it would wait for the device; ours does not
    configuration: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # we clip; the default would be 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
    }
    if precision == "bf16":
        # Not `bf16`, which would convert weights and batch norm to bfloat16. With no module listed as "safe", gradients and
        # gathered weights are communicated in float32, as under ddp.
        configuration["torch_autocast"] = {
            "enabled": True,
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        }
    from accelerate.utils import DeepSpeedPlugin

    return DeepSpeedPlugin(hf_ds_config=configuration, zero3_init_flag=False).deepspeed_config


def _start_engine(
    network: nn.Module, optimizer: torch.optim.Optimizer, options: EngineOptions, precision: str, device: torch.device
) -> Any:
    world.ensure_group(device)
    os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed requires it
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it logs to stdout, which is for results
    # On CPUs it would compile an extension at first use, whose sums bypass the process group and its timeouts.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    # It calls these collectives by names of which newer torch warns at every call.
    for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    configuration = _configuration(options, precision, device)
    return deepspeed.initialize(model=network, optimizer=optimizer, config_params=configuration)[0]


def _without_parameters(network: nn.Module) -> nn.Module:
    """A copy of a network with its buffers, and with parameters on the meta device."""
    meta_parameters = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, meta_parameters)


def _shard(parameter: Any) -> Tensor:
    """This rank's flat part of a parameter that zero3 has cut up, padded."""
    return parameter.ds_tensor.detach().flatten()


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers, which a checkpoint holds."""
    parameters = dict(network.named_parameters())
    return {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if name not in parameters}
