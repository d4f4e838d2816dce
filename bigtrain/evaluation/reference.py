"""The real side of a comparison: shards, images from anywhere, or the moments that another tool has kept of them.

What all ranks find in one pass over the images is kept, under a key of everything that determines it.
"""

from collections.abc import Callable
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
from bigtrain.evaluation.metrics.class_features import ClassFeatures
from bigtrain.evaluation.metrics.moments import Moments
from bigtrain.evaluation.moment_files import Gaussian, holds_moments, read_moments
from bigtrain.evaluation.options import EvaluationOptions
from bigtrain.evaluation.result import versions
from bigtrain.evaluation.survey import Findings, Survey, Wants
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
    moments: Gaussian | None = None
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
    def of(cls, options: EvaluationOptions, train: Index, validation: Index | None) -> "RealData":
        """Of a model's own data. Raises UserError."""
        if validation is not None and train.classes != validation.classes:
            raise UserError(
                f"{validation.path} (data.validation) does not have the classes of {train.path} (data.train)"
            )
        if options.reference not in ("train", "validation"):
            return cls(open_reference(options.reference), train, validation, validation)
        split = train if options.reference == "train" else validation
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


def survey_reference(
    images: ImageSet, wants: Wants, features: Features, allow_mixed_sizes: bool, reading: Reading
) -> Findings:
    """What `wants` asks for, from what was kept and one pass for all the rest, which is then kept too.

    Every rank calls it; Findings are whole on rank 0. Raises UserError and Stopped.
    """
    parts = {name: part for name, part in _parts(wants).items() if part != Wants()}
    cache = images.cache
    keys = {name: _key(name, part, images, features, allow_mixed_sizes) for name, part in parts.items()}
    kept = Findings()

    def restore() -> list[str]:
        return [name for name in parts if cache is not None and _restore(cache, name, keys[name], kept)]

    there = on_main(restore)
    missing = [name for name in parts if name not in there]
    found = Findings()
    if missing:
        asked = replace(wants, **{_FIELDS[name]: _DEFAULTS[_FIELDS[name]] for name in there}, digest=images.hashed)
        found = Survey(images, asked, features, None, allow_mixed_sizes, features.device).run(reading)
    if world.is_main():
        found.stored = None if found.stored is None else found.stored.cpu()
        for name in missing:
            if cache is not None:
                _keep(cache, name, keys[name], found)
        for name in there:
            setattr(found, _FIELDS[name], getattr(kept, _FIELDS[name]))
        found.digest = found.digest or kept.digest
    found.digest = world.broadcast_object(found.digest)
    return found


_FIELDS = {
    "moments": "moments",
    "class_features": "by_class",
    "half_moments": "halves",
    "features": "stored",
}
"""What each kind of entry holds, among the wants and among the findings."""
_DEFAULTS: dict[str, Any] = {"moments": False, "by_class": 0, "halves": 0, "stored": 0}


def _parts(wants: Wants) -> dict[str, Wants]:
    return {name: replace(Wants(), **{field: getattr(wants, field)}) for name, field in _FIELDS.items()}


def _key(name: str, part: Wants, images: ImageSet, features: Features, allow_mixed_sizes: bool) -> dict[str, Any]:
    wanted = {_FIELDS[name]: getattr(part, _FIELDS[name])}
    how = {"features": features.fingerprint, "allow_mixed_sizes": allow_mixed_sizes, "versions": versions()}
    return {**images.key, **how, "wanted": wanted}


def _keep(cache: Cache, name: str, key: dict[str, Any], found: Findings) -> None:
    facts = {"digest": found.digest}
    if name == "moments":
        assert found.moments is not None
        cache.write(name, key, Entry(found.moments.tensors(), facts))
    elif name == "features":
        assert found.stored is not None
        cache.write(name, key, Entry({"features": found.stored}, facts))
    elif name == "half_moments":
        assert found.halves is not None
        tensors = {
            f"{number}/{part}": value
            for number, moments in enumerate(found.halves)
            for part, value in moments.tensors().items()
        }
        cache.write(name, key, Entry(tensors, facts))
    else:
        assert found.by_class is not None
        for number, features in enumerate(found.by_class):  # an entry each: all of them may not fit into memory
            cache.write(name, key | {"class": number}, Entry({"features": features}, facts))


def _restore(cache: Cache, name: str, key: dict[str, Any], found: Findings) -> bool:
    """Whether it was kept, and then is put into `found`."""
    if name == "class_features":
        return _restore_classes(cache, key, found)
    entry = cache.read(name, key)
    if entry is None:
        return False
    found.digest = entry.facts["digest"]
    if name == "moments":
        found.moments = Moments.from_tensors(entry.tensors)
    elif name == "features":
        found.stored = entry.tensors["features"]
    else:
        first, second = (
            Moments.from_tensors({part: entry.tensors[f"{number}/{part}"] for part in ("count", "total", "outer")})
            for number in range(2)
        )
        found.halves = (first, second)
    return True


def _restore_classes(cache: Cache, key: dict[str, Any], found: Findings) -> bool:
    classes: int = key["wanted"]["by_class"]
    whole: ClassFeatures | None = None
    for number in range(classes):
        entry = cache.read("class_features", key | {"class": number})
        if entry is None:
            return False
        features = entry.tensors["features"]
        if whole is None:
            whole = ClassFeatures(classes, features.shape[1])
        whole.add(features, np.full(len(features), number), np.arange(len(features)))
        found.digest = entry.facts["digest"]
    found.by_class = whole
    return True
