"""One pass over a set of images that feeds all accumulators; each rank reads its share, each image once."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Progress, Reading, stoppable, together
from bigtrain.errors import UserError
from bigtrain.evaluation.images import ImageBatch, ImageSet, fair_order
from bigtrain.evaluation.kept_pass import Part, split_of
from bigtrain.evaluation.statistics.accumulator import Accumulator, Seen, Share, Use
from bigtrain.features.network import Features

log = logging.getLogger(__name__)


def pass_over(
    images: ImageSet,
    accumulators: Sequence[Accumulator],
    features: Features | None,
    allow_mixed_sizes: bool,
    device: torch.device,
    reading: Reading,
) -> None:
    """Shows every accumulator the images that it needs, and adds up over ranks: no collective before the end of the pass.

    Each image is given to the network once, if an accumulator uses its features. Raises Stopped; and UserError, on every rank,
    for features that are not finite, images of several sizes, or broken images.
    """
    positions = np.empty(images.count, dtype=np.int64)
    positions[fair_order(images.count)] = np.arange(images.count)
    numbers = _needed(images.count, accumulators)
    uses = frozenset[Use]().union(*(one.uses for one in accumulators))
    network = features if {"features", "logits"} & uses else None
    dimensions, logits = (network.dimensions, network.facts.get("classes") or 0) if network is not None else (0, 0)
    kept, drawn = _kept_and_missing(images, numbers, network, uses)
    mine = np.concatenate([*(part.numbers for part in kept), drawn])
    share = Share(images, mine, positions[mine], device, dimensions, logits)
    viewer = _Viewer(images, positions, network, "logits" in uses, allow_mixed_sizes, device)
    for one in accumulators:
        one.begin(share)

    def sweep() -> None:
        with Progress(len(numbers), images.name) as progress, stoppable(reading.should_stop):
            for seen in chain(viewer.view_again(kept), viewer.view_all(images.batches(drawn, reading, device), uses)):
                reading.check_stop()
                for one in accumulators:
                    one.update(seen)
                progress.add(len(seen.numbers))

    together(f"measures {images.name}", sweep)
    viewer.check_finite()
    for one in accumulators:
        one.reduce()


def _needed(count: int, accumulators: Sequence[Accumulator]) -> np.ndarray:
    """The images of a set of `count` that must be read, int64, ascending."""
    firsts = [one.first for one in accumulators]
    if None in firsts:
        return np.arange(count)
    return np.sort(fair_order(count)[: max((first for first in firsts if first is not None), default=0)])


def _kept_and_missing(
    images: ImageSet, numbers: np.ndarray, network: Features | None, uses: frozenset[Use]
) -> tuple[list[Part], np.ndarray]:
    """This rank's share of the images that an earlier pass has kept, and of those that it has not, int64, ascending."""
    parts: list[Part] = []
    if images.kept is not None:
        facts = {"features": None if network is None else network.protocol([images.channels]), "uses": sorted(uses)}
        parts = images.kept.open(facts, numbers)
        if parts and world.is_main():
            again = sum(len(part.numbers) for part in parts)
            log.warning("goes on after %d of %d images, which an earlier start has measured", again, len(numbers))
    return split_of(parts, numbers)


class _Viewer:
    """Makes of each batch what accumulators see of it."""

    def __init__(
        self,
        images: ImageSet,
        positions: np.ndarray,
        network: Features | None,
        with_logits: bool,
        allow_mixed_sizes: bool,
        device: torch.device,
    ) -> None:
        self._set, self._positions, self._network, self._with_logits = images, positions, network, with_logits
        self._allow_mixed_sizes, self._device = allow_mixed_sizes, device
        self._size: tuple[int, int] | None = None
        self._finite = torch.ones((), dtype=torch.bool, device=device)

    def view_all(self, batches: Iterable[ImageBatch], uses: frozenset[Use]) -> Iterator[Seen]:
        """Each batch, kept where the set's are."""
        for batch in batches:
            seen = self._view(batch)
            if self._set.kept is not None:
                pixels = seen.images if "images" in uses else None
                rows = {"features": seen.features, "logits": seen.logits, "labels": seen.labels, "images": pixels}
                self._set.kept.keep(seen.numbers, rows)
            yield seen

    def view_again(self, parts: Iterable[Part]) -> Iterator[Seen]:
        """What was kept of earlier batches."""
        for part in parts:
            assert self._set.kept is not None
            rows = self._set.kept.read(part)
            labels = rows.pop("labels", None)
            images, features, logits = (
                rows[name].to(self._device) if name in rows else None for name in ("images", "features", "logits")
            )
            if features is not None:
                self._finite &= features.isfinite().all()
            yield Seen(part.numbers, self._positions[part.numbers], images, labels, features, logits, [])

    def _view(self, batch: ImageBatch) -> Seen:
        self._check_sizes(batch)
        features, logits = self._look(batch) if self._network is not None else (None, None)
        images = batch.groups[0][1] if len(batch.groups) == 1 else None
        return Seen(
            batch.numbers, self._positions[batch.numbers], images, batch.labels, features, logits, batch.digests
        )

    def _check_sizes(self, batch: ImageBatch) -> None:
        for rows, images in batch.groups:
            size = (images.shape[2], images.shape[3])
            self._size = self._size or self._set.size() or size
            if size != self._size and not self._allow_mixed_sizes:
                raise UserError(
                    f"{self._set.name} differ in size: {self._set.name_of(0)} is {self._size[0]} x {self._size[1]}, "
                    f"{self._set.name_of(int(batch.numbers[rows[0]]))} is {size[0]} x {size[1]}; make them one size, or "
                    "let the feature network resize each with evaluation.allow_mixed_sizes=true"
                )

    def _look(self, batch: ImageBatch) -> tuple[Tensor, Tensor | None]:
        """(features [n, d], logits [n, k] where they are used) in the order of the batch."""
        assert self._network is not None
        parts = [(rows, self._network(images)) for rows, images in batch.groups]
        order = torch.from_numpy(np.concatenate([rows for rows, _ in parts]).argsort()).to(self._device)
        features = torch.cat([extracted.features for _, extracted in parts])[order]
        self._finite &= features.isfinite().all()
        if not self._with_logits:
            return features, None
        return features, torch.cat([extracted.logits for _, extracted in parts if extracted.logits is not None])[order]

    def check_finite(self) -> None:
        """Raises UserError, on every rank, if a feature was not finite; every rank calls it."""
        broken = world.sum_over_ranks((~self._finite).double())
        if bool(broken):
            name = self._network.name if self._network else ""
            raise UserError(
                f"evaluation.features: {name} gave features of {self._set.name} that are not finite, so no distance can be "
                "computed; choose another network"
            )
