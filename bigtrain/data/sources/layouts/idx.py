"""The idx files of MNIST and its like: raw grey pictures and their labels, gzipped or not."""

import re
from pathlib import Path

import numpy as np

from bigtrain.data.sources.image_source import Tick
from bigtrain.data.sources.layouts.class_names import named_classes
from bigtrain.data.sources.layouts.raw_files import files_in, raw_pictures
from bigtrain.data.sources.raw_pixels import Records, content
from bigtrain.data.sources.samples import SampleSet
from bigtrain.errors import UserError

_IMAGES = re.compile(r"(?P<split>.+)-images[-.]idx3-ubyte(\.gz)?")
_SPLITS = {"t10k": "test"}
_IMAGES_MAGIC, _LABELS_MAGIC = 0x803, 0x801


def is_idx(folder: Path) -> bool:
    return bool(_image_files(folder))


def list_idx(folder: Path, tick: Tick) -> SampleSet:
    """Raises UserError for files whose headers, lengths and labels do not go together."""
    splits, most = {}, 0
    for split, images in _image_files(folder).items():
        labels_file = images.with_name(re.sub(r"-images([-.])idx3", r"-labels\1idx1", images.name))
        if not labels_file.exists():
            raise UserError(f"{labels_file}: missing, but {images.name} is there; copy the labels beside it")
        count, height, width = _header(images, _IMAGES_MAGIC, 3)
        (labelled,) = _header(labels_file, _LABELS_MAGIC, 1)
        if labelled != count:
            raise UserError(f"{labels_file}: has {labelled} labels for the {count} images of {images.name}")
        _check_length(images, 16 + count * height * width)
        _check_length(labels_file, 8 + count)
        labels = np.frombuffer(content(labels_file)[8:], dtype=np.uint8).astype(np.int32)
        records = Records((height, width, 1), planar=False, header=16, record=height * width)
        splits[split] = raw_pictures([images], [labels], records)
        most = max(most, int(labels.max(initial=0)))
        tick(count)
    return SampleSet(folder, named_classes([folder / "classes.txt"], most + 1), splits, 0)


def _image_files(folder: Path) -> dict[str, Path]:
    """The images' files by split."""
    found = {match["split"]: path for path in files_in(folder) if (match := _IMAGES.fullmatch(path.name))}
    return {_SPLITS.get(split, split): found[split] for split in sorted(found)}


def _header(path: Path, magic: int, dimensions: int) -> list[int]:
    begin, length = content(path), 4 + 4 * dimensions
    header = np.frombuffer(begin[:length], dtype=">u4").tolist() if len(begin) >= length else [0]
    if header[0] != magic:
        raise UserError(f"{path}: not an idx file of unsigned bytes in {dimensions} dimensions; download it again")
    return header[1:]


def _check_length(path: Path, wanted: int) -> None:
    if (found := len(content(path))) != wanted:
        raise UserError(f"{path}: has {found} bytes, not the {wanted} that its header says; download it again")
