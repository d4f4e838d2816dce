"""What idx files and CIFAR's have in common: pictures in files of raw pixels, and labels elsewhere."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigtrain.data.sources.raw_pixels import RawPixels, Records
from bigtrain.data.sources.samples import ANY_EXTENSION, Listing, Samples


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def raw_pictures(files: Sequence[Path], labels: Sequence[np.ndarray], records: Records) -> Samples:
    """A split that lies in `files`, one after the other. labels: int32 [n] for each file."""
    sources = [RawPixels(path, records) for path in files]
    listing = Listing(sources, ANY_EXTENSION)
    for number, source in enumerate(sources):
        for name, location in source.members():
            listing.add(name, location, number)
    return Samples(listing.members(), np.concatenate(labels))
