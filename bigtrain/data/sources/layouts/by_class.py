"""Folders and archives of SPLIT/CLASS/picture or CLASS/picture, and folders of pictures without classes."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource, Tick
from bigtrain.data.sources.opening import open_source
from bigtrain.data.sources.pictures import PICTURE_EXTENSIONS, Listing, Names, Pictures, PictureSet
from bigtrain.errors import UserError

CLASS_FOLDERS = "SOURCE/CLASS/*.jpg or SOURCE/SPLIT/CLASS/*.jpg"
_TOO_DEEP = 3
SPLITS = frozenset({"train", "validation", "val", "test"})
"""Names of folders that are taken as splits where pictures have no classes."""


def no_tick(count: int) -> None:
    """For a listing without a progress bar."""


def list_by_class(path: Path, tick: Tick = no_tick) -> PictureSet:
    """The pictures of a folder, a tar or a zip. A folder around all of an archive is left away where it is one too many.

    Raises UserError for anything else.
    """
    if not path.exists():
        raise UserError(
            f"{path}: there is no such folder; give a folder laid out as {CLASS_FOLDERS}, or the word digits"
        )
    source = open_source(path)
    return by_class(path, list_pictures(source, tick), skip_top=not isinstance(source, Folder))


def list_pictures(source: ImageSource, tick: Tick = no_tick) -> Listing:
    listing = Listing([source])
    for name, location in source.members():
        listing.add(name, location)
        tick(1)
    return listing


def by_class(path: Path, listing: Listing, *, skip_top: bool) -> PictureSet:
    """Splits and classes as the names say; the split of CLASS/picture is `train`. Raises UserError for other names.

    skip_top: a folder that all names begin with is left away where they are one level too deep, as archives often have it.
    """
    skip = _common_top(listing.names) if skip_top else 0
    splits: dict[str, int] = {}
    classes: dict[str, int] = {}
    first_at: dict[int, str] = {}
    found = np.empty((len(listing.names), 2), dtype=np.int32)
    for number, name in enumerate(listing.names):
        *folders, _ = name[skip:].split("/")
        first_at.setdefault(len(folders), name)
        *split, label = folders[-2:] or [""]
        found[number, 0] = splits.setdefault(split[0] if split else "train", len(splits))
        found[number, 1] = classes.setdefault(label, len(classes))
    _check_depths(path, first_at)
    ordered = sorted(classes)
    numbers = np.empty(len(classes), dtype=np.int32)
    numbers[[classes[name] for name in ordered]] = np.arange(len(classes))
    pictures = Pictures(listing.members(), numbers[found[:, 1]])
    by_split = {}
    for split_name in sorted(splits):
        of_split = np.flatnonzero(found[:, 0] == splits[split_name])
        by_split[split_name] = pictures.take(pictures.members.sorted_by_name(path, of_split))
    return PictureSet(path, tuple(ordered), by_split, listing.left_out)


def _common_top(names: Names) -> int:
    """Characters of the folder that all names share and that is one too many, with its slash; 0 if there is none."""
    if not len(names) or names[0].count("/") != _TOO_DEEP:
        return 0
    top = names[0].partition("/")[0] + "/"
    return len(top) if all(name.startswith(top) for name in names) else 0


def _check_depths(path: Path, first_at: Mapping[int, str]) -> None:
    if not first_at:
        raise UserError(f"{path}: no pictures here ({', '.join(PICTURE_EXTENSIONS)}), laid out as {CLASS_FOLDERS}")
    for depth, name in first_at.items():
        if depth not in (1, 2):
            where = "outside a class folder" if depth == 0 else "deeper than SPLIT/CLASS"
            raise UserError(
                f"{path}: {name} lies {where}; lay it out as {CLASS_FOLDERS}, or take the pictures of a folder without "
                "classes by --labels none"
            )
    if len(first_at) == 2:
        raise UserError(
            f"{path}: {first_at[1]} is laid out as CLASS/picture but {first_at[2]} as SPLIT/CLASS/picture; "
            f"choose one of {CLASS_FOLDERS}"
        )


def list_unlabelled(folder: Path) -> PictureSet:
    """Lists all pictures as one class. Folders that are called as splits are (SPLITS) are splits; else all is `train`."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; give a folder of pictures")
    listing = list_pictures(Folder(folder))
    count = len(listing.names)
    if not count:
        raise UserError(f"{folder}: no pictures here ({', '.join(PICTURE_EXTENSIONS)})")
    known = {split: number for number, split in enumerate(sorted(SPLITS))}
    tops = np.fromiter((known.get(name.partition("/")[0], -1) for name in listing.names), np.int8, count)
    pictures = Pictures(listing.members(), np.zeros(count, dtype=np.int32))
    if tops.min() < 0:
        by_split = {"train": np.arange(count)}
    else:
        by_split = {split: np.flatnonzero(tops == number) for split, number in known.items() if number in tops}
    splits = {
        split: pictures.take(pictures.members.sorted_by_name(folder, numbers)) for split, numbers in by_split.items()
    }
    return PictureSet(folder, (UNLABELLED,), splits, listing.left_out)
