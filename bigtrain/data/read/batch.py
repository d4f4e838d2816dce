"""One rank's slice of a global microbatch: on the CPU as workers make it, and on the device as a phase is handed it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bigtrain.data.fields.field import Field


class OfFields(Mapping[str, Tensor]):
    """A mapping of fields, by name [n, ...], that holds more than they."""

    fields: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.fields)

    def __len__(self) -> int:
        return len(self.fields)


@dataclass(eq=False)
class Batch(OfFields):
    """One rank's slice of one global microbatch, on the CPU: a mapping of fields.

    fields: by name what its `deliver` gives, not mirrored yet, [n, ...]; flips: bool [n], which samples are mirrored; replaced:
    "SHARD/KEY: reason" for each undecodable sample that was replaced by another.
    """

    fields: Mapping[str, Tensor]
    flips: Tensor
    replaced: list[str]

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory; torch's loader calls this."""
        fields = {name: value.pin_memory() for name, value in self.fields.items()}
        return Batch(fields, self.flips.pin_memory(), self.replaced)


def on_device(batch: Batch, fields: Mapping[str, Field], device: Any) -> dict[str, Tensor]:
    """The batch's fields on the device, mirrored, as their kinds say. Copies are asynchronous if the batch is pinned."""
    device = torch.device(device)
    sent: dict[str, Tensor] = {}
    for name, values in batch.items():
        sent |= fields[name].to_device(values, batch.flips, device)
    return sent
