"""The sets that launch/shard.py knows by their look: which one a SOURCE is, and what samples it has.

Whatever a set looks like, nothing in it is executed or unpickled.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigtrain.data.sources.image_source import Tick
from bigtrain.data.sources.layouts.by_class import PICTURES, Choice, is_domains, list_by_class, list_domains
from bigtrain.data.sources.layouts.cifar import is_cifar, list_cifar
from bigtrain.data.sources.layouts.dataset_json import is_dataset_json, list_dataset_json
from bigtrain.data.sources.layouts.idx import is_idx, list_idx
from bigtrain.data.sources.layouts.imagenet import is_imagenet, list_imagenet
from bigtrain.data.sources.layouts.lsun import is_lsun, list_lsun
from bigtrain.data.sources.layouts.rows import is_rows, list_rows
from bigtrain.data.sources.layouts.svhn import is_svhn, list_svhn
from bigtrain.data.sources.samples import SampleSet
from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar


def list_source(where: Path, layout: str | None, *, choice: Choice = PICTURES, quiet: bool = False) -> SampleSet:
    """The samples of a set. `layout`: one of LAYOUTS, None: as it looks. Raises UserError, which names the file."""
    try:
        if layout is None:
            layout = next((name for name, known in LAYOUTS.items() if known.looks(where)), "folder")
        elif not LAYOUTS[layout].looks(where):
            raise UserError(f"{where}: does not look like --layout {layout}: {LAYOUTS[layout].wants}")
        with ProgressBar(None, f"listing {where}", "files", quiet=quiet, leave=False) as bar:
            return LAYOUTS[layout].lists(where, bar.update, choice)
    except OSError as error:
        raise UserError(f"{error.filename or where}: cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class _Layout:
    """A set that is known. `wants`: what it must have, for messages."""

    looks: Callable[[Path], bool]
    lists: Callable[[Path, Tick, Choice], SampleSet]
    wants: str


def _as_published(lists: Callable[[Path, Tick], SampleSet]) -> Callable[[Path, Tick, Choice], SampleSet]:
    """Of a set whose files are what they are."""

    def list_all(where: Path, tick: Tick, choice: Choice) -> SampleSet:
        if choice != PICTURES:
            raise UserError(
                f"{where}: this is a set as it is published, in which no other files can be chosen; say --layout folder if "
                "it is a folder as any other"
            )
        return lists(where, tick)

    return list_all


LAYOUTS: Mapping[str, _Layout] = {
    "imagenet": _Layout(
        is_imagenet,
        _as_published(list_imagenet),
        "it wants ILSVRC2012_img_train.tar or train/n01440764/..., and for validation pictures their true classes",
    ),
    "cifar": _Layout(
        is_cifar, _as_published(list_cifar), "it wants the binary version's data_batch_1.bin ... or train.bin, test.bin"
    ),
    "idx": _Layout(is_idx, _as_published(list_idx), "it wants files train-images-idx3-ubyte, gzipped or not"),
    "lsun": _Layout(is_lsun, _as_published(list_lsun), "it wants LMDB folders CLASS_SPLIT_lmdb with a data.mdb"),
    "svhn": _Layout(is_svhn, _as_published(list_svhn), "it wants train_32x32.mat, test_32x32.mat or extra_32x32.mat"),
    "domains": _Layout(is_domains, list_domains, "it wants nothing but folders trainA, trainB, testA ..."),
    "dataset_json": _Layout(
        is_dataset_json, list_dataset_json, "it wants a folder or a zip with a dataset.json that has labels"
    ),
    "rows": _Layout(is_rows, _as_published(list_rows), "it wants one .npy or .csv, each row of which is a sample"),
    "archive": _Layout(Path.is_file, list_by_class, "it wants a .tar or .zip of SPLIT/CLASS/picture"),
    "folder": _Layout(Path.is_dir, list_by_class, "it wants a folder of SPLIT/CLASS/picture"),
}
"""By name; the first that looks like the SOURCE is taken."""
