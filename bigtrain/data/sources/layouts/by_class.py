"""Folders and archives of SPLIT/CLASS/picture or CLASS/picture, folders without classes, and folders of domains.

What is said of pictures is true of other files, and of the folders of clips, where these are asked for (`Choice`).
"""

import re
import sys
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigtrain.data.classes import in_order
from bigtrain.data.containers import container
from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.sources.clips import ClipListing
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource, Tick, is_hidden
from bigtrain.data.sources.opening import open_pictures
from bigtrain.data.sources.samples import PICTURE_EXTENSIONS, Listing, Names, Samples, SampleSet
from bigtrain.errors import UserError
from bigtrain.untrusted import looked_for

CLASS_FOLDERS = "SOURCE/CLASS/*.jpg or SOURCE/SPLIT/CLASS/*.jpg"
_TOO_DEEP = 3
SPLITS = frozenset({"train", "validation", "val", "test"})
"""Names of folders that are taken as splits where pictures have no classes."""
_ARCHIVE = re.compile(r".*\.(zip|tar|tar\.\w+|tgz|7z|rar)", re.IGNORECASE)
_CONTAINERS = frozenset({".h5", ".hdf5", ".hdf", ".parquet", ".arrow", ".feather", ".sqlite", ".db"})
_LISTED = 3
_DOMAIN = re.compile(rf"({'|'.join(sorted(SPLITS))})[A-Z]")


@dataclass(frozen=True)
class Choice:
    """Which files are samples: those that end as `endings` say, but for those of further fields, `without`. clips: each folder
    of such files is one sample."""

    endings: tuple[str, ...] = PICTURE_EXTENSIONS
    without: tuple[str, ...] = ()
    clips: bool = False

    def listing(self, source: ImageSource, tick: Tick) -> Listing | ClipListing:
        found = list_files(source, tick, self.endings, self.without)
        return ClipListing(found) if self.clips else found

    @property
    def missing(self) -> str:
        """What a folder that has none lacks, for messages."""
        noun = "folders of frames" if self.clips else "pictures" if self.endings == PICTURE_EXTENSIONS else "files"
        return f"no {noun} here ({', '.join(self.endings)})"


PICTURES = Choice()


def no_tick(count: int) -> None:
    """For a listing without a progress bar."""


def list_by_class(path: Path, tick: Tick = no_tick, choice: Choice = PICTURES) -> SampleSet:
    """The pictures of a folder, a tar or a zip. A folder around all of an archive is left away where it is one too many.

    Raises UserError for anything else.
    """
    if not path.exists():
        raise UserError(
            f"{path}: there is no such folder{looked_for(path)}; give a folder laid out as {CLASS_FOLDERS}, or the word digits"
        )
    source = open_pictures(path)
    listing = choice.listing(source, tick)
    if isinstance(listing, Listing) and listing.labels_files:
        tqdm.write(
            f"{source.shown(listing.labels_files[0])}: its labels are not read, since classes are taken from the folders; make "
            "shards of the folder that it lies in by itself, with --split NAME",
            file=sys.stderr,
        )
    return by_class(path, listing, skip_top=not isinstance(source, Folder), choice=choice)


def list_files(
    source: ImageSource,
    tick: Tick = no_tick,
    endings: tuple[str, ...] = PICTURE_EXTENSIONS,
    without: tuple[str, ...] = (),
) -> Listing:
    listing = Listing([source], endings, without)
    for name, location in source.members():
        listing.add(name, location)
        tick(1)
    if listing.unread and endings == PICTURE_EXTENSIONS:
        tqdm.write(
            f"{source.shown(listing.unread[0])}: this kind of picture is not read, and {len(listing.unread)} of such kinds are "
            "left out; convert them to png",
            file=sys.stderr,
        )
    return listing


def by_class(path: Path, listing: Listing | ClipListing, *, skip_top: bool, choice: Choice = PICTURES) -> SampleSet:
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
    _check_depths(path, first_at, choice, listing.names)
    _refuse_domains(path, classes, is_folder=not skip_top, is_split=2 in first_at)
    if isinstance(listing, Listing):
        inner = {folder[skip:] for folder in listing.left_folders} | (set() if skip_top else _folders_in(path, splits))
        _refuse_empty(path, inner, classes, splits, depth=max(first_at), missing=choice.missing)
    ordered = in_order(classes)
    numbers = np.empty(len(classes), dtype=np.int32)
    numbers[[classes[name] for name in ordered]] = np.arange(len(classes))
    pictures = Samples(listing.members(), numbers[found[:, 1]])
    by_split = {}
    for split_name in sorted(splits):
        of_split = np.flatnonzero(found[:, 0] == splits[split_name])
        by_split[split_name] = pictures.take(pictures.members.sorted_by_name(path, of_split))
    return SampleSet(path, tuple(ordered), by_split, listing.left_out)


def _common_top(names: Names) -> int:
    """Characters of the folder that all names share and that is one too many, with its slash; 0 if there is none."""
    if not len(names) or names[0].count("/") != _TOO_DEEP:
        return 0
    top = names[0].partition("/")[0] + "/"
    return len(top) if all(name.startswith(top) for name in names) else 0


def _top_around_splits(names: Names, splits: Sequence[str]) -> int:
    """Characters of the folder that all names of an archive share, with its slash; 0 if there is none, or it is a split."""
    top = names[0].partition("/")[0] + "/" if len(names) else ""
    return len(top) if top[:-1] not in splits and all(name.startswith(top) for name in names) else 0


def _refuse_domains(path: Path, classes: Mapping[str, int], is_folder: bool, is_split: bool) -> None:
    """Raises UserError where what looks like classes are domains: in an archive, or in a folder of the one that is given."""
    if (is_split or not is_folder) and all(map(_DOMAIN.fullmatch, classes)) and len({name[-1] for name in classes}) > 1:
        inner = (
            "give the folder in which these lie" if is_folder else "unpack it, and give the folder in which these lie"
        )
        raise UserError(f"{path}: {', '.join(sorted(classes))} look like domains, and not like classes; {inner}")


def _folders_in(path: Path, splits: Iterable[str]) -> set[str]:
    """The folders in a folder, and those in its splits, relative to it."""
    within = [path, *(path / split for split in splits if (path / split).is_dir())]
    return {
        str(inner.relative_to(path))
        for folder in within
        for inner in folder.iterdir()
        if inner.is_dir() and not is_hidden(inner.name)
    }


def _refuse_empty(
    path: Path, folders: Iterable[str], classes: Container[str], splits: Container[str], depth: int, missing: str
) -> None:
    """Raises UserError for a folder that would be a class, or a split, if it had a picture. depth: of class folders."""
    for folder in sorted(folders):
        top, *inner = parts = folder.split("/")
        if depth == 2 and top in SPLITS and top not in splits:
            raise UserError(f"{path / top}: {missing}, so this split would have none; fill it, or take it away")
        if top and len(parts) == depth and parts[-1] not in classes and (not inner or top in splits):
            raise UserError(f"{path / folder}: {missing}, so this class would have none; fill it, or take it away")


def _archives_in(folder: Path) -> str:
    """What to do if what was looked for may be in archives in the folder."""
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    names = [path.name for path in files if _ARCHIVE.fullmatch(path.name)]
    if not names:
        return _containers_in(files)
    shown = ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
    return (
        f"; there are archives ({shown}): give one of them, or unpack them; tars of samples are indexed by --index-only"
    )


def _containers_in(files: Iterable[Path]) -> str:
    """What to do if what was looked for is in a file of a kind that is not read."""
    for path in files:
        if path.suffix.lower() in _CONTAINERS and path.is_file() and (kind := container(path)):
            return (
                f"; {path.name} is {kind}, which is not read here: write what it holds as files SOURCE/CLASS/*.png (without "
                "classes by --labels none)"
            )
    return ""


def _check_depths(path: Path, first_at: Mapping[int, str], choice: Choice, names: Names) -> None:
    if not first_at:
        raise UserError(f"{path}: {choice.missing}, laid out as {CLASS_FOLDERS}{_archives_in(path)}")
    for depth, name in first_at.items():
        if depth not in (1, 2):
            where = "outside a class folder" if depth == 0 else "deeper than SPLIT/CLASS"
            top = "".join(f"{folder}/" for folder in name.split("/")[: max(0, depth - 2)])
            is_too_high = path.is_dir() and len(first_at) == 1 and all(name.startswith(top) for name in names)
            lower = f"give {path / top} as SOURCE, or " if top and is_too_high else ""
            raise UserError(
                f"{path}: {name} lies {where}; {lower}lay it out as {CLASS_FOLDERS}, or take the pictures of a folder without "
                "classes by --labels none"
            )
    if len(first_at) == 2:
        raise UserError(
            f"{path}: {first_at[1]} is laid out as CLASS/picture but {first_at[2]} as SPLIT/CLASS/picture; "
            f"choose one of {CLASS_FOLDERS}"
        )


def list_unlabelled(folder: Path, tick: Tick = no_tick, choice: Choice = PICTURES) -> SampleSet:
    """Lists all pictures of a folder, a tar or a zip as one class. Folders that are called as splits are (SPLITS) are splits;
    else all is `train`."""
    return _by_top_folder(folder, tick, choice, sorted(SPLITS))


def is_domains(folder: Path) -> bool:
    """Whether its folders are trainA, trainB and so on, as unpaired translation is handed out: two domains at least."""
    if not folder.is_dir():
        return False
    names = [path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return bool(names) and all(map(_DOMAIN.fullmatch, names)) and len({name[-1] for name in names}) > 1


def list_domains(folder: Path, tick: Tick = no_tick, choice: Choice = PICTURES) -> SampleSet:
    """Each folder is a split of its own, without classes. Raises UserError for one without pictures."""
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = _by_top_folder(folder, tick, choice, names)
    if empty := [name for name in names if name not in found.splits]:
        raise UserError(f"{folder / empty[0]}: {choice.missing}; fill this domain, or take the folder away")
    return found


def _by_top_folder(folder: Path, tick: Tick, choice: Choice, splits: Sequence[str]) -> SampleSet:
    """Samples of one class; their splits are the folders that they lie in, if those are all of `splits`, else `train`."""
    if not folder.exists():
        raise UserError(f"{folder}: there is no such folder{looked_for(folder)}; give a folder of pictures")
    source = open_pictures(folder)
    listing = choice.listing(source, tick)
    skip = 0 if isinstance(source, Folder) else _top_around_splits(listing.names, splits)
    count = len(listing.names)
    if not count:
        raise UserError(f"{folder}: {choice.missing}{_archives_in(folder)}")
    known = {split: number for number, split in enumerate(splits)}
    tops = np.fromiter((known.get(name[skip:].partition("/")[0], -1) for name in listing.names), np.int32, count)
    samples = Samples(listing.members(), np.zeros(count, dtype=np.int32))
    if tops.min() < 0:
        by_split = {"train": np.arange(count)}
    else:
        by_split = {split: np.flatnonzero(tops == number) for split, number in known.items() if number in tops}
    found = {
        split: samples.take(samples.members.sorted_by_name(folder, numbers)) for split, numbers in by_split.items()
    }
    return SampleSet(folder, (UNLABELLED,), found, listing.left_out)
