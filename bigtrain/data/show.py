"""One picture of the first samples of an index, a row for each field: `launch/shard.py --show FILE.png INDEX`."""

import numpy as np
from PIL import Image

from bigtrain.data.fields.painting import TILE, text_tile
from bigtrain.data.index import Index
from bigtrain.data.read.reader import Reader
from bigtrain.errors import UserError

SAMPLES = 8
_GAP = 4


def sheet(index: Index) -> Image.Image:
    """SAMPLES samples, evenly spread over the index: a column each, with the names of the fields at the left.

    Raises UserError for a sample that cannot be decoded.
    """
    numbers = np.unique(np.linspace(0, index.samples - 1, SAMPLES).round().astype(np.int64))
    fields = {name: field.as_stored() for name, field in index.fields.items() if field.members}
    rows = []
    for name, field in fields.items():
        reader = Reader(index.with_fields({name: field}), [name])
        values = []
        for number in numbers:
            decoded, failures = reader.decode(np.array([number]))
            if failures:
                raise UserError(f"{index.home}/{reader.name(int(number))}: {failures[0]}; look at all with --verify")
            values.append(decoded[name][0])
        rows.append([text_tile(f"{name}: {field.kind}"), *field.tiles(values)])
    width = max(len(row) for row in rows) * (TILE + _GAP) + _GAP
    image = Image.new("RGB", (width, len(rows) * (TILE + _GAP) + _GAP), (230, 230, 230))
    for row, tiles in enumerate(rows):
        for column, tile in enumerate(tiles):
            image.paste(tile, (_GAP + column * (TILE + _GAP), _GAP + row * (TILE + _GAP)))
    return image
