"""One pass over a set of images that serves every metric; each rank reads its share, each image once."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bigtrain.cluster import world
from bigtrain.cluster.passes import Progress, Reading, gather_by_number, stoppable, together
from bigtrain.data.read.stream import rank_share
from bigtrain.data.sources.collection import DIGEST_BYTES
from bigtrain.errors import UserError
from bigtrain.evaluation.images import ImageBatch, ImageSet, fair_order
from bigtrain.evaluation.metrics.class_features import ClassFeatures
from bigtrain.evaluation.metrics.inception_score import ScoreSums
from bigtrain.evaluation.metrics.moments import Moments
from bigtrain.evaluation.metrics.neighbourhoods import Nearest
from bigtrain.features.classifier import Classifier
from bigtrain.features.network import Features


@dataclass(frozen=True)
class Wants:
    """What a pass collects. The memory of each does not grow with the number of images (`by_class` is on disk)."""

    moments: bool = False
    """Moments of all features."""
    by_class: int = 0
    """Number of classes whose feature vectors are all kept, by class."""
    halves: int = 0
    """Number of images in each of two disjoint random subsets whose moments are taken."""
    stored: int = 0
    """Number of feature vectors to keep, those of a random subset of the images."""
    images: int = 0
    """Number of images to keep, a random subset, with their labels."""
    splits: int = 0
    """Number of splits of an inception score."""
    recognised: bool = False
    """Whether the evaluator predicts each image's class."""
    digest: bool = False
    """Whether to hash the pixels of the whole set, for a set that has no fingerprint."""

    def numbers(self, count: int) -> np.ndarray:
        """The images of a set of `count` that must be read, int64, ascending."""
        if self.moments or self.by_class or self.splits or self.recognised or self.digest:
            return np.arange(count)
        return np.sort(fair_order(count)[: max(2 * self.halves, self.stored, self.images)])

    @property
    def features(self) -> bool:
        return bool(self.moments or self.by_class or self.halves or self.stored or self.splits)


@dataclass
class Findings:
    """What a pass collected, or what the cache kept of earlier ones; on rank 0, the same at any world size."""

    moments: Moments | None = None
    by_class: ClassFeatures | None = None
    halves: tuple[Moments, Moments] | None = None
    stored: Tensor | None = None
    """float32 [n, d], in ascending order of the images' numbers."""
    images: Tensor | None = None
    """uint8 [n, C, H, W] on the CPU, in ascending order of their numbers."""
    image_numbers: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    image_labels: Tensor | None = None
    """int64 [n] on the CPU."""
    scores: ScoreSums | None = None
    recognised: int = 0
    """Images whose predicted class is their label."""
    digest: str | None = None
    """sha256 over the hashes of all images' pixels, in ascending order of their numbers."""


class Survey:
    """Raises UserError, on every rank, for features that are not finite, images of several sizes, or broken images."""

    def __init__(
        self,
        images: ImageSet,
        wants: Wants,
        features: Features | None,
        evaluator: Classifier | None,
        allow_mixed_sizes: bool,
        device: torch.device,
    ) -> None:
        self._set, self._wants, self._features, self._evaluator = images, wants, features, evaluator
        self._allow_mixed_sizes, self._device = allow_mixed_sizes, device
        self._chosen = wants.numbers(images.count)
        self._mine = rank_share(self._chosen, world.rank(), world.size())
        self._size: tuple[int, int] | None = None
        self._finite = torch.ones((), dtype=torch.bool, device=device)
        self._recognised = torch.zeros((), dtype=torch.float64, device=device)
        dimensions = features.dimensions if features is not None and wants.features else 0
        self._moments = Moments(dimensions, device) if wants.moments else None
        self._by_class = ClassFeatures(wants.by_class, dimensions) if wants.by_class else None
        self._halves = (Moments(dimensions, device), Moments(dimensions, device)) if wants.halves else None
        self._fair_position = np.empty(images.count, dtype=np.int64)
        self._fair_position[fair_order(images.count)] = np.arange(images.count)
        self._stored = _Rows(self._mine_among(wants.stored), dimensions, device)
        self._images: list[Tensor] = []
        self._image_labels: list[Tensor] = []
        self._scores = ScoreSums(wants.splits, features.facts["classes"], device) if features and wants.splits else None
        self._digests: list[bytes] = []

    def _mine_among(self, first: int) -> np.ndarray:
        """The numbers of this rank's images that are among the `first` of the fair order."""
        return self._mine[self._fair_position[self._mine] < first]

    def run(self, reading: Reading) -> Findings:
        """Makes the pass: no collective before its end and, except for features by class, no wait for the device.

        Raises Stopped.
        """

        def sweep() -> None:
            with Progress(len(self._chosen), self._set.name) as progress, stoppable(reading.should_stop):
                for batch in self._set.batches(self._mine, reading, self._device):
                    reading.check_stop()
                    self._add(batch)
                    progress.add(len(batch.numbers))

        together(sweep)
        return self._gathered()

    def _add(self, batch: ImageBatch) -> None:
        self._check_sizes(batch)
        if self._features is not None and self._wants.features:
            self._add_features(batch, self._features)
        if self._evaluator is not None and self._wants.recognised:
            assert batch.labels is not None
            (_, images), *_ = batch.groups
            self._recognised += (self._evaluator.predict(images) == batch.labels.to(self._device)).sum()
        if self._wants.images:
            self._keep_images(batch)
        if self._wants.digest:
            self._digests += batch.digests

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

    def _add_features(self, batch: ImageBatch, network: Features) -> None:
        parts = [(rows, network(images)) for rows, images in batch.groups]
        order = torch.from_numpy(np.concatenate([rows for rows, _ in parts]).argsort()).to(self._device)
        features = torch.cat([extracted.features for _, extracted in parts])[order]
        self._finite &= features.isfinite().all()
        position = self._fair_position[batch.numbers]
        if self._moments is not None:
            self._moments.add(features)
        if self._by_class is not None:
            assert batch.labels is not None
            self._by_class.add(features, batch.labels.numpy(), batch.numbers)
        if self._halves is not None:
            for side, moments in enumerate(self._halves):
                moments.add(_select(features, position // self._wants.halves == side))
        self._stored.add(features, position < self._wants.stored)
        if self._scores is not None:
            logits = torch.cat([extracted.logits for _, extracted in parts if extracted.logits is not None])[order]
            # Bounds like i * N // splits, so that splits differ by one image at most.
            split = ((position + 1) * self._wants.splits - 1) // self._set.count
            self._scores.add(logits, torch.from_numpy(split).to(self._device))

    def _keep_images(self, batch: ImageBatch) -> None:
        chosen = self._fair_position[batch.numbers] < self._wants.images
        (_, images), *_ = batch.groups
        self._images.append(_select(images, chosen).cpu())
        if batch.labels is not None:
            self._image_labels.append(batch.labels[torch.from_numpy(chosen)])

    def _gathered(self) -> Findings:
        world.sum_over_ranks(self._recognised)
        halves = self._halves or ()
        for moments in (*([self._moments] if self._moments else []), *halves):
            moments.reduce()
        if self._scores is not None:
            self._scores.reduce()
        broken = world.sum_over_ranks((~self._finite).double())
        if bool(broken):
            name = self._features.name if self._features else ""
            raise UserError(
                f"evaluation.features: {name} gave features of {self._set.name} that are not finite, so no distance can be "
                "computed; choose another network"
            )
        if self._moments is not None:
            assert self._moments.count == self._set.count, (self._moments.count, self._set.count)
        findings = Findings(
            moments=self._moments,
            by_class=None if self._by_class is None else self._by_class.gathered(self._device),
            halves=self._halves,
            scores=self._scores,
            recognised=int(self._recognised),
        )
        if self._wants.stored:
            findings.stored = gather_by_number(self._mine_among(self._wants.stored), self._stored.rows)
        if self._wants.images:
            self._gather_images(findings)
        if self._wants.digest:
            findings.digest = self._gather_digest()
        return findings

    def _gather_images(self, findings: Findings) -> None:
        numbers = self._mine_among(self._wants.images)
        images = torch.cat([torch.empty(0, *self._set.shape(), dtype=torch.uint8), *self._images]).to(self._device)
        gathered = gather_by_number(numbers, images)
        findings.images = None if gathered is None else gathered.cpu()
        order = gather_by_number(numbers, torch.from_numpy(numbers).to(self._device))
        findings.image_numbers = findings.image_numbers if order is None else order.cpu().numpy()
        if self._set.classes is not None:
            labels = torch.cat([torch.empty(0, dtype=torch.int64), *self._image_labels]).to(self._device)
            gathered_labels = gather_by_number(numbers, labels)
            findings.image_labels = None if gathered_labels is None else gathered_labels.cpu()

    def _gather_digest(self) -> str | None:
        rows = np.frombuffer(b"".join(self._digests), dtype=np.uint8).reshape(-1, DIGEST_BYTES).copy()
        digests = gather_by_number(self._mine, torch.from_numpy(rows).to(self._device))
        return None if digests is None else hashlib.sha256(digests.cpu().numpy().tobytes()).hexdigest()


class _Rows:
    """Feature vectors that are kept, float32 [n, d], in memory that is allocated once."""

    def __init__(self, numbers: np.ndarray, dimensions: int, device: torch.device) -> None:
        self.rows = torch.empty(len(numbers), dimensions, device=device, dtype=torch.float32)
        self._filled = 0

    def add(self, features: Tensor, chosen: np.ndarray) -> None:
        count = int(chosen.sum())
        if count:
            self.rows[self._filled : self._filled + count] = _select(features, chosen)
            self._filled += count


def _select(rows: Tensor, chosen: np.ndarray) -> Tensor:
    """The rows [n, ...] where `chosen` (bool [n]) is true: by index, since a mask would make the host wait for a GPU."""
    return rows[torch.from_numpy(np.flatnonzero(chosen)).to(rows.device)]


def nearest(
    images: ImageSet, queries: Tensor, count: int, features: Features, reading: Reading
) -> tuple[Tensor, Tensor] | None:
    """(distances float64 [q, count], numbers int64 [q, count]) of the images nearest to the vectors `queries` [q, d].

    Every rank calls it with the same queries; rank 0 gets the result, the others None. Raises UserError and Stopped.
    """
    local = Nearest(queries, count)
    mine = rank_share(np.arange(images.count), world.rank(), world.size())

    def sweep() -> None:
        with Progress(images.count, f"neighbours in {images.name}") as progress:
            for batch in images.batches(mine, reading, features.device):
                reading.check_stop()
                for rows, group in batch.groups:
                    local.add(torch.from_numpy(batch.numbers[rows]), features(group).features)
                progress.add(len(batch.numbers))

    together(sweep)
    parts: list[Any] = world.gather_objects((local.distances.cpu(), local.numbers.cpu()))
    merged = Nearest(queries.cpu(), count)
    for distances, numbers in parts:
        merged.merge(distances, numbers)
    return (merged.distances.sqrt(), merged.numbers) if world.is_main() else None
