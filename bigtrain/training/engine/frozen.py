"""A component without an optimizer: its weights stay as they are, and every rank has all of them under every strategy."""

from collections.abc import Collection

from torch import Tensor, nn

from bigtrain.cluster import world
from bigtrain.training.engine.component import ComponentTrainer, Groups
from bigtrain.training.engine.options import EngineOptions
from bigtrain.training.engine.replicated import copied_to_host


class FrozenComponent(ComponentTrainer):
    """Gradients flow through it, but none reaches it. Its statistics change in the phases that list it."""

    def __init__(self, network: nn.Module, engine: EngineOptions) -> None:
        super().__init__(network.requires_grad_(False))
        if engine.compile:
            network.compile()

    def update_averages(self, step: int, applied: Tensor) -> None:
        """Nothing: it has none."""

    def averaged_network(self) -> nn.Module:
        return self.network

    def averages(self, names: Collection[str]) -> Groups:
        return {}

    def snapshot(self) -> Groups:
        return copied_to_host({"weights": self.network.state_dict()}) if world.is_main() else {}
