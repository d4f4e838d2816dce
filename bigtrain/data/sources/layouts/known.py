"""The sets that the shard door knows by their look: which one a SOURCE is, and what pictures it has.

A folder or an archive of SPLIT/CLASS/picture, ImageNet as it is handed out (`imagenet`), LSUN's databases, the idx files
of MNIST and its like, and CIFAR's binary files. Whatever a set looks like, nothing in it is executed or unpickled.
"""

import contextlib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.archives import list_archive
from bigtrain.data.sources.layouts.imagenet import is_imagenet, list_imagenet
from bigtrain.data.sources.picture_reader import open_database, unpacked_file
from bigtrain.data.sources.pictures import PLACE, STORED, Names, Pictures, Pixels, Source, list_folder, read_classes
from bigtrain.errors import UserError

_IDX = re.compile(r"(?P<split>.+)-images[-.]idx3-ubyte(\.gz)?")
_SPLIT_OF_IDX = {"t10k": "test"}
_IDX_IMAGES, _IDX_LABELS = 0x803, 0x801
_CIFAR_10 = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
_CIFAR_10_FILES = frozenset(itertools.chain(*_CIFAR_10.values()))
_CIFAR_100 = {"train": ("train.bin",), "test": ("test.bin",)}
_CIFAR_SHAPE = (32, 32, 3)
_CIFAR_PIXELS = 32 * 32 * 3
_PICKLES = ({"data_batch_1", "batches.meta"}, {"train", "test", "meta"})
"""Files of CIFAR-10's and CIFAR-100's Python version."""
_LSUN = re.compile(r"(?P<label>.+?)(_(?P<split>train|val|test))?(_lmdb)?")


def list_source(where: Path, layout: str | None, *, quiet: bool = False) -> Source:
    """The pictures of a set. `layout`: one of LAYOUTS, None: as it looks. Raises UserError, which names the file."""
    try:
        if layout is None:
            layout = next((name for name, known in LAYOUTS.items() if known.looks(where)), "folder")
        elif not LAYOUTS[layout].looks(where):
            raise UserError(f"{where}: does not look like --layout {layout}: {LAYOUTS[layout].wants}")
        with tqdm(unit=" pictures", desc=f"listing {where}", disable=quiet, leave=False) as bar:
            return LAYOUTS[layout].lists(where, bar.update)
    except OSError as error:
        raise UserError(f"{error.filename or where}: cannot be read: {error.strerror}") from None


class _Layout:
    """A set that is known. `wants`: what it must have, for messages."""

    def __init__(
        self, looks: Callable[[Path], bool], lists: "Callable[[Path, Callable[[int], object]], Source]", wants: str
    ) -> None:
        self.looks, self.lists, self.wants = looks, lists, wants


def _idx_files(folder: Path) -> dict[str, Path]:
    """The images' files by split."""
    found = {match["split"]: path for path in _files(folder) if (match := _IDX.fullmatch(path.name))}
    return {_SPLIT_OF_IDX.get(split, split): found[split] for split in sorted(found)}


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []


def _list_idx(folder: Path, tick: Callable[[int], object]) -> Source:
    """Raw grey pictures and their labels in files of two numbers' sizes, as MNIST has them, gzipped or not."""
    splits, most = {}, 0
    for split, images in _idx_files(folder).items():
        labels_file = images.with_name(re.sub(r"-images([-.])idx3", r"-labels\1idx1", images.name))
        if not labels_file.exists():
            raise UserError(f"{labels_file}: missing, but {images.name} is there; copy the labels beside it")
        count, height, width = _idx_header(images, _IDX_IMAGES, 3)
        (labelled,) = _idx_header(labels_file, _IDX_LABELS, 1)
        if labelled != count:
            raise UserError(f"{labels_file}: has {labelled} labels for the {count} images of {images.name}")
        _check_length(images, 16 + count * height * width)
        _check_length(labels_file, 8 + count)
        labels = np.frombuffer(_content(labels_file)[8:], dtype=np.uint8).astype(np.int32)
        splits[split] = _raw(
            (images,), [labels], header=16, record=height * width, pixels=Pixels((height, width, 1), planar=False)
        )
        most = max(most, int(labels.max(initial=0)))
        tick(count)
    return Source(folder, _named_classes(folder, [folder / "classes.txt"], most + 1), splits, 0)


def _idx_header(path: Path, magic: int, dimensions: int) -> list[int]:
    header = np.frombuffer(_content(path)[: 4 + 4 * dimensions], dtype=">u4").tolist()
    if len(header) != 1 + dimensions or header[0] != magic:
        raise UserError(f"{path}: not an idx file of unsigned bytes in {dimensions} dimensions; download it again")
    return header[1:]


def _check_length(path: Path, wanted: int) -> None:
    if (found := len(_content(path))) != wanted:
        raise UserError(f"{path}: has {found} bytes, not the {wanted} that its header says; download it again")


def _content(path: Path) -> bytes:
    try:
        return unpacked_file(path) if path.suffix == ".gz" else path.read_bytes()
    except Undecodable as error:
        raise UserError(f"{error}; download it again") from None


def _named_classes(folder: Path, lists: Sequence[Path], least: int) -> tuple[str, ...]:
    """The lines of the first of `lists` that is there, else numbers; `least`: how many the labels need."""
    for path in lists:
        if path.exists():
            classes = read_classes(path)
            if len(classes) < least:
                raise UserError(f"{path}: has {len(classes)} names, but labels run to {least - 1}")
            return classes
    return tuple(map(str, range(least)))


def _raw(
    files: tuple[Path, ...], labels: Sequence[np.ndarray], *, header: int, record: int, pixels: Pixels
) -> Pictures:
    """Raw pictures that follow one another in `files`, `header` bytes into each and then every `record` bytes.

    labels: int32 [n] for each file.
    """
    size = int(np.prod(pixels.shape))
    names, places = Names(), []
    for number, (path, of_file) in enumerate(zip(files, labels, strict=True)):
        for place in range(len(of_file)):
            names.append(f"{path.name}/{place:08d}")
        column = np.full((len(of_file), PLACE), STORED, dtype=np.int64)
        column[:, 0], column[:, 2] = number, size
        column[:, 1] = header + (record - size) + np.arange(len(of_file)) * record
        places.append(column)
    return Pictures(names, np.concatenate(labels), files, "pixels", np.concatenate(places), pixels)


def _is_cifar(folder: Path) -> bool:
    names = {path.name for path in _files(folder)}
    wholes = ({"train.bin", "test.bin"}, *_PICKLES)
    return not names.isdisjoint(_CIFAR_10_FILES) or any(whole <= names for whole in wholes)


def _list_cifar(folder: Path, tick: Callable[[int], object]) -> Source:
    """CIFAR-10's or CIFAR-100's binary version: a label (or a coarse and a fine one), then a picture's channels."""
    names = {path.name for path in _files(folder)}
    ten = not names.isdisjoint(_CIFAR_10_FILES)
    if not ten and not {"train.bin", "test.bin"} <= names:
        raise UserError(
            f"{folder}: this is CIFAR's Python version, whose files are pickles, which can run code and are not opened; "
            "download its binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz) and unpack it"
        )
    lists = [folder / "classes.txt", folder / ("batches.meta.txt" if ten else "fine_label_names.txt")]
    classes = _named_classes(folder, lists, 10 if ten else 100)
    record = _CIFAR_PIXELS + (1 if ten else 2)
    splits = {}
    for split, wanted in (_CIFAR_10 if ten else _CIFAR_100).items():
        if names.isdisjoint(wanted):
            continue
        if missing := [name for name in wanted if name not in names]:
            raise UserError(
                f"{folder / missing[0]}: missing, but others of its split are there; unpack cifar-10-binary.tar.gz again"
            )
        files = tuple(folder / name for name in wanted)
        labels = [_cifar_labels(path, record, len(classes)) for path in files]
        splits[split] = _raw(files, labels, header=0, record=record, pixels=Pixels(_CIFAR_SHAPE, planar=True))
        tick(len(splits[split]))
    return Source(folder, classes, splits, 0)


def _cifar_labels(path: Path, record: int, classes: int) -> np.ndarray:
    data = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    if len(data) == 0 or len(data) % record:
        raise UserError(f"{path}: {len(data)} bytes are not records of {record} bytes: truncated; download it again")
    labels = data[record - _CIFAR_PIXELS - 1 :: record].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(f"{path}: label {labels.max()} of record {labels.argmax()} is out of range: {classes} classes")
    return labels


def _databases(where: Path) -> list[Path]:
    """LMDB folders: this one, or those in it."""
    if not where.is_dir():
        return []
    return [folder for folder in (where, *sorted(where.iterdir())) if (folder / "data.mdb").is_file()]


def _list_lsun(where: Path, tick: Callable[[int], object]) -> Source:
    """LMDB databases named CLASS_SPLIT_lmdb, whose values are picture files and whose keys name them."""
    found: dict[str, list[tuple[str, Path]]] = {}
    for path in _databases(where):
        match = _LSUN.fullmatch(path.resolve().name)
        assert match is not None
        found.setdefault(match["split"] or "train", []).append((match["label"], path))
    classes = tuple(sorted({label for pairs in found.values() for label, _ in pairs}))
    splits: dict[str, Pictures] = {}
    for split, pairs in sorted(found.items()):
        names, files, counts = Names(), [], []
        for label, path in pairs:
            before = len(names)
            for key in _keys(path):
                names.append(f"{label}/{key.hex()}")
                tick(1)
            files.append(path)
            counts.append(len(names) - before)
        if not len(names):
            raise UserError(f"{pairs[0][1]}: the database is empty; download it again")
        places = np.full((len(names), PLACE), STORED, dtype=np.int64)
        places[:, 0] = np.repeat(np.arange(len(files)), counts)
        numbers = np.repeat([classes.index(label) for label, _ in pairs], counts).astype(np.int32)
        splits[split] = Pictures(names, numbers, tuple(files), "lmdb", places)
    return Source(where, classes, splits, 0)


def _keys(path: Path) -> Iterator[bytes]:
    with contextlib.closing(open_database(path)) as database, database.begin() as transaction:
        for key in transaction.cursor().iternext(keys=True, values=False):
            yield bytes(key)


def _list_folder(where: Path, tick: Callable[[int], object]) -> Source:
    source = list_folder(where)
    tick(sum(map(len, source.splits.values())))
    return source


LAYOUTS: Mapping[str, _Layout] = {
    "imagenet": _Layout(
        is_imagenet,
        list_imagenet,
        "it wants ILSVRC2012_img_train.tar or train/n01440764/..., and for validation pictures their true classes",
    ),
    "cifar": _Layout(
        _is_cifar, _list_cifar, "it wants the binary version's data_batch_1.bin ... or train.bin, test.bin"
    ),
    "idx": _Layout(
        lambda where: bool(_idx_files(where)), _list_idx, "it wants files train-images-idx3-ubyte, gzipped or not"
    ),
    "lsun": _Layout(
        lambda where: bool(_databases(where)), _list_lsun, "it wants LMDB folders CLASS_SPLIT_lmdb with a data.mdb"
    ),
    "archive": _Layout(Path.is_file, list_archive, "it wants a .tar or .zip of SPLIT/CLASS/picture"),
    "folder": _Layout(Path.is_dir, _list_folder, "it wants a folder of SPLIT/CLASS/picture"),
}
"""By name; the first that looks like the SOURCE is taken."""
