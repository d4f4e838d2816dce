"""The digits that come with scikit-learn, as shards in the cache folder."""

import hashlib
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.splits import find_index
from bigtrain.errors import UserError

ENLARGED = {
    "train": "1e7bcb1d65165ca52800fe8ed6c127a10defff8228ebf28f0893b408a15f4e20",
    "validation": "7308aaad924f969909bd5ee3c1b5b53fae5958410c8716b6519672451c85671c",
}
"""By split, the SHA-256 of the digits of 16 x 16 pixels: of each its class and its pixels, in the order of `images_of`."""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BIGTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def images_of(index: Index) -> list[tuple[int, bytes]]:
    batches = [batch for _, batch in SplitLoader(index, rank=0, world=1, batch=100, workers=0)]
    return sorted(
        (label, image.numpy().tobytes())
        for batch in batches
        for label, image in zip(batch["label"].tolist(), batch["image"], strict=True)
    )


def test_every_sixth_digit_is_held_out_and_every_pixel_kept() -> None:
    digits = load_digits()
    grey = np.round(digits.images * 255 / 16).astype(np.uint8)
    held_out = np.arange(len(grey)) % 6 == 0
    for split, chosen, samples in (("train", ~held_out, 1497), ("validation", held_out, 300)):
        index = find_index("digits", split, 8)
        assert (index.samples, index.image_size, index.classes) == (samples, (8, 8), tuple("0123456789"))
        pairs = zip(digits.target[chosen].tolist(), grey[chosen], strict=True)
        assert images_of(index) == sorted((label, image.tobytes()) for label, image in pairs)


def test_enlarged_digits_are_the_same_pixels_everywhere() -> None:
    """Numbers of digits compare between machines only then; PNG files may differ, as encoders do."""
    for split, expected in ENLARGED.items():
        index = find_index("digits", split, 16)
        assert index.channels == 1
        content = b"".join(bytes([label]) + pixels for label, pixels in images_of(index))
        assert hashlib.sha256(content).hexdigest() == expected, split


def test_digits_are_made_once(cache: Path) -> None:
    written = digits_index("train", (16, 16)).stat().st_mtime_ns
    assert digits_index("validation", (16, 16)).exists()
    assert digits_index("train", (16, 16)).stat().st_mtime_ns == written
    assert [path.name for path in cache.iterdir()] == ["digits-16-v2"]
    assert Index.read(digits_index("train", (16, 16))).image_size == (16, 16)


@pytest.mark.slow
def test_ranks_at_once_do_not_harm_each_other(cache: Path) -> None:
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=digits_index, args=("train", (8, 8))) for _ in range(3)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(60)
    assert [rank.exitcode for rank in ranks] == [0, 0, 0]
    assert [path.name for path in cache.iterdir()] == ["digits-8-v2"]
    find_index("digits", "train", 8).check_files()


def test_a_cache_that_cannot_be_written_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BIGTRAIN_CACHE", os.fspath(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/.*cannot be written.*set BIGTRAIN_CACHE"):
        digits_index("train", (8, 8))


def test_a_damaged_cache_is_named(cache: Path) -> None:
    folder = digits_index("train", (8, 8)).parent
    os.truncate(folder / "train-000000.tar", 1024)
    with pytest.raises(UserError, match=r"data\.train: .*train-000000\.tar.* 1024 bytes.*remove the folder"):
        find_index("digits", "train", 8)
