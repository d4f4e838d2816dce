"""What a checkpoint must hold for a run to go on from it, found out before anything of it is used: where it does not, the one
before it is used instead."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from bigtrain.errors import UserError
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.phases import Component, OptimizerOptions
from bigtrain.runs.checkpoint import Checkpoint, check_tensors
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.optimizers import COUNT, moment_names

_NUMBERS: Mapping[str, tuple[type, ...]] = {
    "position": (int,),
    "replaced": (int,),
    "wall": (int, float),
    "rows": (int,),
}
_OF_OLDER: Mapping[str, Any] = {"rows": 0}
"""What checkpoints of earlier versions lack."""


def check_saved(
    saved: Checkpoint,
    components: Mapping[str, Component],
    networks: Mapping[str, nn.Module],
    phases: Iterable[str],
    ema: EmaOptions,
) -> None:
    """Raises ValueError, saying what is wrong, unless the checkpoint has the state of a training of these networks and phases,
    and every tensor of theirs."""
    _check_state(saved, phases)
    for name, component in components.items():
        groups, state = saved.tensors(name), networks[name].state_dict()
        averages = ema.by_name() if component.averaged and component.optimizer is not None else ()
        for group in ("weights", *averages):
            check_tensors(f"{name}.{group}", groups.get(group), state)
        if component.optimizer is not None:
            _check_moments(f"{name}.optimizer", groups.get("optimizer"), networks[name], component.optimizer)


def _check_state(saved: Checkpoint, phases: Iterable[str]) -> None:
    state = {**_OF_OLDER, **saved.state}
    if saved.path.name != f"step_{saved.step:08d}":
        raise ValueError(f"its state is of step {saved.step}")
    for key, kinds in _NUMBERS.items():
        if type(state.get(key)) not in kinds or not 0 <= state[key] < 2**63:
            raise ValueError(f"its state has no {key}")
    try:
        for phase in phases:
            _check_meter(state["meters"][phase])
            if not _is_counter(state.get("skipped_in_a_row", {}).get(phase, 0)):
                raise TypeError("the updates that were skipped in a row are no number")
        DataSpec.from_json(state["data"])
        if not isinstance(state["data"]["fingerprint"], str):
            raise TypeError("the data's fingerprint is no text")
    except (UserError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"its state cannot be read: {error!r}") from None


def _check_meter(meter: Mapping[str, Any]) -> None:
    """Raises an error of many kinds unless it is a meter's state."""
    skips = meter["skips"]
    numbers = [*meter["sums"].values(), meter["updates"], *skips]
    if not all(type(number) is float or _is_counter(number) for number in numbers):
        raise TypeError("an interval average is no number")
    if len(skips) != 2 or not all(map(_is_counter, skips)):
        raise TypeError("the skipped updates are no numbers")


def _is_counter(number: Any) -> bool:
    return type(number) is int and abs(number) < 2**63


def _check_moments(
    name: str, found: Mapping[str, Tensor] | None, network: nn.Module, options: OptimizerOptions
) -> None:
    """An optimizer has all of its state for a parameter, or none before the first update."""
    if found is None:
        raise ValueError(f"it has no {name}")
    parameters, wanted = dict(network.named_parameters()), moment_names(options)
    names: dict[str, set[str]] = {}
    for key, tensor in found.items():
        parameter_name, _, moment = key.rpartition("/")
        parameter = parameters.get(parameter_name)
        if parameter is None or moment not in wanted:
            raise ValueError(f"{name} has an unknown tensor {key}")
        shape = torch.Size() if moment == COUNT else parameter.shape
        if tensor.shape != shape or not (moment == COUNT or tensor.dtype == parameter.dtype):
            raise ValueError(f"{name}: {key} is {tensor.dtype} {list(tensor.shape)}, which is not as its parameter")
        names.setdefault(parameter_name, set()).add(moment)
    for parameter_name, moments in names.items():
        if moments != wanted:
            raise ValueError(f"{name} lacks tensor {parameter_name}/{sorted(wanted - moments)[0]}")
