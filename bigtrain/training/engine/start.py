"""Prepares a component for training under the recipe's strategy."""

from torch import nn

from bigtrain.families.phases import Component
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.component import ComponentTrainer, Groups
from bigtrain.training.engine.frozen import FrozenComponent
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.replicated import ReplicatedTrainer


def start_component(
    network: nn.Module,
    component: Component,
    ema: EmaOptions,
    engine: EngineOptions,
    precision: str,
    saved: Groups | None,
) -> ComponentTrainer:
    """A trainer of the component under the strategy of `engine`; called on every rank, with equal networks.

    `network` comes from `to_device` and has the initial weights; `saved`: the component's tensors in a checkpoint, from which
    the optimizer and the averages are restored. Without it averages start as copies of the weights.
    """
    if component.optimizer is None:
        return FrozenComponent(network, engine)
    if engine.strategy == "ddp":
        return ReplicatedTrainer(network, component, ema, engine, saved)
    from bigtrain.training.engine.zero import ZeroTrainer  # imports DeepSpeed, which takes seconds

    return ZeroTrainer(network, component, ema, engine, precision, saved)
