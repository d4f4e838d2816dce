"""One file of numbers each row of which is a sample: a csv, or an npy [samples, ...]."""

from pathlib import Path

import numpy as np

from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.sources.image_source import Tick
from bigtrain.data.sources.samples import ANY_EXTENSION, FieldSpec, Listing, Samples, SampleSet
from bigtrain.data.sources.tables.csv_file import CSV_ENDINGS, CsvNumbers
from bigtrain.data.sources.tables.npy_rows import NpyRows
from bigtrain.errors import UserError


def is_rows(where: Path) -> bool:
    return where.is_file() and where.suffix.lower() in (".npy", *CSV_ENDINGS)


def list_rows(where: Path, tick: Tick) -> SampleSet:
    """All rows are of the split `train`, without classes. Raises UserError if there are none."""
    source = NpyRows(where) if where.suffix.lower() == ".npy" else CsvNumbers(where)
    listing = Listing([source], ANY_EXTENSION)
    for name, location in source.members():
        listing.add(name, location)
        tick(1)
    count = len(listing.names)
    if not count:
        raise UserError(f"{where}: has no rows")
    axes = source.axes if isinstance(source, CsvNumbers) else ()
    samples = Samples(listing.members(), np.zeros(count, dtype=np.int32))
    return SampleSet(where, (UNLABELLED,), {"train": samples}, 0, {"array": FieldSpec("array", names=axes)})
