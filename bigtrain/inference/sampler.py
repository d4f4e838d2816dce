"""Draws the samples of a trained model by index."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.data.index import Index
from bigtrain.data.read.batch import on_device
from bigtrain.data.read.stream import SplitLoader
from bigtrain.families.abilities import Samples
from bigtrain.families.family import Family
from bigtrain.families.phases import Networks
from bigtrain.inference.candidate_selection import Selection
from bigtrain.inference.microbatch import microbatch_of
from bigtrain.pictures import to_uint8
from bigtrain.progress import ProgressBar
from bigtrain.randomness import Draws, Indices, to_device


@dataclass(frozen=True)
class Sampler:
    """Draws samples by index: sample i does not depend on the batch or the rank that draws it."""

    family: Family
    networks: Networks
    seed: int
    sampling: Any
    device: torch.device
    selection: Selection | None = None

    def draw(self, indices: Sequence[int] | np.ndarray, labels: Tensor) -> Tensor:
        """Samples `indices`, uint8 [n, C, H, W] on the device, of the classes `labels` (int64 [n]).

        Raises FloatingPointError if an image is not finite, which rounding to 8 bits would hide.
        """
        sample_ids = to_device(torch.from_numpy(np.asarray(indices, dtype=np.int64)), self.device)
        if self.selection is None:
            return self._draw(sample_ids, labels)
        count = self.selection.candidates
        # One candidate of every sample at a time: memory does not grow with the number of candidates.
        draws = (self._draw(sample_ids * count + k, labels) for k in range(count))
        return self.selection.best(draws, labels.to(self.device))

    def _draw(self, sample_ids: Indices, labels: Tensor) -> Tensor:
        family = self.family.require(Samples, "sampling")
        return self._sampled({"label": labels.to(self.device)} if "label" in family.conditions else {}, sample_ids)

    def draw_given(self, numbers: np.ndarray, fields: Mapping[str, Tensor]) -> Tensor:
        """Samples uint8 [n, C, H, W] given the fields of samples of a split, on the device, which `numbers` number there."""
        return self._sampled(fields, to_device(torch.from_numpy(numbers), self.device))

    def _sampled(self, fields: Mapping[str, Tensor], sample_ids: Indices) -> Tensor:
        family = self.family.require(Samples, "sampling")
        batch = microbatch_of(fields, sample_ids, Draws(self.seed, device=self.device))
        images = family.sample(self.networks, batch, self.sampling)
        if not torch.isfinite(images).all():
            raise FloatingPointError(
                "the model draws images that are not finite: its weights have diverged; take an earlier checkpoint, or train "
                "with a lower learning rate"
            )
        return to_uint8(images)

    def draw_all(self, labels: Sequence[int], batch_size: int) -> Tensor:
        """Samples 0 .. n - 1 of the classes `labels`, batch by batch with a progress bar; uint8 [n, C, H, W] on the CPU."""
        batches = []
        with ProgressBar(len(labels), "sampling", "images", leave=False) as bar:
            for first in range(0, len(labels), batch_size):
                part = torch.tensor(labels[first : first + batch_size])
                batches.append(self.draw(range(first, first + len(part)), part).cpu())
                bar.update(len(part))
        return torch.cat(batches)

    def draw_of(self, split: Index, batch_size: int) -> Tensor:
        """A sample for every sample of a split, given its fields, with a progress bar; uint8 [n, C, H, W] on the CPU."""
        family = self.family.require(Samples, "sampling")
        loader = SplitLoader(split, rank=0, world=1, batch=batch_size, workers=0, fields=list(family.conditions))
        drawn = torch.empty(0)
        with ProgressBar(split.samples, "sampling", "images", leave=False) as bar:
            for numbers, batch in loader:
                images = self.draw_given(numbers, on_device(batch, split.fields, self.device)).cpu()
                if not len(drawn):
                    drawn = torch.empty(split.samples, *images.shape[1:], dtype=images.dtype)
                drawn[torch.from_numpy(numbers)] = images
                bar.update(len(numbers))
        return drawn

    def labels_of(self, indices: Sequence[int] | np.ndarray) -> Tensor:
        """The classes of samples `indices` of an evaluation, drawn from the data's class frequencies; int64 [n] on the CPU."""
        numbers = torch.from_numpy(np.asarray(indices, dtype=np.int64))
        return self.family.spec.draw_labels(Draws(self.seed), "evaluate/labels", numbers)

    def protocol(self) -> dict[str, Any]:
        """How the samples are made, for the protocol of metrics that are measured on them."""
        family = self.family.require(Samples, "sampling")
        facts: dict[str, Any] = {"sampling": self.sampling.model_dump(mode="json", exclude=set(family.speed_options))}
        if self.family.attached:
            facts["followed"] = {role: trained.fingerprint for role, trained in self.family.attached.items()}
        if self.selection is not None:
            facts["selection"] = self.selection.facts
        return facts
