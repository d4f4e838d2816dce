"""scikit-learn's handwritten digits (1797 real images of 8 x 8 pixels, ten classes) as shards, without a download.

Every sixth image is held out: 1497 for training, 300 for validation. Grey values 0 .. 16 become 255 * value / 16, the
image is enlarged by bicubic interpolation and stored as grey PNG; then digits are written like any other pictures.
"""

import shutil
import tempfile
import uuid
from pathlib import Path

import numpy as np
from PIL import Image

from bigtrain.data.index import FORMAT_VERSION
from bigtrain.data.sources.layouts.by_class import list_by_class
from bigtrain.data.write.shards import ShardOptions, write_shards
from bigtrain.errors import UserError
from bigtrain.runs.atomic import cache_folder, sync_folder
from bigtrain.sizes import size_flag

DIGITS_SIZE = 16
"""Pixels of a side, if nobody asks for others."""
SPLITS = ("train", "validation")
_HELD_OUT_EVERY = 6
_CACHED_SAMPLES_PER_SHARD = 256


def digits_index(split: str, size: tuple[int, int] | None = None) -> Path:
    """The path of the digits' index at (height, width) `size`, 16 x 16 if None; makes the shards once, in the cache folder.

    They are written to a temporary folder that is then renamed, so several ranks or runs at once do not harm each other.
    """
    assert split in SPLITS, f"digits have the splits {SPLITS}, not {split}"
    height, width = size or (DIGITS_SIZE, DIGITS_SIZE)
    folder = cache_folder() / f"digits-{size_flag((height, width))}-v{FORMAT_VERSION}"
    if not folder.exists():
        temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.tmp")
        options = ShardOptions(size=(height, width), format="png", samples_per_shard=_CACHED_SAMPLES_PER_SHARD)
        try:
            write_digits(temporary, options, workers=0, quiet=True)
            temporary.rename(folder)
            sync_folder(folder.parent)
        except (OSError, UserError) as error:
            if not folder.exists():  # otherwise another run was first, and its folder is the same
                raise UserError(f"{error}; set BIGTRAIN_CACHE to a folder that can be written") from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder / f"{split}.json"


def write_digits(out: Path, options: ShardOptions, *, workers: int, quiet: bool = False) -> list[Path]:
    """Writes the digits of `options.size` pixels as shards into `out`, as shards.write_shards does."""
    assert options.size is not None, "digits are enlarged from 8 x 8, so a size is needed"
    with tempfile.TemporaryDirectory(prefix="digits-") as folder:
        _unpack(Path(folder), options.size)
        return write_shards(list_by_class(Path(folder)), out, options, workers=workers, quiet=quiet)


def _unpack(folder: Path, size: tuple[int, int]) -> None:
    """Writes SPLIT/CLASS/NUMBER.png."""
    from sklearn.datasets import load_digits  # takes a second to import, and only this needs it

    digits = load_digits()
    for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        split = "validation" if number % _HELD_OUT_EVERY == 0 else "train"
        path = folder / split / str(label) / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray(np.round(values * 255 / 16).astype(np.uint8))
        grey.resize(size[::-1], Image.Resampling.BICUBIC).save(path)
