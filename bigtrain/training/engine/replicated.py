"""The strategy `ddp`: every rank has the full component, and gradients are summed over ranks."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.families.phases import Component
from bigtrain.training.averaging import Average, EmaOptions
from bigtrain.training.engine.component import Groups, TrainedComponent, prepare_forward
from bigtrain.training.engine.gradients import GradientSum
from bigtrain.training.engine.optimizers import allocate_momentum, clamp, clip_scale, optimizer_of, set_rate
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.schedule import learning_rate


class ReplicatedTrainer(TrainedComponent):
    """One component under `ddp`."""

    def __init__(
        self, network: nn.Module, component: Component, ema: EmaOptions, engine: EngineOptions, saved: Groups | None
    ) -> None:
        super().__init__(network, component)
        self.loss_divisor = world.size()
        self._averages = Average.all_of(network, component.averaged, ema)
        prepare_forward(network, engine)
        parameters = list(self._parameters.values())
        self._optimizer = optimizer_of(component, self._parameters)
        allocate_momentum(self._optimizer, parameters)
        if saved is not None:
            self._load(saved)
        self._gradients = GradientSum(parameters, world.size())

    def waited_s(self) -> float:
        return self._gradients.waits.read()

    def start_update(self) -> None:
        self._gradients.reset()

    def before_backward(self, last: bool) -> None:
        if last:
            self._gradients.arm()

    def after_backward(self) -> None:
        """Nothing: gradients are summed when they arrive."""

    @property
    def reached(self) -> bool:
        return self._gradients.reached

    def gradient_norm(self) -> Tensor:
        self._summed = self._gradients.wait()
        self._norm = torch.nn.utils.get_total_norm(self._summed)
        return self._norm

    @torch.no_grad()
    def update(self, step: int, applied: Tensor, weight_clip: float | None) -> None:
        parameters = list(self._parameters.values())
        if self.options.clipped_to is not None:
            torch._foreach_mul_(self._summed, clip_scale(self._norm, self.options.clipped_to))
        self.learning_rate = learning_rate(self.options, step)
        set_rate(self._optimizer, self.learning_rate)
        # The optimizers skip the update, and do not count it, if found_inf is 1; the host need not read the flag.
        self._optimizer.found_inf = (~applied).float()  # type: ignore[attr-defined]
        self._optimizer.step()
        if weight_clip is not None:
            clamp(parameters, weight_clip, applied)

    def update_averages(self, step: int, applied: Tensor) -> None:
        for average in self._averages.values():
            average.update(step, applied)

    def averaged_network(self) -> nn.Module:
        return self._averages["average"].network if self._averages else self.network

    def averages(self, names: Collection[str]) -> Groups:
        if not world.is_main():
            return {}
        return copied_to_host(
            {name: self._averages[name].network.state_dict() for name in names if name in self._averages}
        )

    def snapshot(self) -> Groups:
        if not world.is_main():
            return {}
        moments = {
            f"{name}/{key}": value
            for name, parameter in self._parameters.items()
            for key, value in self._optimizer.state.get(parameter, {}).items()
            if isinstance(value, Tensor)
        }
        groups: dict[str, Mapping[str, Tensor]] = {"weights": self.network.state_dict(), "optimizer": moments}
        return {**copied_to_host(groups), **self.averages(self._averages)}

    @torch.no_grad()
    def _load(self, groups: Groups) -> None:
        """Restores optimizer and averages, in the memory layout of this device."""
        for name, average in self._averages.items():
            average.network.load_state_dict(groups[name])
        for name, value in groups["optimizer"].items():
            parameter_name, _, key = name.rpartition("/")
            parameter = self._parameters[parameter_name]
            like = parameter if value.shape == parameter.shape else value
            moment = torch.empty_like(like, dtype=value.dtype, device=parameter.device)
            self._optimizer.state[parameter][key] = moment.copy_(value)


def copied_to_host(groups: Groups) -> Groups:
    """Copies of all tensors in host memory. From a GPU all are queued to pinned memory, and the host waits once."""
    cuda = False
    copies: dict[str, dict[str, Tensor]] = {}
    for group, tensors in groups.items():
        copies[group] = {}
        for name, tensor in tensors.items():
            on_gpu = tensor.device.type == "cuda"
            copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=on_gpu)
            copies[group][name] = copy.copy_(tensor.detach(), non_blocking=on_gpu)
            cuda |= on_gpu
    if cuda:
        torch.cuda.synchronize()
    return copies
