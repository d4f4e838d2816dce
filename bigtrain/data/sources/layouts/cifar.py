"""The binary versions of CIFAR-10 and CIFAR-100."""

import itertools
from pathlib import Path

import numpy as np

from bigtrain.data.sources.image_source import MOST_BYTES, Tick
from bigtrain.data.sources.layouts.class_names import named_classes
from bigtrain.data.sources.layouts.raw_files import files_in, raw_pictures
from bigtrain.data.sources.raw_pixels import Records
from bigtrain.data.sources.samples import SampleSet
from bigtrain.errors import UserError
from bigtrain.untrusted import read_plain

_CIFAR_10 = {"train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test": ("test_batch.bin",)}
_CIFAR_10_FILES = frozenset(itertools.chain(*_CIFAR_10.values()))
_CIFAR_100 = {"train": ("train.bin",), "test": ("test.bin",)}
_SHAPE = (32, 32, 3)
_PIXELS = 32 * 32 * 3
_PICKLES = ({"data_batch_1", "batches.meta"}, {"train", "test", "meta"})
"""Files of CIFAR-10's and CIFAR-100's Python version."""


def is_cifar(folder: Path) -> bool:
    names = {path.name for path in files_in(folder)}
    wholes = ({"train.bin", "test.bin"}, *_PICKLES)
    return not names.isdisjoint(_CIFAR_10_FILES) or any(whole <= names for whole in wholes)


def list_cifar(folder: Path, tick: Tick) -> SampleSet:
    """A record is a label (or a coarse and a fine one), then a picture's channels. Raises UserError."""
    names = {path.name for path in files_in(folder)}
    ten = not names.isdisjoint(_CIFAR_10_FILES)
    if not ten and not {"train.bin", "test.bin"} <= names:
        raise UserError(
            f"{folder}: this is CIFAR's Python version, whose files are pickles, which can run code and are not opened; "
            "download its binary version (cifar-10-binary.tar.gz or cifar-100-binary.tar.gz) and unpack it"
        )
    lists = [folder / "classes.txt", folder / ("batches.meta.txt" if ten else "fine_label_names.txt")]
    classes = named_classes(lists, 10 if ten else 100)
    records = Records(_SHAPE, planar=True, header=0, record=_PIXELS + (1 if ten else 2))
    splits = {}
    for split, wanted in (_CIFAR_10 if ten else _CIFAR_100).items():
        if names.isdisjoint(wanted):
            continue
        if missing := [name for name in wanted if name not in names]:
            raise UserError(
                f"{folder / missing[0]}: missing, but others of its split are there; unpack cifar-10-binary.tar.gz again"
            )
        files = [folder / name for name in wanted]
        labels = [_labels(path, records.record, len(classes)) for path in files]
        splits[split] = raw_pictures(files, labels, records)
        tick(len(splits[split]))
    return SampleSet(folder, classes, splits, 0)


def _labels(path: Path, record: int, classes: int) -> np.ndarray:
    data = np.frombuffer(read_plain(path, MOST_BYTES), dtype=np.uint8)
    if len(data) == 0 or len(data) % record:
        raise UserError(f"{path}: {len(data)} bytes are not records of {record} bytes: truncated; download it again")
    labels = data[record - _PIXELS - 1 :: record].astype(np.int32)
    if labels.max() >= classes:
        raise UserError(f"{path}: label {labels.max()} of record {labels.argmax()} is out of range: {classes} classes")
    return labels
