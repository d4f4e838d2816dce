"""Puts a network into training under the strategy that the recipe names."""

from torch import nn

from bigtrain.families.family import Player
from bigtrain.training.averaging import EmaOptions
from bigtrain.training.engine.component import Groups, TrainedPlayer
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.replicated import ReplicatedPlayer


def make_player(
    network: nn.Module, player: Player, ema: EmaOptions, engine: EngineOptions, precision: str, saved: Groups | None
) -> TrainedPlayer:
    """Puts a network into training under the strategy; called on every rank, with equal networks.

    `network` comes from `place` and has the weights to begin with; `saved`: what a checkpoint holds of the player, whose
    optimizer and averages are taken over. Averages begin at the weights where there is none.
    """
    if engine.strategy == "ddp":
        return ReplicatedPlayer(network, player, ema, engine, saved)
    from bigtrain.training.engine.zero import ZeroPlayer  # imports DeepSpeed, which takes seconds

    return ZeroPlayer(network, player, ema, engine, precision, saved)
