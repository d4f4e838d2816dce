"""The smallest game that gradient descent does not solve: x is chosen to make x y small, y to make it large.

The only equilibrium is x = y = 0. Small simultaneous steps turn around it, and each takes them further away; steps one after
the other come back to where they were; the average over the steps comes near the middle. (Goodfellow's tutorial of 2016,
arXiv:1701.00160, sets it as an exercise.) Nothing of the data is read.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from bigtrain.families.abilities import Panels
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.panels import Arrows, Chart, Dots, Layer, Panel, Plane, Trace, Window, check_window
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.adversarial.player import Player
from bigtrain.options import Options
from bigtrain.randomness import Draws

ARROWS_A_SIDE = 11
Move = Annotated[float, Field(ge=-1e6, le=1e6)]


class TwoPlayersOptions(Options):
    """A game of two numbers."""

    kind: Literal["two_players"]
    updates: Literal["simultaneous", "alternating"] = "simultaneous"
    """Whether y answers to the x from before a step, or to the one after it."""
    first_moves: tuple[Move, Move] = (1.0, 0.0)
    """x and y before the first step."""
    window: Window = (-2.0, 2.0, -2.0, 2.0)
    """What pictures show: left, right, bottom, top."""
    optimizer: OptimizerOptions
    """Of both."""

    @model_validator(mode="after")
    def _window_is_no_line(self) -> "TwoPlayersOptions":
        check_window(self.window)
        return self


class TwoPlayers(Family, Panels, kind="two_players"):
    """Components: x, y (averaged). Phases: one for both, or one for each."""

    options_class = TwoPlayersOptions
    draws_in_training = False
    sampled_components = ("x", "y")
    needs: ClassVar[Mapping[str, str]] = {}

    def __init__(self, options: TwoPlayersOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        self.components = {
            name: Component(partial(Player, begin), options.optimizer, averaged=True)
            for name, begin in zip("xy", options.first_moves, strict=True)
        }
        if options.updates == "simultaneous":
            self.phases = [Phase("both", ("x", "y"), self.loss_of_both, batch="none", reports=self._reports)]
        else:
            self.phases = [
                Phase("x", "x", partial(self._loss_of, 1.0), batch="none"),
                Phase("y", "y", partial(self._loss_of, -1.0), batch="none", reports=self._reports),
            ]

    def loss_of_both(self, networks: Networks, batch: Microbatch) -> Losses:
        """Its value is 0; its gradient is that of x y for x, and that of -x y for y."""
        x, y = networks["x"](), networks["y"]()
        return Losses(x * y.detach() - x.detach() * y, {"value": (x * y).detach()})

    def _loss_of(self, sign: float, networks: Networks, batch: Microbatch) -> Losses:
        value = networks["x"]() * networks["y"]()
        return Losses(sign * value, {"value": value.detach()})

    @torch.no_grad()
    def _reports(self, networks: Networks) -> dict[str, Tensor]:
        return {name: networks[name]() for name in "xy"}

    # -- pictures ---------------------------------------------------------------------------------------------------------

    @property
    def charted(self) -> Sequence[str]:
        return [f"{self.phases[-1].name}/{name}" for name in "xy"]

    @torch.no_grad()
    def panels(
        self, networks: Networks, shown: Tensor | None, course: Mapping[str, Sequence[float]], draws: Draws
    ) -> Sequence[Panel]:
        visited = torch.tensor([course[name] for name in self.charted], dtype=torch.float64).T
        visited = torch.cat([torch.tensor([self.options.first_moves], dtype=torch.float64), visited.view(-1, 2)])
        steps = [0.0, *course["step"]]
        left, right, bottom, top = self.options.window
        shares = torch.arange(ARROWS_A_SIDE, dtype=torch.float64).add(0.5) / ARROWS_A_SIDE
        grid = torch.cartesian_prod(left + (right - left) * shares, bottom + (top - bottom) * shares)
        layers: list[Layer] = [
            Arrows(grid, torch.stack([-grid[:, 1], grid[:, 0]], 1), "where a step goes"),
            Trace(visited, "first", f"{self.options.updates} steps"),
            Dots(visited.mean(0, keepdim=True), "second", "their average"),
        ]
        distances = visited.square().sum(1).sqrt().tolist()
        chart = Chart("distance from the equilibrium", steps, {"of x and y": ("first", distances)})
        return [Plane("x makes x y small, y makes it large", self.options.window, layers), chart]
