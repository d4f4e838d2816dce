"""ImageNet (ILSVRC2012) as it is handed out: tars within a tar, or folders, and validation pictures with a list of classes.

Classes are the WordNet numbers in their order, as everybody numbers them, with their words where a file tells them:
"n01440764 tench, Tinca tinca". Looked for in SOURCE and the folders in it that the two distributions have:

    ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar          image-net.org; or unpacked, as train/WNID/*.JPEG and
    ILSVRC2012_devkit_t12/data/meta.mat                       val/*.JPEG (in WNID folders, or flat)
    ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt
    ILSVRC/Data/CLS-LOC/{train/WNID,val}/*.JPEG               Kaggle
    LOC_val_solution.csv, LOC_synset_mapping.txt
    synset_words.txt                                          "WNID words" a line, as Caffe has it
"""

import csv
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import Tick
from bigtrain.data.sources.layouts.by_class import list_files
from bigtrain.data.sources.layouts.class_names import read_text
from bigtrain.data.sources.samples import Listing, Samples, SampleSet
from bigtrain.data.sources.tar import Tar
from bigtrain.errors import UserError

_WNID = re.compile(r"n\d{8}")
_VAL_NAME = re.compile(r"(?P<name>ILSVRC2012_val_(?P<number>\d{8}))\.JPEG", re.IGNORECASE)
_WORDS = ("LOC_synset_mapping.txt", "synset_words.txt")
_META = "meta.mat"
_WITHIN = (".", "Data/CLS-LOC", "ILSVRC/Data/CLS-LOC", "data", "ILSVRC2012_devkit_t12/data", "devkit/data")


def is_imagenet(source: Path) -> bool:
    """Whether there is the tar of tars, or flat validation pictures, or class folders with a list of their words or deep
    within. (Class folders and nothing else are a folder as any other.)"""
    if source.is_file():
        return source.name in ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
    if any(_find(source, f"ILSVRC2012_img_{split}.tar") for split in ("train", "val")):
        return True
    train, val = _find(source, "train"), _find(source, "val")
    if val is not None and val.is_dir() and any(_VAL_NAME.fullmatch(path.name) for path in val.iterdir()):
        return True
    if train is None or not train.is_dir() or not any(_WNID.fullmatch(path.name) for path in train.iterdir()):
        return False
    return train != source / "train" or any(_find(source, name) for name in (*_WORDS, _META))


@dataclass(frozen=True)
class _Part:
    """A split's pictures. Their labels are numbers of `wnids`; left_out: files that are no pictures by their extension."""

    pictures: Samples
    wnids: list[str]
    left_out: int


def list_imagenet(source: Path, tick: Tick) -> SampleSet:
    """Its train and val splits, whichever are there. Raises UserError, which says what is missing."""
    folder = source.parent if source.is_file() else source
    found: dict[str, _Part] = {}
    for split, lists in (("train", _list_train), ("val", _list_val)):
        if source.is_dir() or split in source.name:
            part = lists(folder, tick)
            if part is not None:
                found[split] = part
    words = _words(folder)
    wnids = sorted(set().union(*(part.wnids for part in found.values())))
    if not wnids:
        raise UserError(f"{source}: no pictures of ImageNet here; see `python launch/shard.py --help`")
    numbers = {wnid: number for number, wnid in enumerate(wnids)}
    splits = {}
    for split, part in found.items():
        of_wnids = np.array([numbers[wnid] for wnid in part.wnids], dtype=np.int32)
        labelled = replace(part.pictures, labels=of_wnids[part.pictures.labels])
        splits[split] = labelled.take(labelled.members.sorted_by_name(source))
    classes = tuple(f"{wnid} {words[wnid]}" if wnid in words else wnid for wnid in wnids)
    return SampleSet(source, classes, splits, sum(part.left_out for part in found.values()))


def _find(folder: Path, name: str) -> Path | None:
    return next((folder / within / name for within in _WITHIN if (folder / within / name).exists()), None)


def _list_train(folder: Path, tick: Tick) -> _Part | None:
    archive, unpacked = _find(folder, "ILSVRC2012_img_train.tar"), _find(folder, "train")
    if archive is None:
        return None if unpacked is None else _list_class_folders(unpacked, tick)
    tar = Tar(archive)
    listing = Listing([tar])
    for inner, (begin, size) in tar.members():
        wnid = inner.rpartition("/")[2].removesuffix(".tar")
        if not _WNID.fullmatch(wnid):
            raise UserError(f"{archive}: member {inner} is not the tar of a class n01440764.tar")
        for name, location in tar.members_within(begin, begin + size, f"{archive}: {inner}"):
            listing.add(f"{wnid}/{name}", location)
            tick(1)
    return _labelled(listing, _own_folder)


def _list_val(folder: Path, tick: Tick) -> _Part | None:
    """Flat ones have their class from a list."""
    archive = _find(folder, "ILSVRC2012_img_val.tar")
    where = archive or _find(folder, "val")
    if where is None:
        return None
    if archive is not None:
        listing = list_files(Tar(archive), tick)
    elif any(_VAL_NAME.fullmatch(path.name) for path in where.iterdir()):
        listing = list_files(Folder(where), tick)
    else:
        return _list_class_folders(where, tick)
    truth = _true_classes(folder)

    def true_class(name: str) -> str | None:
        match = _VAL_NAME.fullmatch(name.rpartition("/")[2])
        return truth.get(match["name"]) if match else None

    return _labelled(listing, true_class)


def _list_class_folders(folder: Path, tick: Tick) -> _Part:
    source = Folder(folder)
    listing = Listing([source])
    for name, location in source.members():
        if not _WNID.match(name) or name.count("/") != 1:
            raise UserError(f"{folder}: {name} does not lie in a folder of its class, as n01440764")
        listing.add(name, location)
        tick(1)
    return _labelled(listing, _own_folder)


def _own_folder(name: str) -> str:
    return name.partition("/")[0]


def _labelled(listing: Listing, wnid_of: Callable[[str], str | None]) -> _Part:
    """The pictures of a folder or an archive. `wnid_of`: by a picture's name, None if nobody knows."""
    members = listing.members()
    labels = np.zeros(len(members), dtype=np.int32)
    numbers: dict[str, int] = {}
    for number, name in enumerate(members.names):
        wnid = wnid_of(name)
        if wnid is None:
            raise UserError(f"{members.shown(number)}: the list of true classes does not have it; remove the picture")
        labels[number] = numbers.setdefault(wnid, len(numbers))
    return _Part(Samples(members, labels), list(numbers), listing.left_out)


def _true_classes(folder: Path) -> dict[str, str]:
    """WNIDs by the validation pictures' names."""
    table = _find(folder, "LOC_val_solution.csv")
    if table is not None:
        found = csv.DictReader(read_text(table).splitlines())
        rows = [(row.get("ImageId"), row.get("PredictionString")) for row in found]
        truth = {name: (text or "").partition(" ")[0] for name, text in rows if name is not None}
        if wrong := next((wnid for wnid in truth.values() if not _WNID.fullmatch(wnid)), None):
            raise UserError(f"{table}: {wrong!r} is not a WNID such as n01440764; download it again")
        return truth
    numbers = _find(folder, "ILSVRC2012_validation_ground_truth.txt")
    if numbers is None:
        raise UserError(
            f"{folder}: the validation pictures are in no class folders, and no list has their classes; put "
            "ILSVRC2012_devkit_t12 (with data/ILSVRC2012_validation_ground_truth.txt) or LOC_val_solution.csv beside them"
        )
    meta = _find(folder, _META)
    if meta is None:
        raise UserError(f"{numbers}: its numbers are the devkit's own; put its meta.mat beside it, which says of what")
    wnids = {number: wnid for number, wnid, _ in _synsets(meta)}
    lines = numbers.read_text(encoding="ascii", errors="replace").split()
    if wrong := next((line for line in lines if not line.isdecimal() or int(line) not in wnids), None):
        raise UserError(f"{numbers}: {wrong!r} is not the number of a class in {meta.name}; download it again")
    return {f"ILSVRC2012_val_{number:08d}": wnids[int(line)] for number, line in enumerate(lines, start=1)}


def _synsets(meta: Path) -> list[tuple[int, str, str]]:
    """(number, WNID, words) of each class in the devkit's table."""
    from scipy.io import loadmat  # here, because only the devkit needs it

    try:
        table = loadmat(meta, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return [(int(row["ILSVRC2012_ID"]), str(row["WNID"]), str(row["words"])) for row in table]
    except Exception as error:  # scipy raises nearly anything on damaged files
        raise UserError(f"{meta}: not the devkit's table of classes ({error}); download it again") from None


def _words(folder: Path) -> Mapping[str, str]:
    """The words of each WNID, as far as a file tells them."""
    for name in _WORDS:
        path = _find(folder, name)
        if path is not None:
            pairs = (line.partition(" ") for line in read_text(path).splitlines())
            return {wnid: words.strip() for wnid, _, words in pairs}
    meta = _find(folder, _META)
    return {} if meta is None else {wnid: words for _, wnid, words in _synsets(meta)}
