"""A run that goes on from a checkpoint of another one, in a folder of its own and with changed keys (train.resume): which
weights, averages and moments fit, and what begins anew where they do not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema
from torch import Tensor, nn

from bigtrain.errors import some_of
from bigtrain.families.phases import Component
from bigtrain.options import check_text
from bigtrain.runs.checkpoint import Checkpoint
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.component import Groups
from bigtrain.training.engine.optimizers import COUNT, moment_names

_NAMED = 3
"""How many tensors a sentence names."""


@dataclass(frozen=True)
class ResumeOptions:
    """run: the folder of the run; step: of one of its checkpoints, None for the newest."""

    run: str
    step: int | None


def _resume(value: Any) -> ResumeOptions:
    """Raises ValueError."""
    if isinstance(value, ResumeOptions):
        return value
    if not isinstance(value, Mapping) or "from" not in value or not value.keys() <= {"from", "step"}:
        raise ValueError("must be {from: RUN, step: N}, where step may be left out for the newest checkpoint")
    run, step = value["from"], value.get("step")
    if not isinstance(run, str):
        raise ValueError("from: must be the path of a run")
    if step is not None and (type(step) is not int or step < 0):
        raise ValueError("step: must be the step of a checkpoint, or left out for the newest")
    return ResumeOptions(str(check_text(run)), step)


Resume = Annotated[
    ResumeOptions,
    PlainValidator(_resume),
    PlainSerializer(lambda value: value and {"from": value.run, "step": value.step}),
    WithJsonSchema(
        {
            "type": "object",
            "properties": {
                "from": {"type": "string", "description": "The folder of the other run."},
                "step": {"type": ["integer", "null"], "description": "The step of its checkpoint; null: the newest."},
            },
            "additionalProperties": False,
        }
    ),
]


@dataclass(frozen=True)
class Branch:
    """A checkpoint of the run at `run`; changed: the keys that are otherwise now, such as `train.batch_size: 64 -> 128`."""

    run: Path
    saved: Checkpoint
    changed: tuple[str, ...]

    @property
    def described(self) -> dict[str, Any]:
        """For the record of the new run."""
        return {"source": str(self.run.resolve()), "step": self.saved.step, "changed": list(self.changed)}

    @property
    def sentence(self) -> str:
        changed = f" with {'; '.join(self.changed)}" if self.changed else ", with no key changed"
        return f"goes on from step {self.saved.step} of {self.run}{changed}"


def fitted(
    saved: Mapping[str, Mapping[str, Tensor]], component: Component, network: nn.Module, ema: EmaOptions, partly: bool
) -> tuple[Groups, list[str]]:
    """(a checkpoint's tensors of one component as this network and optimizer can take them, what begins anew: a phrase for
    each kind of tensor).

    Weights that do not fit are the network's own, averages that do not fit copies of the weights. partly: whether some
    parameters of a component may have moments and others not; otherwise none have any where one lacks them.
    """
    begun: list[str] = []
    own = network.state_dict()
    weights = _taken(saved.get("weights", {}), own)
    missing = [name for name in own if name not in weights]
    if missing:
        begun.append(f"{some_of(missing, _NAMED)} begin at random")
    groups: dict[str, Mapping[str, Tensor]] = {"weights": {**own, **weights}}
    if component.optimizer is None:
        return groups, begun
    for name in ema.by_name() if component.averaged else ():
        average = _taken(saved.get(name, {}), own)
        if not average:
            begun.append(f"{name} begins as a copy of the weights")
        groups[name] = {**groups["weights"], **average}
    moments, without = _moments(saved.get("optimizer", {}), component, network, weights)
    if without and not partly:
        moments = {}
    if without and saved.get("optimizer"):
        begun.append(
            f"the optimizer's state of {some_of(without, _NAMED) if moments else 'all parameters'} begins anew"
        )
    groups["optimizer"] = moments
    return groups, begun


def _moments(
    saved: Mapping[str, Tensor], component: Component, network: nn.Module, weights: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """(moments that fit, by name; the parameters that have none)."""
    assert component.optimizer is not None
    wanted = moment_names(component.optimizer)
    moments: dict[str, Tensor] = {}
    without: list[str] = []
    for name, parameter in network.named_parameters():
        if name in component.frozen:
            continue
        own = {key: saved[f"{name}/{key}"] for key in wanted if f"{name}/{key}" in saved}
        fits = all(key == COUNT or tensor.shape == parameter.shape for key, tensor in own.items())
        if own.keys() == wanted and fits and name in weights:
            moments |= {f"{name}/{key}": tensor for key, tensor in own.items()}
        elif wanted:
            without.append(name)
    return moments, without


def _taken(saved: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: saved[name]
        for name, tensor in own.items()
        if name in saved and saved[name].shape == tensor.shape and saved[name].dtype == tensor.dtype
    }
