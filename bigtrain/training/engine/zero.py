"""The strategies `zero1`, `zero2` and `zero3`: one DeepSpeed engine per component (Rajbhandari et al. 2020, arXiv:1910.02054).

DeepSpeed holds the shards, moves gradients and weights between ranks and calls the optimizer on its shard. All that affects
results is our code, as with `ddp`: the loss and each rank's share of it, norm and clipping, the flag that skips an update,
the optimizer, schedules, statistics, averages, checkpoints. The configuration switches off DeepSpeed's own versions.

Forward passes call the plain network, never the engine, so a phase may use a network as often as it likes, frozen or not.
The configuration comes from Accelerate's DeepSpeedPlugin. The engines are made in the same way as by `Accelerator.prepare`,
but not by it, because it supports only one engine and requires the transformers library.
"""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.families.phases import Component
from bigtrain.networks.layers import statistics
from bigtrain.training.averaging import (
    Average,
    EmaOptions,
    ExtraAverage,
    MovingAverage,
    averaged_and_copied_names,
)
from bigtrain.training.engine.component import ComponentTrainer, Groups, prepare_forward
from bigtrain.training.engine.optimizers import allocate_momentum, optimizer_of
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.partition import Piece, copy_into, cut, pieces_end_to_end, pieces_of_each
from bigtrain.training.engine.replicated import copied_to_host
from bigtrain.training.schedule import learning_rate

BUCKET_ELEMENTS = 2**24
"""Elements of a bucket of gradients; DeepSpeed's default, 5e8, would take two gigabytes per component."""
PERSISTENT_ELEMENTS = 10**5
"""zero3 keeps parameters up to this size on every rank, because gathering them would cost more than it saves."""


class ZeroTrainer(ComponentTrainer):
    """One component under `zero1`, `zero2` or `zero3`."""

    def __init__(
        self,
        network: nn.Module,
        component: Component,
        ema: EmaOptions,
        options: EngineOptions,
        precision: str,
        saved: Groups | None,
    ) -> None:
        super().__init__(network, component.optimizer)
        self._device = next(network.parameters()).device
        self._stage = int(options.strategy.removeprefix("zero"))
        self._shapes = {name: parameter.shape for name, parameter in self._parameters.items()}
        for parameter in self._parameters.values():
            assert parameter.dtype == torch.float32, "DeepSpeed keeps weights in float32"
            parameter.requires_grad_(True)  # DeepSpeed never trains a parameter that is frozen when it starts
            # DeepSpeed would broadcast every parameter, which all ranks have already, and fails with a scalar. This
            # attribute prevents it.
            parameter.ds_optim_param = False  # type: ignore[attr-defined]
        self._averages: Mapping[str, MovingAverage] = {}
        if self._stage < 3:
            self._averages = Average.all_of(network, component.averaged, ema)
        else:
            self._empty = _without_parameters(network)
            for parameter in self._parameters.values():  # zero3 broadcasts them nevertheless
                parameter.data = parameter.data.reshape(parameter.shape or (1,))
        prepare_forward(network, options)
        self._optimizer = optimizer_of(component, list(self._parameters.values()))
        self._guard = _Guard(self._optimizer, component.optimizer.clip_norm, self._device)
        self._engine = _start_engine(network, self._optimizer, options, precision, self._device)
        self._partition: Tensor = self._find_partition()
        if self._stage == 3 and component.averaged:
            self._averages = {
                name: ShardedAverage(self._partition, network, options) for name, options in ema.by_name().items()
            }
        allocate_momentum(self._optimizer, [self._partition])
        if saved is not None:
            self._load(saved)

    def _find_partition(self) -> Tensor:
        """This rank's flat float32 shard of the weights, on which DeepSpeed calls the optimizer."""
        sharded = self._engine.optimizer
        flats = sharded.single_partition_of_fp32_groups if self._stage < 3 else sharded.fp32_partitioned_groups_flat
        assert len(flats) == 1, f"one partition per component, not {len(flats)}"
        return flats[0]

    def _pieces(self, rank: int) -> list[Piece]:
        sizes = {name: shape.numel() for name, shape in self._shapes.items()}
        if self._stage < 3:
            return pieces_end_to_end(sizes, rank, self._partition.numel())
        return pieces_of_each(sizes, rank, world.size())

    # -- an update --------------------------------------------------------------------------------------------------

    @property
    def learning_rate(self) -> float:
        return self._optimizer.param_groups[0]["lr"]

    def waited_s(self) -> None:
        return None

    def start_update(self) -> None:
        """Nothing: DeepSpeed clears gradients at the end of an update."""

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # The engine's forward would do this; without it zero3 keeps only the last microbatch's gradient.
        self._engine.optimizer.clear_backward_seen_flag()
        self._engine.backward(loss, scale_wrt_gas=False)

    def update(self, step: int, loss_finite: Tensor) -> tuple[Tensor, Tensor]:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate(self.options, step)
        self._guard.expect(loss_finite)
        self._engine.step()
        statistics.commit(self.network, self._guard.finite)
        return self._guard.finite, self._guard.norm

    # -- averages ---------------------------------------------------------------------------------------------------

    def update_averages(self, step: int, finite: Tensor) -> None:
        for average in self._averages.values():
            average.update(step, finite)

    def averaged_network(self) -> nn.Module:
        average = self._averages.get("average")
        if self._stage < 3:
            return average.network if isinstance(average, Average) else self.network
        assert average is None or isinstance(average, ShardedAverage)
        full = {name: torch.empty(shape, device=self._device) for name, shape in self._shapes.items()}
        self._gather(self._partition if average is None else average.partition, full)
        parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in full.items()}
        network = copy.deepcopy(self._empty, {id(p): parameters[n] for n, p in self._empty.named_parameters()}).eval()
        for name, buffer in (average.buffers if average is not None else _buffers(self.network)).items():
            network.get_buffer(name).copy_(buffer)
        return network

    # -- checkpoints ------------------------------------------------------------------------------------------------

    def snapshot(self) -> Groups:
        groups: dict[str, Mapping[str, Tensor]] = {"optimizer": self._collect_moments()}
        if self._stage < 3:
            if world.is_main():
                full = {"weights": self.network.state_dict()}
                full |= {name: average.network.state_dict() for name, average in self._full_averages().items()}
                groups |= copied_to_host(full)
        else:
            sharded = {"weights": (self._partition, _buffers(self.network))}
            sharded |= {name: (shard.partition, shard.buffers) for name, shard in self._sharded_averages().items()}
            for name, (flat, buffers) in sharded.items():
                groups[name] = {**self._collect(flat), **copied_to_host({"buffers": buffers})["buffers"]}
        return groups if world.is_main() else {}

    def _full_averages(self) -> dict[str, Average]:
        return {name: average for name, average in self._averages.items() if isinstance(average, Average)}

    def _sharded_averages(self) -> "dict[str, ShardedAverage]":
        return {name: average for name, average in self._averages.items() if isinstance(average, ShardedAverage)}

    def _collect_moments(self) -> dict[str, Tensor]:
        """The optimizer's state by parameter, on the main rank; every rank takes part."""
        moments: dict[str, Tensor] = {}
        # Sorted, because after a resume the order may differ from rank to rank, and each key is a collective.
        for key, value in sorted(self._optimizer.state.get(self._partition, {}).items()):
            if isinstance(value, Tensor) and value.shape == self._partition.shape:
                moments |= {f"{name}/{key}": moment for name, moment in self._collect(value).items()}
            elif isinstance(value, Tensor):  # a count, the same for all
                moments |= {f"{name}/{key}": value.detach().cpu().clone() for name in self._shapes}
        return moments

    def _collect(self, flat: Tensor) -> dict[str, Tensor]:
        """Full tensors by parameter from all ranks' flat shards, in host memory of the main rank; empty on other ranks."""
        full = {name: torch.empty(shape if world.is_main() else 0) for name, shape in self._shapes.items()}
        self._gather(flat, full if world.is_main() else None)
        return full

    def _gather(self, flat: Tensor, full: Mapping[str, Tensor] | None) -> None:
        """Copies every rank's flat shard into `full`, one rank at a time, so that it needs memory for one partition."""
        for rank, part in self._parts(flat):
            if full is not None:
                copy_into(full, part, self._pieces(rank))

    def _parts(self, flat: Tensor) -> Iterator[tuple[int, Tensor]]:
        for rank in range(world.size()):
            own = rank == world.rank()
            part = flat.detach().to(self._device) if own else torch.empty_like(flat, device=self._device)
            if world.size() > 1:
                dist.broadcast(part, src=rank)
            yield rank, part

    @torch.no_grad()
    def _load(self, groups: Groups) -> None:
        """Restores optimizer and averages."""
        pieces = self._pieces(world.rank())
        for name, average in self._full_averages().items():
            average.network.load_state_dict(groups[name])
        for name, sharded in self._sharded_averages().items():
            cut(groups[name], pieces, sharded.partition)
            for key, buffer in sharded.buffers.items():
                buffer.copy_(groups[name][key])
        by_key: dict[str, dict[str, Tensor]] = {}
        for name, value in groups["optimizer"].items():
            parameter, _, key = name.rpartition("/")
            by_key.setdefault(key, {})[parameter] = value
        for key, values in by_key.items():
            if all(value.shape == self._shapes[name] for name, value in values.items()) and key != "step":
                moment = torch.zeros_like(self._partition)
                cut(values, pieces, moment)
            else:  # a count, the same for all
                moment = next(iter(values.values())).to(self._partition.device, copy=True)
            self._optimizer.state[self._partition][key] = moment


class ShardedAverage(MovingAverage):
    """One average under zero3: of this rank's flat shard of the weights, and of the buffers, which all ranks have."""

    def __init__(self, weights: Tensor, network: nn.Module, options: EmaOptions | ExtraAverage) -> None:
        sources = _buffers(network)
        self.partition = weights.detach().clone()
        self.buffers = {name: buffer.detach().clone() for name, buffer in sources.items()}
        names, copied = averaged_and_copied_names(network)
        averaged = [name for name in names if name in sources]
        super().__init__(
            options,
            ([self.partition, *(self.buffers[n] for n in averaged)], [weights, *(sources[n] for n in averaged)]),
            ([self.buffers[name] for name in copied], [sources[name] for name in copied]),
        )


class _Guard:
    """A hook before the optimizer's step, when DeepSpeed has set this rank's summed gradient: computes the norm, clips, and
    sets the flag that skips the step. All of it stays on the device."""

    def __init__(self, optimizer: torch.optim.Optimizer, clip_norm: float | None, device: torch.device) -> None:
        self._clip_norm, self._device = clip_norm, device
        self._loss_finite = torch.ones((), dtype=torch.bool, device=device)
        optimizer.register_step_pre_hook(self._before_step)

    def expect(self, loss_finite: Tensor) -> None:
        """Call before each update. `finite` stays False unless the hook runs: zero3 does not call the optimizer if the gradient
        is not finite."""
        self._loss_finite = loss_finite
        self.finite = torch.zeros_like(loss_finite)
        self.norm = torch.full((), torch.inf, device=self._device)

    def _before_step(self, optimizer: Any, arguments: Any, keywords: Any) -> None:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        squares = torch.stack([torch.linalg.vector_norm(gradient).square() for gradient in gradients]).sum()
        self.norm = world.sum_over_ranks(squares.to(self._device)).sqrt()
        self.finite = self._loss_finite & torch.isfinite(self.norm)
        if self._clip_norm is not None:
            scale = (self._clip_norm / (self.norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_(gradients, scale.to(gradients[0].device))
        optimizer.found_inf = (~self.finite).float().to(gradients[0].device)


def _configuration(options: EngineOptions, precision: str, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration, made by Accelerate's plugin. Batch sizes are only for DeepSpeed's own reports."""
    stage = int(options.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {
        "stage": stage,
        "reduce_bucket_size": BUCKET_ELEMENTS,
        "stage3_param_persistence_threshold": PERSISTENT_ELEMENTS,
        "sub_group_size": 2**62,  # one partition of any size, so that the optimizer steps once
    }
    if options.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": device.type == "cuda"}
    elif stage < 3:
        zero["compute_grad_norm"] = False  # it would wait for the device; ours does not
    configuration: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": 0.0,  # _Guard clips; the default would be 1.0
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
    configuration = _configuration(options, precision, device)
    return deepspeed.initialize(model=network, optimizer=optimizer, config_params=configuration)[0]


def _without_parameters(network: nn.Module) -> nn.Module:
    """A copy of a network with its buffers, and with parameters on the meta device."""
    meta_parameters = {
        id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)
        for parameter in network.parameters()
    }
    return copy.deepcopy(network, meta_parameters)


def _buffers(network: nn.Module) -> dict[str, Tensor]:
    """The persistent buffers, which a checkpoint holds."""
    parameters = dict(network.named_parameters())
    return {name: tensor for name, tensor in network.state_dict(keep_vars=True).items() if name not in parameters}
