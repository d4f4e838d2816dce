"""SVHN's cropped digits (Netzer et al. 2011), as MATLAB files: train_32x32.mat, test_32x32.mat, extra_32x32.mat."""

from pathlib import Path

import numpy as np

from bigtrain.data.sources.image_source import Tick
from bigtrain.data.sources.layouts.raw_files import files_in
from bigtrain.data.sources.samples import ANY_EXTENSION, Listing, Samples, SampleSet
from bigtrain.data.sources.tables.mat import MatImages, arrays
from bigtrain.errors import UserError

_FILES = {"extra": "extra_32x32.mat", "test": "test_32x32.mat", "train": "train_32x32.mat"}
_ZERO = 10
"""The label of the digit 0 in these files."""


def is_svhn(folder: Path) -> bool:
    return any(path.name in _FILES.values() for path in files_in(folder))


def list_svhn(folder: Path, tick: Tick) -> SampleSet:
    splits = {}
    for split, name in _FILES.items():
        if not (folder / name).exists():
            continue
        source = MatImages(folder / name)
        listing = Listing([source], ANY_EXTENSION)
        for member, location in source.members():
            listing.add(member, location)
        _, labels = arrays(folder / name)
        if labels.size and (labels.min() < 1 or labels.max() > _ZERO):
            raise UserError(f"{folder / name}: labels run from {labels.min()} to {labels.max()}, not from 1 to 10")
        splits[split] = Samples(listing.members(), (labels % _ZERO).astype(np.int32))
        tick(len(labels))
    return SampleSet(folder, tuple("0123456789"), splits, 0)
