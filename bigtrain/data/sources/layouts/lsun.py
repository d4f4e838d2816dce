"""LSUN as it is handed out: an LMDB database for each class and split."""

import re
from pathlib import Path

import numpy as np

from bigtrain.data.classes import in_order
from bigtrain.data.sources.database import Database
from bigtrain.data.sources.image_source import Tick
from bigtrain.data.sources.samples import ANY_EXTENSION, Listing, Samples, SampleSet
from bigtrain.errors import UserError

_NAME = re.compile(r"(?P<label>.+?)(_(?P<split>train|val|test))?(_lmdb)?")


def is_lsun(where: Path) -> bool:
    return bool(_databases(where))


def list_lsun(where: Path, tick: Tick) -> SampleSet:
    """Databases named CLASS_SPLIT_lmdb, whose values are picture files."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in _databases(where):
        match = _NAME.fullmatch(path.resolve().name)
        assert match is not None
        found.setdefault(match["split"] or "train", []).append((match["label"], path))
    classes = tuple(in_order({label for pairs in found.values() for label, _ in pairs}))
    splits = {split: _split(pairs, classes, tick) for split, pairs in sorted(found.items())}
    return SampleSet(where, classes, splits, 0)


def _split(pairs: list[tuple[str, Path]], classes: tuple[str, ...], tick: Tick) -> Samples:
    """The pictures of the databases of (class, path)."""
    sources = [Database(path) for _, path in pairs]
    listing = Listing(sources, ANY_EXTENSION)
    for number, (source, (label, _)) in enumerate(zip(sources, pairs, strict=True)):
        for key, location in source.members():
            listing.add(f"{label}/{key}", location, number)
            tick(1)
    if not len(listing.names):
        raise UserError(f"{pairs[0][1]}: the database is empty; download it again")
    members = listing.members()
    of_source = np.array([classes.index(label) for label, _ in pairs], dtype=np.int32)
    return Samples(members, of_source[members.locations[:, 0]])


def _databases(where: Path) -> list[Path]:
    """LMDB folders: this one, or those in it."""
    if not where.is_dir():
        return []
    return [folder for folder in (where, *sorted(where.iterdir())) if (folder / "data.mdb").is_file()]
