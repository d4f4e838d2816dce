"""Puts a network into training under the strategy that the recipe names."""

from torch import nn

from bigtrain.families.family import Component
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.component import ComponentTrainer, Groups
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
    """Puts a network into training under the strategy; called on every rank, with equal networks.

    `network` comes from `place` and has the weights to begin with; `saved`: what a checkpoint holds of the component, whose
    optimizer and averages are taken over. Averages begin at the weights where there is none.
    """
    if engine.strategy == "ddp":
        return ReplicatedTrainer(network, component, ema, engine, saved)
    from bigtrain.training.engine.zero import ZeroTrainer  # imports DeepSpeed, which takes seconds

    return ZeroTrainer(network, component, ema, engine, precision, saved)
