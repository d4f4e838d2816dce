"""Shards of any fields, written by hand, with their index."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import webdataset as wds
from PIL import Image

from bigtrain.data.fields.field import Field
from bigtrain.data.index import Index, with_label
from bigtrain.data.shard import Shard
from bigtrain.data.tars import members
from bigtrain.runs.atomic import sha256_of

SHARD_SAMPLES = 4


def png(pixels: np.ndarray) -> bytes:
    """uint8 or uint16 [H, W], or uint8 [H, W, 1 or 3]."""
    file = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()


def npy(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, values, allow_pickle=False)
    return file.getvalue()


def make_shards(
    folder: Path,
    fields: Mapping[str, Field],
    samples: Sequence[Mapping[str, bytes]],
    labels: Sequence[int] | None = None,
    split: str = "train",
) -> Index:
    """Shards of SHARD_SAMPLES samples, each a mapping of extensions to contents."""
    folder.mkdir(parents=True, exist_ok=True)
    shards = []
    for first in range(0, len(samples), SHARD_SAMPLES):
        part = samples[first : first + SHARD_SAMPLES]
        keys = tuple(f"{first + n:05d}" for n in range(len(part)))
        path = folder / f"{split}-{first // SHARD_SAMPLES:06d}.tar"
        with wds.TarWriter(str(path), mtime=0.0, encoder=False) as tar:
            for key, sample in zip(keys, part, strict=True):
                tar.write({"__key__": key, **sample})
        with path.open("rb") as file:
            size = path.stat().st_size
            extents = {name: (offset, length) for name, offset, length in members(path, file, 0, size)}
        extensions = {extension for sample in part for extension in sample}
        columns = {}
        for extension in extensions:
            pairs = np.array([extents.get(f"{key}.{extension}", (-1, 0)) for key in keys])
            columns[extension] = (pairs[:, 0], pairs[:, 1])
        numbers = np.zeros(len(part), np.int64) if labels is None else np.array(labels[first : first + len(part)])
        shards.append(Shard(path.name, size, sha256_of(path), keys, numbers, columns))
    index = Index(folder / f"{split}.json", split, with_label(fields), tuple(shards))
    index.write()
    return Index.read(index.path)
