"""Indexes shards that others made: lists every member, and reports anything wrong with a tar as an error before training."""

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from bigtrain.data.decode import Undecodable, header_shape, json_label, label
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS
from bigtrain.data.index import FORMAT_VERSION, Index, Shard, labels_from, plain_fields
from bigtrain.data.sources.layouts.class_names import read_classes
from bigtrain.data.tars import END_OF_TAR, NOT_COMPRESSED, TRUNCATED, members
from bigtrain.data.write.parallel import Progress, run
from bigtrain.data.write.shards import disk_troubles
from bigtrain.errors import UserError

MOST_CLASSES = 1_000_000
LABELS_FROM = re.compile(r"cls|none|json:.+")
"""Where labels may come from: `.cls` members, nowhere, a field of `.json` members."""
_CHUNK = 2**24
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^./]+)\.([^/]*)", re.DOTALL)
_TAR = re.compile(r"(?P<split>.+)-\d+\.tar")
_COMPRESSED = re.compile(r".*\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)")


def index_shards(
    folder: Path, out: Path | None = None, *, workers: int, quiet: bool = False, labels: str = "cls"
) -> list[Path]:
    """Writes `SPLIT.json` for the tars `SPLIT-000000.tar ...` of a folder, beside them or in `out`; returns the paths.

    labels: `cls`, `json:FIELD` (a number or a name in each sample's .json) or `none` (one class). Class names are the lines of
    `folder/classes.txt`; otherwise those of an existing index with the same `labels`, and after them others that occur, sorted;
    where labels are numbers, those that have no name are their own. Raises UserError, naming shard and member, for compressed
    or truncated tars, duplicate keys, samples that are not one image and its label, and labels that are not decimal or not
    below the number of classes. An index of version 1 is renewed as one.
    """
    by_split = _list(folder)
    tars = [tar for split in by_split.values() for tar in split]
    with tqdm(
        total=sum(tar.stat().st_size for tar in tars), unit="B", unit_scale=True, desc=str(folder), disable=quiet
    ) as bar:
        inspected = dict(zip(tars, run(partial(_inspect, source=labels), tars, workers, bar.update), strict=True))
    out = folder if out is None else out
    indexes = {split: _existing_index(out / f"{split}.json") for split in by_split}
    existing = [index for index in indexes.values() if index is not None]
    classes = _classes(folder, existing, inspected, labels)
    version = min((index.version for index in existing), default=FORMAT_VERSION)
    inspected = {tar: _numbered(tar, item, classes) for tar, item in inspected.items()}
    with disk_troubles(out):
        out.mkdir(parents=True, exist_ok=True)
        return [
            _write_index(
                Index(
                    out / f"{split}.json",
                    split,
                    _fields([inspected[tar] for tar in tars_of_split], classes, labels, version),
                    tuple(replace(inspected[tar].shard, name=os.path.relpath(tar, out)) for tar in tars_of_split),
                    version=version,
                ),
                indexes[split],
            )
            for split, tars_of_split in by_split.items()
        ]


def _list(folder: Path) -> dict[str, list[Path]]:
    """The tars of each split, sorted by name."""
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder; --index-only wants a folder of tars SPLIT-000000.tar ...")
    by_split: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if _COMPRESSED.fullmatch(path.name):
            raise UserError(f"{path}: {NOT_COMPRESSED}")
        if path.suffix != ".tar":
            continue
        match = _TAR.fullmatch(path.name)
        if match is None:
            raise UserError(
                f"{path}: the name does not say its split; name the tars SPLIT-000000.tar, SPLIT-000001.tar ..."
            )
        by_split.setdefault(match["split"], []).append(path)
    if not by_split:
        raise UserError(f"{folder}: no tars here; --index-only wants tars SPLIT-000000.tar ...")
    return by_split


@dataclass(frozen=True)
class _Inspected:
    """A shard, and the (height, width, channels) that the headers of its images say.

    names: if labels are names, those in the shard, sorted; the shard's labels are then numbers of these.
    """

    shard: Shard
    shapes: frozenset[tuple[int, int, int]]
    names: tuple[str, ...] | None


def _inspect(path: Path, progress: Progress, source: str) -> _Inspected:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < len(END_OF_TAR):
                raise UserError(f"{path}: {TRUNCATED}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _inspect_bytes(path, file, data, progress, source)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        raise UserError(f"{path}: the shard cannot be read: {error.strerror}") from None


def _inspect_bytes(path: Path, file: IO[bytes], data: mmap.mmap, progress: Progress, source: str) -> _Inspected:
    digest = hashlib.sha256()
    for begin in range(0, len(data), _CHUNK):
        chunk = data[begin : begin + _CHUNK]
        digest.update(chunk)
        progress(len(chunk))
    samples = _samples(path, members(path, file, 0, len(data)), source)
    labels: list[int | str] = []
    shapes = set()
    for key, extents in samples.items():
        try:
            labels.append(_label(data, extents, source))
        except Undecodable as error:
            raise UserError(f"{path}: member {key}.{_label_member(source)}: {error}") from None
        offset, size = next(extents[extension] for extension in IMAGE_EXTENSIONS if extension in extents)
        with contextlib.suppress(Undecodable):  # no error here: data.undecodable says what to do about it in training
            shapes.add(header_shape(data[offset : offset + size]))
    names, numbers = _numbers(path, labels)
    shard = Shard(path.name, len(data), digest.hexdigest(), tuple(samples), numbers, _columns(samples))
    return _Inspected(shard, frozenset(shapes), names)


def _label_member(source: str) -> str | None:
    """The extension of the members that hold labels; None if there are no labels."""
    return None if source == "none" else source.partition(":")[0]


def _label(data: mmap.mmap, extents: Mapping[str, tuple[int, int]], source: str) -> int | str:
    """A sample's label: a number, or a name. Raises Undecodable."""
    kind, _, field = source.partition(":")
    if kind == "none":
        return 0
    offset, size = extents[kind]
    content = data[offset : offset + size]
    return label(content) if kind == "cls" else json_label(content, field)


def _numbers(path: Path, labels: Sequence[int | str]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """(the names among the labels, sorted, or None if labels are numbers; the labels as int64, numbers of these names)."""
    words = [word for word in labels if isinstance(word, str)]
    if not words:
        return None, np.array(labels, dtype=np.int64)
    if len(words) < len(labels):
        raise UserError(f"{path}: some of its labels are names ({words[0]!r}) and others numbers; use one kind")
    names, numbers = np.unique(np.array(words, dtype=object), return_inverse=True)
    return tuple(names.tolist()), numbers.astype(np.int64)


def _samples(
    path: Path, tar_members: Iterator[tuple[str, int, int]], source: str
) -> dict[str, dict[str, tuple[int, int]]]:
    """For each key: extension -> (offset, size). Names are split into key and extension as webdataset does."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for name, offset, size in tar_members:
        match = _KEY_AND_EXTENSION.fullmatch(name)
        if match is None:
            raise UserError(f"{path}: member {name} has no extension; every member is named KEY.EXTENSION")
        key, extension = match[1], match[2].lower()
        if (key != last and key in samples) or extension in samples.get(key, ()):
            raise UserError(f"{path}: member {name}: the key {key} occurs twice; keys must be unique within a shard")
        samples.setdefault(key, {})[extension] = (offset, size)
        last = key
    wanted = _label_member(source)
    for key, extensions in samples.items():
        images = [extension for extension in IMAGE_EXTENSIONS if extension in extensions]
        if len(images) > 1 and images[-1] == "npy":  # features beside a picture
            images.pop()
        if len(images) != 1 or (wanted is not None and wanted not in extensions):
            needs = f" and one .{wanted} (--labels says where else labels may come from)" if wanted is not None else ""
            raise UserError(
                f"{path}: sample {key} has the members {', '.join(f'{key}.{extension}' for extension in extensions)}, "
                f"but needs one image ({', '.join(IMAGE_EXTENSIONS)}){needs}"
            )
    return samples


def _numbered(path: Path, inspected: _Inspected, classes: Sequence[str]) -> _Inspected:
    """The shard with labels that are numbers of `classes`, if its labels are names."""
    if inspected.names is None:
        return inspected
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in inspected.names], dtype=np.int64)[inspected.shard.labels]
    return replace(inspected, shard=replace(inspected.shard, labels=labels), names=None)


def _columns(samples: Mapping[str, Mapping[str, tuple[int, int]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    absent = (-1, 0)
    extensions = {extension for extents in samples.values() for extension in extents}
    columns = {}
    for extension in sorted(extensions):
        pairs = np.array([extents.get(extension, absent) for extents in samples.values()], dtype=np.int64)
        columns[extension] = (pairs[:, 0].copy(), pairs[:, 1].copy())
    return columns


def _classes(
    folder: Path, indexes: Sequence[Index], inspected: Mapping[Path, _Inspected], source: str
) -> tuple[str, ...]:
    """The names of the classes. Raises UserError for a label that is not below their number, or not among them."""
    if source == "none":
        return (UNLABELLED,)
    named_labels = {name for item in inspected.values() for name in item.names or ()}
    if named_labels and any(item.names is None and item.shard.samples for item in inspected.values()):
        raise UserError(f"{folder}: some shards have names for labels and others numbers; use one kind")
    listed = folder / "classes.txt"
    # A class keeps the number that an index has given it: runs may have been trained with it.
    numbered = [index.classes for index in indexes if labels_from(index.label_field) == source and index.codes is None]
    known = max(numbered, key=len, default=())
    if named_labels:
        new = sorted(named_labels.difference(known))
        classes = read_classes(listed) if listed.exists() else (*known, *new)
        if unknown := sorted(named_labels.difference(classes)):
            raise UserError(f"{listed}: does not list the class {unknown[0]!r}, which some sample has; add it")
        return classes
    most = max((int(item.shard.labels.max()) for item in inspected.values() if item.shard.samples), default=-1)
    if listed.exists():
        classes, where = read_classes(listed, unique=False), f"{listed} has"
    else:
        further = range(len(known), min(most + 1, MOST_CLASSES))
        classes, where = (*known, *map(str, further)), "there can be"
    for path, item in inspected.items():
        for key, number in zip(item.shard.keys, item.shard.labels.tolist(), strict=True):
            if number >= len(classes):
                raise UserError(
                    f"{path}: member {key}.{_label_member(source)}: label {number} is out of range: {where} "
                    f"{len(classes)} classes, numbered from 0"
                )
    return classes


def _existing_index(path: Path) -> Index | None:
    """The index at `path`; None if there is none, or one that cannot be read and is to be replaced."""
    try:
        return Index.read(path)
    except UserError:
        return None


def _fields(inspected: Sequence[_Inspected], classes: tuple[str, ...], source: str, version: int) -> dict[str, Field]:
    shapes = {shape for item in inspected for shape in item.shapes}
    sizes = {(height, width) for height, width, _ in shapes}
    size = sizes.pop() if len(sizes) == 1 else None
    channels = max((channels for _, _, channels in shapes), default=3)
    if version == 1:
        size, channels = None if size is None or size[0] != size[1] else size, 3
    return plain_fields(classes, size, channels, source)


def _write_index(index: Index, before: Index | None) -> Path:
    """Writes the index, unless an equal one exists: that one may say in addition what launch/shard.py made its shards from."""
    if index.samples == 0:
        raise UserError(f"{index.folder}: the {index.split} shards hold no samples")
    if before is None or _described(before) != _described(index):
        index.write()
    return index.path


def _described(index: Index) -> list[Any]:
    """All that an index says except `made`."""
    return [index.version, index.fingerprint, index.image_size, [shard.to_json() for shard in index.shards]]
