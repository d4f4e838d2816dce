"""Real images for evaluation's tests: scikit-learn's digits at 8 pixels, in colour as most data are."""

import contextlib
import os
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

from bigtrain.data.digits import digits_index
from bigtrain.data.index import Index
from bigtrain.data.read.stream import SplitLoader
from bigtrain.data.read.variants import with_channels
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write.shards import ShardOptions, write_shards
from tests.features.feature_scripts import ColourMoments


@pytest.fixture(scope="session")
def pristine_digits(one_cache_for_all) -> Path:
    """The shards of the grey digits, written again as RGB, once for all test processes."""
    folder = one_cache_for_all / "rgb_digits"
    if not folder.exists():
        mine = folder.with_name(f"rgb_digits.{os.getpid()}")
        _write_in_colour(digits_index("train", (8, 8)).parent, mine)
        with contextlib.suppress(OSError):  # another process was first, and its folder is the same
            mine.rename(folder)
    return folder / "shards"


def _write_in_colour(grey: Path, folder: Path) -> None:
    for split in ("train", "validation"):
        index = with_channels(Index.read(grey / f"{split}.json"), 3)
        for _, batch in SplitLoader(index, rank=0, world=1, batch=index.samples, workers=0):
            for number, (image, label) in enumerate(zip(batch["image"], batch["label"].tolist(), strict=True)):
                path = folder / "pictures" / split / str(label) / f"{number:04d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image.numpy()).save(path)
    options = ShardOptions(size=None, format="png", samples_per_shard=256)
    write_shards(list_by_class(folder / "pictures"), folder / "shards", options, workers=0, quiet=True)


@pytest.fixture
def digits(pristine_digits, tmp_path) -> tuple[Index, Index]:
    """(train, validation), in a folder that nothing has been kept in yet."""
    folder = tmp_path / "digits"
    shutil.copytree(pristine_digits, folder)
    return Index.read(folder / "train.json"), Index.read(folder / "validation.json")


@pytest.fixture(scope="session")
def script(tmp_path_factory) -> str:
    """The path of a TorchScript feature network with 10 dimensions."""
    path = tmp_path_factory.mktemp("script") / "colour_moments.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        torch.jit.script(ColourMoments()).save(path)
    return str(path)
