"""A family that learns from every field of the data, whatever its kind, for the tests of how fields are read."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from bigtrain.families.data_spec import DataSpec
from bigtrain.families.family import Family
from bigtrain.families.phases import Component, Losses, Microbatch, Networks, OptimizerOptions, Phase
from bigtrain.options import Options


class FieldReaderOptions(Options):
    kind: Literal["field_reader"]
    optimizer: OptimizerOptions = OptimizerOptions(lr=0.01)


class FieldReader(Family, kind="field_reader"):
    """One linear map of two numbers of each field: its mean, and a sum that depends on where its values are."""

    options_class = FieldReaderOptions
    sampled_components = ("net",)
    needs: dict[str, str] = {}  # noqa: RUF012  (a class variable of the base)

    def __init__(self, options: FieldReaderOptions, spec: DataSpec) -> None:
        self.options, self.spec = options, spec
        tensors = [name for facts in spec.fields.values() for name in facts["tensors"]]
        self.components = {"net": Component(lambda: nn.Linear(2 * len(tensors), 1), options.optimizer, averaged=True)}
        self.phases = [Phase("net", "net", self.loss)]

    @property
    def reads(self) -> Sequence[str]:
        return tuple(self.spec.fields)

    def loss(self, networks: Networks, batch: Microbatch) -> Losses:
        numbers = [number for name in sorted(batch) for number in _numbers_of(batch[name])]
        output = networks["net"](torch.stack(numbers, dim=1))
        return Losses((output - batch.draws.normal("target", batch.indices, (1,))).square().mean(), {})


def _numbers_of(field: Tensor) -> tuple[Tensor, Tensor]:
    values = field.reshape(len(field), -1).to(torch.get_default_dtype())
    places = torch.linspace(-1, 1, values.shape[1], dtype=values.dtype)
    return values.mean(1) / 100, (values * places).mean(1) / 100
