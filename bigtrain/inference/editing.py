"""Images of a split in latent space: what is between two of them, and what an attribute or a class changes.

A shift adds to an image's latents the difference between the mean latents of the split's samples that have an attribute and of
those that have not (Larsen et al. 2016, "Autoencoding beyond pixels using a learned similarity metric", arXiv:1512.09300,
section 4.2), times a factor.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bigtrain.data.classes import class_numbers
from bigtrain.data.fields.array import AttributesField
from bigtrain.data.index import Index
from bigtrain.data.read.batch import Batch, on_device
from bigtrain.data.read.stream import SplitLoader, read_chunks
from bigtrain.errors import UserError
from bigtrain.families.abilities import EncodesLatents
from bigtrain.families.family import Family
from bigtrain.families.phases import Networks
from bigtrain.features.network import full_float32
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.randomness import Draws, to_device

LABEL = "label"


@dataclass(frozen=True)
class Shift:
    """attribute:NAME=FACTOR or class:NAME=FACTOR, found in a split."""

    text: str
    field: str
    number: int
    """Of the attribute in its field, or of the class."""
    factor: float

    @classmethod
    def read(cls, text: str, split: Index) -> "Shift":
        """Raises UserError for what is no shift, or not of this split."""
        what, _, factor = text.rpartition("=")
        kind, _, name = what.partition(":")
        if kind not in ("attribute", "class") or not name or not _is_number(factor):
            raise UserError(
                f"--shift: {text!r} is not attribute:NAME=FACTOR or class:NAME=FACTOR, as attribute:Smiling=1.5"
            )
        if kind == "class":
            return cls(text, LABEL, _class_number(name, split), float(factor))
        fields = [field for field in split.fields.values() if isinstance(field, AttributesField)]
        for field in fields:
            if name in field.names:
                return cls(text, field.name, field.names.index(name), float(factor))
        known = ", ".join(name for field in fields for name in field.names[:20])
        has = f"its attributes: {known}" if known else "it has none at all; class:NAME=FACTOR takes a class"
        raise UserError(f"--shift: {split.where} has no attribute {name} ({has})")

    def has(self, values: Tensor) -> Tensor:
        """Which samples have it, bool [n], by the values of its field: the class, or an attribute above 0."""
        return values == self.number if self.field == LABEL else values[:, self.number] > 0


@dataclass(frozen=True)
class Encoded:
    """Samples of a split: their numbers there, int64 [n] on the CPU; fields and latents [n, latent_size] on the device."""

    numbers: np.ndarray
    fields: Mapping[str, Tensor]
    latents: Tensor


class LatentSplit:
    """A split as a model's latents. `networks` come from `prepare_sampling`; `seed` keys what an encoder draws, if anything."""

    def __init__(self, family: Family, networks: Networks, split: Index, seed: int, device: torch.device) -> None:
        self.family, self.networks, self.split = family, networks, split
        self.seed, self.device = seed, device

    def of_numbers(self, numbers: Sequence[int]) -> Encoded:
        """Samples by their numbers in the split, in this order. Raises UserError for one that there is not."""
        for number in numbers:
            if not 0 <= number < self.split.samples:
                raise UserError(
                    f"--images: {self.split.where} has the samples 0 .. {self.split.samples - 1}, not {number}"
                )
        chunk = np.asarray(numbers, dtype=np.int64)
        ((found, batch),) = read_chunks(self.split, [chunk], workers=0, fields=self._reads())
        return self._encoded(found, batch)

    def some(self, count: int) -> Encoded:
        """A fixed random subset."""
        numbers = [found for found, _ in SplitLoader(self.split, rank=0, world=1, batch=count, workers=0, limit=count)]
        return self.of_numbers([int(number) for number in np.concatenate(numbers)])

    def differences(self, shifts: Sequence[Shift], batch_size: int) -> Tensor:
        """The sum of the shifts, [latent_size]: one pass over the split. Raises UserError for an attribute that all samples
        have, or none."""
        size = self.family.require(EncodesLatents, "--shift").latent_size
        sums = torch.zeros(len(shifts), 2, size, dtype=torch.float64, device=self.device)
        counts = torch.zeros(len(shifts), 2, dtype=torch.float64, device=self.device)
        for encoded in self._all(batch_size, [shift.field for shift in shifts]):
            latents = encoded.latents.double()
            for number, shift in enumerate(shifts):
                has = shift.has(encoded.fields[shift.field]).double()
                groups = torch.stack([1 - has, has])
                sums[number] += groups @ latents
                counts[number] += groups.sum(1)
        for shift, (without, having) in zip(shifts, counts.tolist(), strict=True):
            if not without or not having:
                raise UserError(
                    f"--shift: {shift.text}: {'no sample' if not having else 'every sample'} of {self.split.where} has it, so "
                    "there is no difference between those that have and those that have not"
                )
        means = sums / counts.unsqueeze(2)
        factors = torch.tensor([shift.factor for shift in shifts], dtype=torch.float64, device=self.device)
        return factors @ (means[:, 1] - means[:, 0])

    def _all(self, batch_size: int, others: Sequence[str]) -> Iterator[Encoded]:
        loader = SplitLoader(self.split, rank=0, world=1, batch=batch_size, workers=0, fields=self._reads(others))
        for numbers, batch in loader:
            yield self._encoded(numbers, batch)

    def _reads(self, others: Sequence[str] = ()) -> list[str]:
        return list(dict.fromkeys([*self.family.reads, *others]))

    def _encoded(self, numbers: np.ndarray, batch: Batch) -> Encoded:
        fields = on_device(batch, self.split.fields, self.device)
        sample_ids = to_device(torch.from_numpy(numbers), self.device)
        given = {name: values for name, values in fields.items() if name in self.family.reads}
        with full_float32(self.device):
            asked = microbatch_of(given, sample_ids, Draws(self.seed, device=self.device))
            latents = self.family.require(EncodesLatents, "--encode").encode_latents(self.networks, asked)
        return Encoded(numbers, fields, latents)


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _class_number(name: str, split: Index) -> int:
    try:
        (number,) = class_numbers(split.classes, [name])
    except UserError as error:
        raise UserError(f"--shift: {split.where}: {error}") from None
    return number
