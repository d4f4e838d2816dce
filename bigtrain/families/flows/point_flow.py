"""Normalizing flows of vectors of numbers, such as points in a plane, whose density can be drawn. One component, one phase.

log p(x) = log N(f(x); 0, I) + log |det df/dx|
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar, Literal, cast

import torch
from pydantic import model_validator
from torch import Tensor

from bigtrain.families.abilities import Density, Effort, InitialisedByData, Likelihood
from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.panels import Window, check_window
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.networks.flows.bijection import initialising
from bigtrain.networks.flows.vector_flow import AnyVectorFlow, Couplings, VectorFlow
from bigtrain.options import Options


class PointFlowOptions(Options):
    """A normalizing flow of vectors and its training."""

    kind: Literal["point_flow"]
    network: AnyVectorFlow = Couplings()
    window: Window = (-3.0, 3.0, -3.0, 3.0)
    """What a picture of the density shows: left, right, bottom, top."""
    optimizer: OptimizerOptions

    @model_validator(mode="after")
    def _window_is_no_line(self) -> "PointFlowOptions":
        check_window(self.window)
        return self


class PointFlow(Family, Likelihood, Density, InitialisedByData, kind="point_flow"):
    """Component: flow (averaged). Phase: flow."""

    options_class = PointFlowOptions
    draws_in_training = False
    sampled_components = ("flow",)
    needs: ClassVar[Mapping[str, str]] = {"point": "array"}
    initialisation_images = 1024

    def __init__(self, options: PointFlowOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        facts = spec.fields["point"]
        if facts.get("varies") or len(facts["shape"]) != 1 or facts["shape"][0] < 2:
            raise ValueError(
                f"data.train: a point_flow needs a field point of two numbers or more, and its shape is {facts['shape']}"
            )
        self._size: int = facts["shape"][0]
        if self._size != 2:
            self.lacks = {Density: f"vectors of {self._size} numbers are no points of a plane, so nothing can be drawn"}
        build = partial(VectorFlow, options.network, self._size)
        self.components = {"flow": Component(build, options.optimizer, averaged=True)}
        self.phases = [Phase("flow", "flow", self.loss)]

    def initialise(self, networks: Networks, batches: Sequence[Microbatch]) -> None:
        """Sets each actnorm from what reaches it of the first vectors."""
        with initialising(networks["flow"]):
            networks["flow"](torch.cat([batch["point"] for batch in batches]))

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        """-log p(x) in nats a dimension."""
        z, log_det = networks["flow"](batch["point"])
        nll = ((z.square() + math.log(2 * math.pi)).sum(1) / 2 - log_det).mean()
        return Losses(nll / self.dimensions, {"nll": nll.detach()})

    @property
    def dimensions(self) -> int:
        return self._size

    @torch.no_grad()
    def likelihood(self, networks: Networks, batch: Microbatch, effort: Effort) -> dict[str, Tensor]:
        """Exact, of the density: nats may be below 0."""
        return {"nats": -_flow(networks).log_density(batch["point"]).double()}

    @property
    def window(self) -> tuple[float, float, float, float]:
        return self.options.window

    @torch.no_grad()
    def log_density(self, networks: Networks, points: Tensor) -> Tensor:
        return _flow(networks).log_density(points)


def _flow(networks: Networks) -> VectorFlow:
    return cast(VectorFlow, networks["flow"])
