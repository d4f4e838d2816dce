"""Folders and zips of StyleGAN and EDM, whose labels are in dataset.json."""

import os
import posixpath
from pathlib import Path

import numpy as np

from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.sources.dataset_json import DATASET_JSON, DatasetJson, labels_file
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource, Tick, is_hidden
from bigtrain.data.sources.layouts.by_class import Choice
from bigtrain.data.sources.layouts.class_names import named_classes
from bigtrain.data.sources.opening import open_source
from bigtrain.data.sources.samples import Samples, SampleSet
from bigtrain.errors import UserError


def is_dataset_json(where: Path) -> bool:
    return _open(where) is not None


def list_dataset_json(where: Path, tick: Tick, choice: Choice) -> SampleSet:
    """All pictures are of the split `train`. Class names are the lines of classes.txt beside dataset.json or beside the zip,
    else numbers."""
    found = _open(where)
    assert found is not None
    source, labels = found
    listing = choice.listing(source, tick)
    if not len(listing.names):
        raise UserError(f"{where}: {choice.missing}")
    members = listing.members()
    classes: tuple[str, ...] = (UNLABELLED,)
    numbers = np.zeros(len(members), dtype=np.int64)
    if labels.labels is not None:
        numbers = labels.numbers(members.names)
        folder = where / labels.folder if where.is_dir() else where.parent
        classes = named_classes([folder / "classes.txt"], int(numbers.max()) + 1)
    samples = Samples(members, numbers.astype(np.int32))
    ordered = samples.take(members.sorted_by_name(where))
    return SampleSet(where, classes, {"train": ordered}, listing.left_out - 1)


def _open(where: Path) -> tuple[ImageSource, DatasetJson] | None:
    """The folder or zip with its labels; None if it has no such file. Tars are none of theirs."""
    source: ImageSource = Folder(where)
    found: dict[str, tuple[int, ...]] = {}
    names: list[str] = []
    if where.is_file() and (source := open_source(where)).kind == "zip":
        for name, location in source.members():
            names.append(name)
            if posixpath.basename(name) == DATASET_JSON:
                found[name] = location
    elif where.is_dir():
        names = [name for name in os.listdir(where) if not is_hidden(name)]
        found = (
            {str(path.relative_to(where)): () for path in where.glob(f"*/{DATASET_JSON}")} if len(names) == 1 else {}
        )
        if (where / DATASET_JSON).is_file():
            found[DATASET_JSON] = ()
    name_of_labels = labels_file(found, names)
    labels = None if name_of_labels is None else DatasetJson.read(source, name_of_labels, found[name_of_labels])
    return None if labels is None else (source, labels)
