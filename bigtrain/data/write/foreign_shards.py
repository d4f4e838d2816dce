"""Indexes shards that others made: lists every member, and reports anything wrong with a tar as an error before training."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bigtrain.data.classes import empty_classes, in_order
from bigtrain.data.decode import Undecodable
from bigtrain.data.fields.array import ArrayField, AttributesField
from bigtrain.data.fields.clip import ClipField
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import UNLABELLED
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS, ImageField, MapField
from bigtrain.data.fields.registry import field_from_json
from bigtrain.data.fields.text import TextField
from bigtrain.data.index import FORMAT_VERSION, LABEL, Index, label_from, labels_from
from bigtrain.data.remote import NoAnswer
from bigtrain.data.sources.layouts.by_class import SPLITS
from bigtrain.data.sources.layouts.class_names import read_classes
from bigtrain.data.sources.samples import FieldSpec
from bigtrain.data.tars import NOT_COMPRESSED
from bigtrain.data.write.inspection import Inspected, Reading, inspect
from bigtrain.data.write.parallel import Progress, run
from bigtrain.data.write.records import disk_troubles
from bigtrain.data.write.remote_tars import RemoteSource
from bigtrain.data.write.shard_names import EXAMPLES, UNNAMED, by_split, gaps
from bigtrain.data.write.tar_inputs import LocalTar, TarInput
from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar
from bigtrain.untrusted import looked_for, one_line

MOST_CLASSES = 1_000_000
LABELS_FROM = re.compile(r"cls|none|json:.+")
"""Where labels may come from: `.cls` members, nowhere, a field of `.json` members."""
_NAMED = 3
"""Members that a message lists."""
PLAIN = {"image": FieldSpec("image", members=IMAGE_EXTENSIONS)}
_UNFINISHED = re.compile(r".*\.tar\.(part|partial|tmp|temp|download|crdownload|incomplete|aria2)", re.IGNORECASE)
_COMPRESSED = re.compile(r".*\.(tar\.(gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)", re.IGNORECASE)


def index_shards(
    folder: Path | RemoteSource,
    out: Path | None = None,
    *,
    workers: int,
    quiet: bool = False,
    labels: str | None = None,
    fields: Mapping[str, FieldSpec] | None = None,
    skip_bad_texts: bool = False,
    split: str | None = None,
) -> list[Path]:
    """Writes `SPLIT.json` for the tars `SPLIT-000000.tar ...` of a folder, beside them or in `out`; returns the paths.

    Tars at URLs need an `out`. What else they may be called: data.write.shard_names; split: that of all of them, None: as the
    names say.
    fields: which members are which field; None: as an existing index of version 2 says, else one image. labels: `cls` or
    `json:FIELD` (a number or a name in each sample's .cls or .json), or `none` (one class); None: as that index says, else
    `cls`. Class names are the lines of `folder/classes.txt`; otherwise those of an existing index with the same `labels`, and
    after them others that occur, in order; where labels are numbers, those that have no name are their own. skip_bad_texts:
    samples with a text that is not UTF-8 are left out, instead of being an error. Raises UserError, naming shard and member,
    for compressed or truncated tars, duplicate keys, samples that do not have one member for each field and its label, and
    labels that are neither names nor decimal, or not below the number of classes. An index of version 1 is renewed as one.
    """
    if out is None:
        if isinstance(folder, RemoteSource):
            raise UserError("OUT, the folder of the index, is missing: python launch/shard.py URL OUT --index-only")
        out = folder
    listed = _list(folder, split)
    indexes = {name: _existing_index(out / f"{name}.json") for name in listed}
    existing = [index for index in indexes.values() if index is not None]
    version = FORMAT_VERSION if fields else min((index.version for index in existing), default=FORMAT_VERSION)
    reading = _reading(existing, fields, labels, skip_bad_texts)
    tars = [tar for of_split in listed.values() for tar in of_split]
    found = _inspect_all(folder, tars, reading, workers, quiet)
    _say_left_out(folder, found)
    classes = _classes(out if isinstance(folder, RemoteSource) else folder, existing, found, reading.labels)
    found = {tar: item.numbered(classes) for tar, item in found.items()}
    labels_found = np.concatenate([item.shard.labels for item in found.values()])
    if empty := empty_classes(classes, np.bincount(labels_found, minlength=len(classes))):
        tqdm.write(one_line(f"{folder}: {empty}"), file=sys.stderr)
    written = []
    with disk_troubles(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, of_split in listed.items():
            described = _fields(reading, {tar: found[tar] for tar in of_split}, version)
            described = {**described, LABEL: label_from(reading.labels, classes)}
            shards = tuple(replace(found[tar].shard, name=tar.name_from(out)) for tar in of_split)
            written.append(
                _write_index(Index(out / f"{name}.json", name, described, shards, version=version), indexes[name])
            )
    return written


def _reading(
    existing: Sequence[Index], fields: Mapping[str, FieldSpec] | None, labels: str | None, skip_bad_texts: bool
) -> Reading:
    """What is read of each tar: as is asked, else as an index of version 2 says that is there, else one image and `.cls`."""
    known = next((index for index in existing if index.version > 1 and index.codes is None), None)
    if labels is None:
        labels = "cls" if known is None else labels_from(known.label_field)
    if fields is None:
        fields = PLAIN if known is None else _specs(known)
    return Reading(fields, labels, skip_bad_texts)


def _inspect_all(
    folder: Path | RemoteSource, tars: Sequence[TarInput], reading: Reading, workers: int, quiet: bool
) -> dict[TarInput, Inspected]:
    """What the tars hold. Raises UserError with all that is wrong with them."""
    size = sum(tar.size for tar in tars) or None
    with ProgressBar(size, str(folder), "B", quiet=quiet, unit_scale=True) as bar:
        tried = run(partial(_inspected, reading=reading), tars, workers, bar.update)
    _refuse_broken([reason for reason in tried if isinstance(reason, str)], len(tars))
    return {tar: item for tar, item in zip(tars, tried, strict=True) if not isinstance(item, str)}


def _say_left_out(folder: Path | RemoteSource, found: Mapping[TarInput, Inspected]) -> None:
    for line in (line for item in found.values() for line in item.skipped):
        tqdm.write(one_line(f"{line}: a text of this sample is not UTF-8; it is left out"), file=sys.stderr)
    foreign = [f"{tar.name}: {name}" for tar, item in found.items() for name in item.foreign]
    if foreign:
        shown = ", ".join(foreign[:_NAMED]) + ", ..." * (len(foreign) > _NAMED)
        said = f"{folder}: {len(foreign)} members belong to no sample and are left out ({shown})"
        tqdm.write(one_line(said), file=sys.stderr)


def _inspected(tar: TarInput, progress: Progress, reading: Reading) -> Inspected | str:
    """What a tar holds, or what is wrong with it, so that all that is wrong is said at once. Raises NoAnswer: a server that has
    fallen silent would have to be waited for again and again."""
    try:
        return inspect(tar, progress, reading)
    except NoAnswer:
        raise
    except UserError as error:
        return str(error)


def _refuse_broken(reasons: Sequence[str], count: int) -> None:
    """Raises UserError if something is wrong with a tar. reasons: one for each such; if it is all of `count`, the first one."""
    if len(reasons) == count > 1:
        raise UserError(f"{reasons[0]} (and something is wrong with all {count} tars)")
    if reasons:
        raise UserError(reasons[0], reasons[1:])


def _list(folder: Path | RemoteSource, split: str | None) -> dict[str, list[TarInput]]:
    """The tars of each split, sorted by name; `split`: that of all of them."""
    tars: dict[str, TarInput] = {}
    unnamed = UNNAMED
    if isinstance(folder, RemoteSource):
        tars = {tar.name: tar for tar in folder.tars()}
    else:
        tars = {path.name: LocalTar(path) for path in _paths(folder)}
        unnamed = folder.resolve().name if folder.resolve().name in SPLITS else UNNAMED
    found = by_split(folder, tars, split, unnamed)
    if not found:
        raise UserError(f"{folder}: no tars here; --index-only wants tars {EXAMPLES}{_deeper(folder)}")
    for absent in map(gaps, found.values()):
        if absent:
            more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
            tqdm.write(
                one_line(f"{folder}: there is no {absent[0]}{more} between the others: indexed without"),
                file=sys.stderr,
            )
    return {name: [tars[tar] for tar in of_split] for name, of_split in found.items()}


def _paths(folder: Path) -> list[Path]:
    """The tars in a folder."""
    if not folder.is_dir():
        missing = "is no folder" if folder.exists() else f"there is no such folder{looked_for(folder)}"
        raise UserError(f"{folder}: {missing}; --index-only wants a folder of tars {EXAMPLES}")
    paths = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith("."):
            continue
        if _COMPRESSED.fullmatch(path.name):
            raise UserError(f"{path}: {NOT_COMPRESSED}")
        if _UNFINISHED.fullmatch(path.name):
            raise UserError(f"{path}: an unfinished download; end it, or take it away")
        if path.suffix.lower() == ".tar":
            paths.append(path)
    return paths


def _deeper(folder: Path | RemoteSource) -> str:
    """What to do if the tars are in folders of the folder."""
    if isinstance(folder, RemoteSource):
        return ""
    names = sorted({path.parent.name for path in folder.glob("*/*.tar")})
    return f"; there are some in {', '.join(names[:3])}{', ...' * (len(names) > 3)}: index each" if names else ""


def _specs(index: Index) -> dict[str, FieldSpec]:
    """What an index says of its members. Raises UserError for a field that only bigtrain writes."""
    specs = {}
    for name, field in index.fields.items():
        if field is not index.label_field:
            specs[name] = _spec(index, field)
    return specs


def _spec(index: Index, field: Field) -> FieldSpec:
    spec = FieldSpec(field.kind, factor=getattr(field, "factor", 1), members=field.members)
    if isinstance(field, MapField):
        return replace(spec, kind="instance") if field.classes is None else replace(spec, names=field.classes)
    if isinstance(field, ArrayField):
        return replace(spec, names=field.axes)
    if isinstance(field, AttributesField):
        return replace(spec, names=field.names, key=field.key)
    if isinstance(field, TextField):
        return replace(spec, key=field.key)
    if isinstance(field, ClipField):
        return replace(spec, fps=field.fps)
    if isinstance(field, ImageField):
        return spec
    raise UserError(
        f"{index.path}: the field {field.name} is of the kind {field.kind}; say by --field what the members are"
    )


def _classes(
    folder: Path, indexes: Sequence[Index], inspected: Mapping[TarInput, Inspected], source: str
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
        new = in_order(named_labels.difference(known))
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
                    f"{path}: member {key}.{source.partition(':')[0]}: label {number} is out of range: {where} "
                    f"{len(classes)} classes, numbered from 0"
                )
    return classes


def _existing_index(path: Path) -> Index | None:
    """The index at `path`; None if there is none, or one that cannot be read and is to be replaced."""
    try:
        return Index.read(path)
    except UserError:
        return None


def _fields(reading: Reading, found: Mapping[TarInput, Inspected], version: int) -> dict[str, Field]:
    """The fields of a split. Raises UserError if the shards do not agree."""
    fields = {}
    for name, encoder in reading.encoders.items():
        facts: Mapping[str, Any] | None = None
        for tar, item in found.items():
            if name in item.facts:
                try:
                    facts = item.facts[name] if facts is None else encoder.merged(facts, item.facts[name])
                except Undecodable as error:
                    raise UserError(f"{tar}: the field {name}: {error}") from None
        if facts is None:  # there are samples, but none of these images can be read, which --verify says
            facts = {"size": None, "channels": 3}
        if version == 1:
            facts = {"size": _square(facts["size"]), "channels": 3}
        members = set().union(*(item.members[name] for item in found.values()))
        fields[name] = field_from_json(name, reading.described(name, facts, members))
    return fields


def _square(size: Sequence[int] | None) -> Sequence[int] | None:
    return None if size is None or size[0] != size[1] else size


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
