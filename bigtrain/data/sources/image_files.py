"""A folder, a tar or a zip of images at any depth, as evaluation reads them; labels from KEY.cls files, StyleGAN's
dataset.json or class folders.

Content decides what an image is. EXIF does not turn images: other evaluators take pixels as they are stored, and the same
files must give the same number.
"""

import itertools
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from bigtrain.data.classes import in_order
from bigtrain.data.decode import Undecodable, decode, label
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS
from bigtrain.data.sources.collection import ImageCollection, file_key
from bigtrain.data.sources.dataset_json import DATASET_JSON, DatasetJson, labels_file
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.data.sources.npz import NpzSamples
from bigtrain.data.sources.opening import open_source
from bigtrain.data.sources.samples import Listing, Names
from bigtrain.errors import UserError
from bigtrain.untrusted import looked_for

EXTENSIONS = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
UNREAD = (".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".jfif")
"""Images that other tools count: a set must not be measured without them in silence."""
_TARS = (".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")


def open_collection(path: Path) -> ImageCollection:
    """The images at `path`. Raises UserError if that is nothing that holds images."""
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder{looked_for(path)}")
    try:
        if path.suffix == ".npz" and path.is_file():
            return NpzSamples(path)
        source = open_source(path)
        if source.kind == "tar" and not path.name.endswith(_TARS):
            raise UserError(f"{path}: is none of a folder, a tar or zip of images, or an npz of samples")
        return ImageFiles(source)
    except OSError as error:
        raise UserError(f"{error.filename or path}: cannot be read: {error.strerror}") from None


class ImageFiles(ImageCollection):
    """Encoded images in a source, in the order of their names."""

    def __init__(self, source: ImageSource) -> None:
        self.kind, self.path = source.kind, source.path
        every, images, marks, jsons = Names(), Listing([source], EXTENSIONS), {}, {}
        for name, location in source.members():
            every.append(name)
            if not images.add(name, location) and name.endswith(".cls"):
                marks[_stem(name)] = name, location
            if name.rpartition("/")[2] == DATASET_JSON and source.kind in ("folder", "zip"):
                jsons[name] = location
        which = labels_file(jsons, every)
        listed = None if which is None else DatasetJson.read(source, which, jsons[which])
        self._check(every, images)
        found = images.members()
        self._members = found.take(found.sorted_by_name(self.path, _without_features(found.names)))
        self.count = len(self._members)
        self.key = source.fingerprint(every) if isinstance(source, Folder) else file_key(self.path)
        stems = [_stem(name) for name in self._members.names] if marks else []
        if marks and all(stem in marks for stem in stems):
            self.classes, self.labels = self._numbered([self._label(source, *marks[stem]) for stem in stems])
        elif listed is not None:
            self.labels = None if listed.labels is None else listed.numbers(self._members.names)
            self.key += f" {DATASET_JSON}"  # what was cached when its folders were taken for classes is of other labels
        else:
            self.classes, self.labels = _folder_labels(self._members.names)
            if self.classes is not None and list(self.classes) != sorted(self.classes):
                self.key += " by number"  # what was cached of them when they were sorted as text is of other classes

    def _check(self, every: Names, images: Listing) -> None:
        unread = min((name for name in every if name.lower().endswith(UNREAD)), default=None)
        if unread is not None:
            raise UserError(
                f"{self.path}: {unread} looks like an image, of a kind that is not read ({', '.join(EXTENSIONS)} are); "
                "convert it, or take it away"
            )
        if not len(images.names):
            raise UserError(
                f"{self.path}: no images here ({', '.join(EXTENSIONS)}), in a {self.kind} of {len(every)} files"
            )

    def _numbered(self, labels: Sequence[int | str]) -> tuple[tuple[str, ...] | None, np.ndarray]:
        """(names of classes, None where labels are numbers of somebody else's; int64 [n])."""
        names = {label for label in labels if isinstance(label, str)}
        if not names:
            return None, np.array(labels, dtype=np.int64)
        if any(not isinstance(label, str) for label in labels):
            raise UserError(
                f"{self.path}: some of its labels are names ({min(names)!r}) and others numbers; use one kind"
            )
        classes = tuple(in_order(names))
        numbers = {name: number for number, name in enumerate(classes)}
        return classes, np.array([numbers[str(label)] for label in labels], dtype=np.int64)

    def _label(self, source: ImageSource, name: str, location: Sequence[int]) -> int | str:
        try:
            return label(source.read(name, location))
        except Undecodable as error:
            raise UserError(f"{self.path}: {name}: {error}") from None

    def image(self, number: int) -> np.ndarray:
        try:
            return decode(self._members.read(number))
        except OSError as error:
            raise UserError(f"{self._members.shown(number)}: cannot be read: {error.strerror}") from None

    def name(self, number: int) -> str:
        return self._members.names[number]


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))


def _without_features(names: Names) -> np.ndarray:
    """Numbers of those that are images. As in shards: npy holds pixels only where there is no picture, and features of it
    otherwise."""
    arrays = [number for number, name in enumerate(names) if name.lower().endswith(".npy")]
    if not arrays:
        return np.arange(len(names))
    pictures = {_stem(name) for name in names if not name.lower().endswith(".npy")}
    features = [number for number in arrays if _stem(names[number]) in pictures]
    return np.setdiff1d(np.arange(len(names)), features)


def _folder_labels(names: Names) -> tuple[tuple[str, ...], np.ndarray] | tuple[None, None]:
    """(names of classes, int64 [n]) if each image lies in the folder of its class, below what all share."""
    above = {name.rpartition("/")[0] for name in names}
    parts = {folder: PurePosixPath(folder).parts for folder in above}
    first, last = min(parts.values()), max(parts.values())  # what these two share, all do
    shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
    if any(len(folders) != shared + 1 for folders in parts.values()):
        return None, None
    classes = tuple(in_order({folders[-1] for folders in parts.values()}))
    numbers = {folder: classes.index(folders[-1]) for folder, folders in parts.items()}
    return classes, np.array([numbers[name.rpartition("/")[0]] for name in names], dtype=np.int64)
