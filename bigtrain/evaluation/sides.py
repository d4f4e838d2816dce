"""The two sides of a comparison: the samples, and the reference that they are compared with."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from bigtrain.cluster.passes import Reading
from bigtrain.errors import UserError
from bigtrain.evaluation.images import ImageSet, Relabelled
from bigtrain.evaluation.one_pass import pass_over
from bigtrain.evaluation.reference import Labels, Reference, collect
from bigtrain.evaluation.statistics.accumulator import Accumulator, CachedAccumulator
from bigtrain.evaluation.statistics.moments import FeatureMoments
from bigtrain.evaluation.statistics.subsets import PixelDigest
from bigtrain.features.network import Features

AnyAccumulator = TypeVar("AnyAccumulator", bound=Accumulator)
AnyCached = TypeVar("AnyCached", bound=CachedAccumulator)


class SampleSide:
    """The images that are evaluated, and what metrics accumulate of them. `labels`: their class numbers, as they were opened
    with the names `opened_classes`."""

    def __init__(self, images: ImageSet, labels: Labels | None) -> None:
        self.images, self.labels, self.opened_classes = images, labels, images.classes
        self.digest: str | None = None
        """The hash of all pixels, on rank 0 after the pass, where the set has no other fingerprint."""
        self._accumulators: list[Accumulator] = []

    def accumulate(self, new: AnyAccumulator) -> AnyAccumulator:
        """The accumulator to read after the pass: `new`, or one that is the same."""
        return _shared(self._accumulators, new)

    def relabel(self, classes: tuple[str, ...], metric: str) -> None:
        """Lets labels number `classes`. Raises UserError."""
        if self.images.classes != classes:
            self.images = Relabelled(self.images, classes, metric)

    def collect(
        self, features: Features | None, allow_mixed_sizes: bool, device: torch.device, reading: Reading
    ) -> None:
        """Makes the pass. Every rank calls it. Raises UserError and Stopped."""
        digest = PixelDigest()
        looking = [*self._accumulators, *([digest] if self.images.hashed else [])]
        pass_over(self.images, looking, features, allow_mixed_sizes, device, reading)
        self.digest = digest.value


class ReferenceSide:
    """The reference, and what metrics accumulate of it; `reference`: None where there is nothing to compare with."""

    def __init__(self, reference: Reference | None) -> None:
        self.reference = reference
        self.opened_classes = None if reference is None or reference.images is None else reference.images.classes
        self.used_by: list[str] = []
        """The metrics that need it."""
        self.digest: str | None = None
        self._accumulators: list[CachedAccumulator] = []
        self._known: list[CachedAccumulator] = []

    @property
    def images(self) -> ImageSet | None:
        return None if self.reference is None else self.reference.images

    def images_for(self, metric: str) -> ImageSet:
        """The reference's images. Raises UserError if there are none."""
        self.used_by.append(metric)
        if self.reference is None:
            raise UserError(
                f"evaluation.reference: {metric} compares images with others; give an index of shards, a folder, a tar or "
                "zip, an npz of samples or of moments"
            )
        if self.reference.images is None:
            moments = self.reference.moments
            raise UserError(
                f"evaluation.metrics: {metric} needs the reference's images, and {moments and moments.path} holds only "
                "moments; give the images, or set evaluation.metrics=[fd]"
            )
        return self.reference.images

    def accumulate(self, make: Callable[[int], AnyCached], metric: str) -> AnyCached:
        """The accumulator to read after the pass, `make(number of the reference's images)` or one that is the same; from the
        reference's file of moments where that has what is needed. Raises UserError if it cannot be had of this reference."""
        moments = None if self.reference is None else self.reference.moments
        if moments is not None:
            rows = moments.features
            known = make(0 if rows is None else len(rows))
            if (self.images is None or isinstance(known, FeatureMoments)) and known.read(moments):
                self.used_by.append(metric)
                return _shared(self._known, known)
        return _shared(self._accumulators, make(self.images_for(metric).count))

    def relabel(self, classes: tuple[str, ...], metric: str) -> None:
        """Lets labels number `classes`. Raises UserError."""
        images = self.images_for(metric)
        assert self.reference is not None
        if images.classes != classes:
            self.reference = replace(self.reference, images=Relabelled(images, classes, metric))

    def collect(self, features: Features | None, allow_mixed_sizes: bool, reading: Reading) -> None:
        """Makes the pass, where one is needed. Every rank calls it. Raises UserError and Stopped."""
        if self._accumulators:
            assert self.images is not None
            assert features is not None
            self.digest = collect(self.images, self._accumulators, features, allow_mixed_sizes, reading)


def _shared(known: list[Any], new: AnyAccumulator) -> AnyAccumulator:
    """The one of `known` that is the same as `new`; if there is none, `new`, which is known from now on."""
    for one in known:
        if type(one) is type(new) and one.wanted == new.wanted:
            return one
    known.append(new)
    return new
