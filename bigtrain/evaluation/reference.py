"""The real side of a comparison: shards, images from anywhere, or the moments that another tool has kept of them.

What accumulators find in one pass over the images is kept in a cache, under a key of everything that determines it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.cluster import world
from bigtrain.cluster.passes import Reading, on_main
from bigtrain.data.index import Index
from bigtrain.data.remote import is_remote, shown
from bigtrain.data.sources.image_files import open_collection
from bigtrain.data.splits import open_index
from bigtrain.errors import UserError
from bigtrain.evaluation.images import ImageSet, ImagesFromFiles, Shards
from bigtrain.evaluation.moment_files import MomentsFile, holds_moments, read_moments
from bigtrain.evaluation.one_pass import pass_over
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.result import versions
from bigtrain.evaluation.statistics.accumulator import CachedAccumulator
from bigtrain.evaluation.statistics.subsets import PixelDigest
from bigtrain.features.cache import Cache, Entry
from bigtrain.features.network import Features

LEAST_REFERENCE = 4
"""Images of the smallest reference: a covariance of each half needs two."""


Labels = Callable[[], np.ndarray]
"""The class numbers of a set's images, int64 [count], without a look at any of them."""


@dataclass(frozen=True)
class Reference:
    """`images`: None where only moments are known; `moments`: None where they follow from the images; `labels`: None where
    the images have none. They number the classes of the images as these were opened."""

    images: ImageSet | None
    moments: MomentsFile | None = None
    labels: Labels | None = None

    @property
    def name(self) -> str:
        """For messages."""
        if self.images is not None:
            return self.images.name
        assert self.moments is not None
        return f"the moments in {self.moments.path}"

    def describe(self, digest: str | None) -> dict[str, Any]:
        """For the protocol."""
        facts = {} if self.images is None else self.images.describe(digest)
        return facts if self.moments is None else facts | {"moments": self.moments.describe()}


@dataclass(frozen=True)
class RealData:
    """What there is of real images. `reference`: what samples are compared with, None if with nothing; `train`: whose labels
    classifiers are trained on; `validation`: images of theirs that were held out; `test`: what a classifier that was trained
    on samples is tested on."""

    reference: Reference | None
    train: Index | None
    validation: Index | None
    test: Index | None

    @classmethod
    def of(cls, options: EvaluationOptions, train: Index | None, validation: Index | None) -> "RealData":
        """Of a model's own data, None for what nothing looks at. Raises UserError."""
        if validation is not None and train is not None and train.classes != validation.classes:
            raise UserError(
                f"{validation.path} (data.validation) does not have the classes of {train.path} (data.train)"
            )
        if options.reference not in ("train", "validation"):
            return cls(open_reference(options.reference), train, validation, validation)
        split = train if options.reference == "train" else validation
        if split is None and train is None:
            return cls(None, None, None, None)
        if split is None:
            raise UserError(
                "evaluation.reference: validation, but data.validation names no split; give one, or set "
                "evaluation.reference=train"
            )
        return cls(_of_shards(split_of(split, options.reference)), train, validation, validation)


def split_of(index: Index, split: str) -> Shards:
    """A split as a reference. Raises UserError if it is too small to be one."""
    images = Shards(index, split)
    _check_count(images, str(index.path))
    return images


def open_reference(where: str) -> Reference:
    """What `evaluation.reference` names: the index of shards, a folder, a tar or zip of images, an npz of samples or of
    moments. Raises UserError."""
    path = Path(where)
    if _is_index(where, "evaluation.reference"):
        images = _shards(where, "evaluation.reference")
        _check_count(images, where)
        return _of_shards(images)
    try:
        of_moments = path.suffix == ".npz" and holds_moments(path)
        reference = read_moments_and_samples(path) if of_moments else _of_files(path)
    except UserError as error:
        raise UserError(f"evaluation.reference: {error}") from None
    if reference.images is not None:
        _check_count(reference.images, where)
    return reference


def open_images(where: str) -> Reference:
    """Images to be evaluated: the index of shards (a path or a URL), a folder, a tar or zip of images, an npz of samples.

    Raises UserError.
    """
    return _of_shards(_shards(where, "WHAT")) if _is_index(where, "WHAT") else _of_files(Path(where))


def _of_shards(images: Shards) -> Reference:
    return Reference(images, labels=lambda: images.index.labels)


def _of_files(path: Path) -> Reference:
    collection = open_collection(path)
    labels = collection.labels
    return Reference(ImagesFromFiles(collection), labels=None if labels is None else lambda: labels)


def _is_index(where: str, key: str) -> bool:
    """Whether it names shards. Raises UserError for the URL of anything else, which is not fetched."""
    if not is_remote(where):
        return where.endswith(".json")
    if "://" in where and not where.partition("?")[0].endswith(".json"):
        raise UserError(
            f"{key}: {shown(where)}: a URL may be that of an index of shards (.json) alone; fetch it, and give its path"
        )
    return True


def _shards(where: str, key: str) -> Shards:
    """Of an index at a path or a URL; `key` is what named it."""
    index = open_index(where, "reference", key)
    if index.codes is not None:
        raise UserError(f"{key}: {where} is an index of codes; give that of the images ({index.codes.images['path']})")
    if index.image_size is None:
        raise UserError(
            f"{key}: {where} has images of different sizes; make shards of one size with launch/shard.py --size N"
        )
    return Shards(index, index.split)


def read_moments_and_samples(path: Path) -> Reference:
    """guided-diffusion's reference files hold samples beside the moments of more of them; others hold moments alone."""
    moments = read_moments(path)
    return replace(_of_files(path), moments=moments) if moments.has_samples else Reference(None, moments)


def _check_count(images: ImageSet, where: str) -> None:
    if images.count < LEAST_REFERENCE:
        raise UserError(f"{where}: {images.count} images are too few for a reference; {LEAST_REFERENCE} are the least")


def collect(
    images: ImageSet,
    accumulators: Sequence[CachedAccumulator],
    features: Features,
    allow_mixed_sizes: bool,
    reading: Reading,
) -> str | None:
    """Fills the accumulators, from what was kept of earlier evaluations and one pass for all the rest, which is then kept too.

    Every rank calls it; the accumulators are whole on rank 0. Returns the hash of all pixels, where the set has no other
    fingerprint. Raises UserError and Stopped.
    """
    keys = [_key(one, images, features, allow_mixed_sizes) for one in accumulators]
    digests: list[str | None] = []

    def restore() -> list[bool]:
        found = [_restore(images.cache, key, one) for one, key in zip(accumulators, keys, strict=True)]
        digests.extend(digest for _, digest in found)
        return [whole for whole, _ in found]

    kept = on_main("reads what is known of the reference", restore)
    missing = [(one, key) for one, key, whole in zip(accumulators, keys, kept, strict=True) if not whole]
    hashes = [PixelDigest()] if images.hashed else []
    if missing:
        looking = [*(one for one, _ in missing), *hashes]
        pass_over(images, looking, features, allow_mixed_sizes, features.device, reading)
        digests = [*(one.value for one in hashes), *digests]
    digest: str | None = world.broadcast_object(next(filter(None, digests), None))
    if world.is_main() and images.cache is not None:
        for one, key in missing:
            for part, tensors in one.entries():
                images.cache.write(one.kind, {**key, **part}, Entry(tensors, {"digest": digest if hashes else None}))
    return digest


def _key(one: CachedAccumulator, images: ImageSet, features: Features, allow_mixed_sizes: bool) -> dict[str, Any]:
    how = {"features": features.fingerprint, "allow_mixed_sizes": allow_mixed_sizes, "versions": versions()}
    return {**images.key, **how, "wanted": dict(one.wanted)}


def _restore(cache: Cache | None, key: Mapping[str, Any], one: CachedAccumulator) -> tuple[bool, str | None]:
    """(whether all of it was kept, and is in the accumulator then; the hash of the set's pixels that was kept with it)."""
    digests: list[str | None] = []

    def read(part: Mapping[str, Any]) -> Mapping[str, Any] | None:
        entry = None if cache is None else cache.read(one.kind, {**key, **part})
        if entry is not None:
            digests.append(entry.facts["digest"])
        return None if entry is None else entry.tensors

    return one.restore(read), next(iter(digests), None)
