"""One picture of some samples of an index, a row for each field: `launch/shard.py --show FILE.png INDEX`."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from bigtrain.data.fields.painting import TILE, text_tile
from bigtrain.data.index import Index, with_label
from bigtrain.data.read.reader import Reader
from bigtrain.errors import UserError
from bigtrain.runs.atomic import write_bytes

SAMPLES = 8
_GAP = 4


def write_sheet(index: Index, path: Path) -> None:
    """Writes the picture as a PNG, atomically. Raises UserError, also if it cannot be written."""
    file = io.BytesIO()
    sheet(index).save(file, format="PNG")
    try:
        write_bytes(path, file.getvalue())
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


def sheet(index: Index) -> Image.Image:
    """SAMPLES samples, evenly spread over the index: a column each, with the names of the fields at the left.

    Raises UserError for a sample that cannot be decoded.
    """
    numbers = np.unique(np.linspace(0, index.samples - 1, SAMPLES).round().astype(np.int64))
    fields = {name: field.for_show() for name, field in index.fields.items() if field.members}
    reader = Reader(replace(index, fields=with_label(fields)), list(fields))
    decoded, failures = reader.decode(numbers)
    for row, reason in failures.items():
        raise UserError(f"{index.home}/{reader.name(int(numbers[row]))}: {reason}; --verify lists all that is broken")
    rows = [[text_tile(f"{name} ({field.kind})"), *field.tiles(list(decoded[name]))] for name, field in fields.items()]
    width = max(len(row) for row in rows) * (TILE + _GAP) + _GAP
    image = Image.new("RGB", (width, len(rows) * (TILE + _GAP) + _GAP), (230, 230, 230))
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            image.paste(tile, (_GAP + column * (TILE + _GAP), _GAP + row * (TILE + _GAP)))
    return image
