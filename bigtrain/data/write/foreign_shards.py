"""Indexing shards that others made: every member is found and every doubt about a tar is an error, before training."""

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO

import numpy as np
from tqdm import tqdm

from bigtrain.data.decode import Undecodable, header_size, json_label, label
from bigtrain.data.index import IMAGE_EXTENSIONS, UNLABELLED, Index, Shard
from bigtrain.data.sources.layouts.class_names import read_classes
from bigtrain.data.tars import END_OF_TAR, NOT_COMPRESSED, TRUNCATED, members
from bigtrain.data.write.parallel import Progress, run
from bigtrain.data.write.shards import common_size, disk_troubles
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

    labels: `cls`, `json:FIELD` (a number or a name in each sample's .json) or `none` (one class). Classes are the lines of
    `folder/classes.txt`, else those of an index that is there already and has its labels from the same place, else the
    names in use, sorted, or "0" .. the largest label. Raises UserError, naming shard and member, for compressed or
    truncated tars, duplicate keys, samples that are not one image and its label, and labels that are not decimal or not
    below the number of classes.
    """
    by_split = _list(folder)
    tars = [tar for split in by_split.values() for tar in split]
    with tqdm(
        total=sum(tar.stat().st_size for tar in tars), unit="B", unit_scale=True, desc=str(folder), disable=quiet
    ) as bar:
        found = dict(zip(tars, run(partial(_inspect, source=labels), tars, workers, bar.update), strict=True))
    out = folder if out is None else out
    classes = _classes(folder, out, list(by_split), found, labels)
    found = {tar: _numbered(tar, one, classes) for tar, one in found.items()}
    with disk_troubles(out):
        out.mkdir(parents=True, exist_ok=True)
        return [
            _write_index(out, split, classes, {tar: found[tar] for tar in by_split[split]}, labels)
            for split in by_split
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
class _Found:
    """A shard as it was found, and the (height, width) that its images' headers say.

    names: where labels are names, those in the shard, sorted; its labels are then numbers of these.
    """

    shard: Shard
    shapes: frozenset[tuple[int, int]]
    names: tuple[str, ...] | None


def _inspect(path: Path, progress: Progress, source: str) -> _Found:
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


def _inspect_bytes(path: Path, file: IO[bytes], data: mmap.mmap, progress: Progress, source: str) -> _Found:
    digest = hashlib.sha256()
    for begin in range(0, len(data), _CHUNK):
        chunk = data[begin : begin + _CHUNK]
        digest.update(chunk)
        progress(len(chunk))
    samples = _samples(path, members(path, file, 0, len(data)), source)
    labels: list[int | str] = []
    shapes = set()
    for key, places in samples.items():
        try:
            labels.append(_label(data, places, source))
        except Undecodable as error:
            raise UserError(f"{path}: member {key}.{_label_member(source)}: {error}") from None
        offset, size = next(places[extension] for extension in IMAGE_EXTENSIONS if extension in places)
        with contextlib.suppress(Undecodable):  # not the index's to judge: data.undecodable says what becomes of it
            shapes.add(header_size(data[offset : offset + size]))
    names, numbers = _numbers(path, labels)
    shard = Shard(path.name, len(data), digest.hexdigest(), tuple(samples), numbers, _columns(samples))
    return _Found(shard, frozenset(shapes), names)


def _label_member(source: str) -> str | None:
    """The extension of the members that hold labels."""
    return None if source == "none" else source.partition(":")[0]


def _label(data: mmap.mmap, places: Mapping[str, tuple[int, int]], source: str) -> int | str:
    """A sample's label: a number, or a name. Raises Undecodable."""
    kind, _, field = source.partition(":")
    if kind == "none":
        return 0
    offset, size = places[kind]
    content = data[offset : offset + size]
    return label(content) if kind == "cls" else json_label(content, field)


def _numbers(path: Path, labels: Sequence[int | str]) -> tuple[tuple[str, ...] | None, np.ndarray]:
    """The names among labels, sorted, None if there are none; and the labels as int64, numbers of these names."""
    words = [word for word in labels if isinstance(word, str)]
    if not words:
        return None, np.array(labels, dtype=np.int64)
    if len(words) < len(labels):
        raise UserError(f"{path}: some of its labels are names ({words[0]!r}) and others numbers; make them alike")
    names, numbers = np.unique(np.array(words, dtype=object), return_inverse=True)
    return tuple(names.tolist()), numbers.astype(np.int64)


def _samples(path: Path, found: Iterator[tuple[str, int, int]], source: str) -> dict[str, dict[str, tuple[int, int]]]:
    """For each key: extension -> (offset, size). Keys and extensions are told apart as webdataset does."""
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last = None
    for name, offset, size in found:
        match = _KEY_AND_EXTENSION.fullmatch(name)
        if match is None:
            raise UserError(f"{path}: member {name} has no extension; every member is named KEY.EXTENSION")
        key, extension = match[1], match[2].lower()
        if (key != last and key in samples) or extension in samples.get(key, ()):
            raise UserError(f"{path}: member {name}: the key {key} comes twice; keys are unique within a shard")
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


def _numbered(path: Path, found: _Found, classes: Sequence[str]) -> _Found:
    """The shard with its names for labels turned into numbers of `classes`."""
    if found.names is None:
        return found
    numbers = {name: number for number, name in enumerate(classes)}
    labels = np.array([numbers[name] for name in found.names], dtype=np.int64)[found.shard.labels]
    return replace(found, shard=replace(found.shard, labels=labels), names=None)


def _columns(samples: Mapping[str, Mapping[str, tuple[int, int]]]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    absent = (-1, 0)
    extensions = {extension for found in samples.values() for extension in found}
    columns = {}
    for extension in sorted(extensions):
        places = np.array([found.get(extension, absent) for found in samples.values()], dtype=np.int64)
        columns[extension] = (places[:, 0].copy(), places[:, 1].copy())
    return columns


def _classes(
    folder: Path, out: Path, splits: Sequence[str], found: Mapping[Path, _Found], source: str
) -> tuple[str, ...]:
    """The names of the classes; every label is below their number, or among them."""
    if source == "none":
        return (UNLABELLED,)
    named_labels = {name for one in found.values() for name in one.names or ()}
    if named_labels and any(one.names is None and one.shard.samples for one in found.values()):
        raise UserError(f"{folder}: some shards have names for labels and others numbers; make them alike")
    listed = folder / "classes.txt"
    if named_labels:
        classes = read_classes(listed) if listed.exists() else tuple(sorted(named_labels))
        if unknown := sorted(named_labels.difference(classes)):
            raise UserError(f"{listed}: lacks the class {unknown[0]!r}, which some sample has; add it")
        return classes
    most = max((int(one.shard.labels.max()) for one in found.values() if one.shard.samples), default=-1)
    named = next((index for split in splits if (index := _readable(out / f"{split}.json")) is not None), None)
    if listed.exists():
        classes, where = read_classes(listed, unique=False), f"{listed} has"
    elif named is not None and named.labels_from == source and most < len(named.classes):
        return named.classes
    else:
        classes, where = tuple(map(str, range(min(most + 1, MOST_CLASSES)))), "there can be"
    for path, one in found.items():
        for key, number in zip(one.shard.keys, one.shard.labels.tolist(), strict=True):
            if number >= len(classes):
                raise UserError(
                    f"{path}: member {key}.{_label_member(source)}: label {number} is out of range: {where} "
                    f"{len(classes)} classes, numbered from 0"
                )
    return classes


def _readable(path: Path) -> Index | None:
    """The index that is there already; None if there is none, or one that this run is to replace."""
    try:
        return Index.read(path)
    except UserError:
        return None


def _write_index(out: Path, split: str, classes: tuple[str, ...], found: Mapping[Path, _Found], source: str) -> Path:
    """Writes the index unless the very same is there already, with what bigtrain's own door noted in it."""
    path = out / f"{split}.json"
    shards = tuple(replace(one.shard, name=os.path.relpath(tar, out)) for tar, one in found.items())
    size = common_size({shape for one in found.values() for shape in one.shapes})
    index = Index(path, split, classes, size, shards, labels_from=source)
    if index.samples == 0:
        raise UserError(f"{out}: the {split} shards hold no samples")
    before = _readable(path)
    if before is None or _described(before) != _described(index):
        index.write()
    return path


def _described(index: Index) -> list[object]:
    """All that an index says but `made`."""
    return [
        index.split,
        index.classes,
        index.image_size,
        index.labels_from,
        [shard.to_json() for shard in index.shards],
    ]
