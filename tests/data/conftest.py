"""Small shards whose pixels say which sample they are, and folders of pictures."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from bigtrain.data.index import Index
from bigtrain.data.write.foreign_shards import index_shards


def numbered_png(number: int, size: int = 4) -> bytes:
    """A picture that carries its sample's number in red and green, and a dark left column (to see a flip)."""
    pixels = np.empty((size, size, 3), dtype=np.uint8)
    pixels[:] = (number % 256, number // 256, 200)
    pixels[:, 0, 2] = 0
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG", compress_level=0)
    return file.getvalue()


def write_tar(path: Path, samples: Sequence[Mapping[str, object]]) -> Path:
    """A shard as webdataset itself writes it."""
    with wds.TarWriter(str(path), mtime=0.0) as tar:
        for sample in samples:
            tar.write(dict(sample))
    return path


def make_numbered_shards(shard_sizes: Sequence[int], folder: Path, size: int = 4) -> Index:
    """Shards of the given numbers of samples; sample n of the split is `numbered_png(n)` with the label n % 5."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 0
    for shard, samples in enumerate(shard_sizes):
        numbers = range(number, number + samples)
        contents = [{"__key__": f"{n:05d}", "png": numbered_png(n, size), "cls": str(n % 5).encode()} for n in numbers]
        write_tar(folder / f"train-{shard:06d}.tar", contents)
        number += samples
    return Index.read(index_shards(folder, workers=0, quiet=True)[0])


@pytest.fixture
def numbered_shards(tmp_path: Path) -> Callable[..., Index]:
    def make(shard_sizes: Sequence[int], folder: Path = tmp_path) -> Index:
        return make_numbered_shards(shard_sizes, folder)

    return make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder train/{cat,dog}/*.jpg and test/{cat,dog}/*.png of noise, some wide, some tall."""
    noise = np.random.default_rng(0)
    for split, extension, count in (("train", "jpg", 13), ("test", "png", 4)):
        for label in ("cat", "dog"):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                shape = (20 + number, 24, 3)
                pixels = noise.integers(0, 256, shape, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number:03d}.{extension}")
    return tmp_path / "pictures"
