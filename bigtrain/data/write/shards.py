"""Writes shards of samples; launch/shard.py calls this.

The same files and options give the same bytes: samples are sorted by a hash of their file's name (which mixes classes in
every shard), and tar headers have no time and no owner. How a killed run is continued, and how two at once do not harm each
other: data.write.records.

Shards that were begun when indexes had version 1 are completed as that version had it: with images of three channels, and the
same bytes and fingerprints.
"""

import contextlib
import functools
import hashlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bigtrain.data.classes import empty_classes, in_order
from bigtrain.data.fields.label import LabelField
from bigtrain.data.fields.registry import field_from_json
from bigtrain.data.index import FORMAT_VERSION, LABEL, Index
from bigtrain.data.sources.samples import IMAGE, Column, Samples, SampleSet
from bigtrain.data.write.convert import Colour
from bigtrain.data.write.encoders.encoder import Encoded, Encoder, Facts
from bigtrain.data.write.encoders.registry import PictureOptions, encoders_of
from bigtrain.data.write.encoding import BrokenSample, BrokenShard, columns_of, encode, encode_samples, merged
from bigtrain.data.write.parallel import Progress, run
from bigtrain.data.write.records import (
    Record,
    disk_troubles,
    drop_records,
    image_side,
    left_behind,
    remove_leftovers,
    whole_record,
    write_shard,
)
from bigtrain.data.write.remarks import Remarks
from bigtrain.data.write.tar_writer import ShardWriter
from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar
from bigtrain.sizes import image_size_of
from bigtrain.untrusted import one_line

_KEY_BYTES = 16
MOST_LINES = 1000
"""The most broken samples that a message lists."""


@dataclass(frozen=True)
class ShardOptions:
    """size: (height, width) in pixels, None: as they are; format: one of FORMATS, None: each file's own; value_range,
    background: see convert.convert; skip_broken: whether broken samples are left out, which is no part of what shards were made
    with: whole shards stay as they are."""

    size: tuple[int, int] | None
    format: str | None
    samples_per_shard: int
    value_range: tuple[int, int] | None = None
    background: Colour | None = None
    skip_broken: bool = False

    def pictures(self, version: int) -> PictureOptions:
        """version: of the index; the first had images of three channels and no others."""
        return PictureOptions(self.size, self.format, 3 if version == 1 else None, self.value_range, self.background)


@dataclass(frozen=True)
class _Task:
    """One shard to complete: its tar, its samples and the number of the first, and its record if there is one.

    alike: facts that those of the samples must agree with, by field; version: of the index; skip_broken: whether broken samples
    are left out.
    """

    path: Path
    first: int
    samples: Samples
    is_labelled: bool
    encoders: Mapping[str, Encoder]
    alike: Mapping[str, Facts]
    made: Mapping[str, Any]
    record: Record | None
    version: int
    skip_broken: bool


def write_shards(
    source: SampleSet, out: Path, options: ShardOptions, *, workers: int, quiet: bool = False
) -> list[Path]:
    """Writes `out/SPLIT-000000.tar ...` and `out/SPLIT.json` for every split; returns the indexes' paths.

    Complete shards (by size and sha256) stay as they are. Raises UserError if `out` holds shards of other pictures or other
    options, or another run is writing such shards there, if a split is empty, if pictures are broken and not to be skipped
    (naming all of these files, after the whole shards are written), or if the disk is full (then a rerun continues).
    """
    with disk_troubles(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        known = {split: _records(out, split) for split in source.splits}
        source = _numbered_as_begun(source, known)
        version = min((record.version for found in known.values() for record in found.values()), default=FORMAT_VERSION)
        encoders = encoders_of(source.fields, options.pictures(version))
        tasks = {split: _plan(source, split, out, options, known[split], encoders, version) for split in source.splits}
        todo = [task for split in tasks.values() for task in split]
        total = sum(len(task.samples) for task in todo)
        with ProgressBar(total, str(out), "samples", quiet=quiet) as bar:
            tried = run(_complete, todo, workers, bar.update)
        done = [record for record in tried if isinstance(record, Record)]
        _refuse_broken(source, [line for lines in tried if not isinstance(lines, Record) for line in lines])
        records = iter(done)
        indexes = [_write_index(source, split, out, encoders, [next(records) for _ in tasks[split]]) for split in tasks]
        drop_records(task.path for task in todo)
    for picture in (picture for record in done for picture in record.mended):
        tqdm.write(
            one_line(f"{picture}: this picture is damaged; its shard has it as Pillow reads it"), file=sys.stderr
        )
    skipped = sum(len(task.samples) for task in todo) - sum(record.shard.samples for record in done)
    _say_skipped(out, skipped, [line for record in done for line in record.skipped])
    if empty := _empty_classes(source.classes, done):
        tqdm.write(one_line(f"{source.path}: {empty}"), file=sys.stderr)
    for sentence in Remarks.of_all(record.remarks for record in done).sentences():
        tqdm.write(one_line(sentence), file=sys.stderr)
    return indexes


def _refuse_broken(source: SampleSet, lines: Sequence[str]) -> None:
    """Raises UserError if there is a broken sample. lines: one for each; if it is all, a flag is wrong and not a file."""
    count = sum(map(len, source.splits.values()))
    if len(lines) == count > 1:
        raise UserError(f"{lines[0]} (and so it is with all {count} samples); mend them and run again")
    if len(lines) == 1:
        raise UserError(f"{lines[0]}; mend or remove it and run again, or leave it out by --skip-broken")
    if lines:
        head = (
            f"{source.path}: {len(lines)} samples are broken; mend or remove them and run again, or leave them out by "
        )
        raise UserError(f"{head}--skip-broken:", _shown(lines))


def _say_skipped(out: Path, count: int, lines: Sequence[str]) -> None:
    """`lines`: for those of the `count` samples that this call has met; the shards that were there lack the others."""
    if count:
        for line in _shown(lines):
            tqdm.write(one_line(line), file=sys.stderr)
        tail = "are left out; once they are mended, make these shards anew in another folder"
        tqdm.write(one_line(f"{out}: {count} broken samples {tail}"), file=sys.stderr)


def _shown(lines: Sequence[str]) -> list[str]:
    rest = [f"... and {len(lines) - MOST_LINES} more"] if len(lines) > MOST_LINES else []
    return [*lines[:MOST_LINES], *rest]


def _empty_classes(classes: Sequence[str], written: Sequence[Record]) -> str | None:
    """What to say if classes have no sample in the shards, in which those that are broken may be missing."""
    counts = [np.bincount(record.shard.labels, minlength=len(classes)) for record in written]
    return empty_classes(classes, np.sum(counts, axis=0))


def _numbered_as_begun(source: SampleSet, known: Mapping[str, Mapping[str, Record]]) -> SampleSet:
    """The samples with their classes as the shards that are there number them: folders of numbers were once sorted as text."""
    as_text = sorted(source.classes)
    if list(source.classes) == as_text or list(source.classes) != in_order(as_text):
        return source
    before = source.numbered_as(as_text)
    begun = {split: {record.made.get("source") for record in records.values()} for split, records in known.items()}
    return before if any(before.fingerprint(split) in begun[split] for split in begun) else source


def _plan(
    source: SampleSet,
    split: str,
    out: Path,
    options: ShardOptions,
    records: Mapping[str, Record],
    encoders: Mapping[str, Encoder],
    version: int,
) -> list[_Task]:
    made = _made_from(source, split, options, version)
    for record in records.values():
        _check_same(out, split, record.made, made)
    samples = source.splits[split]
    if not len(samples):
        raise UserError(f"{source.path}: it has no pictures for the split {split}; remove its empty files")
    keys = np.frombuffer(b"".join(map(_order_key, samples.members.names)), dtype=f"S{_KEY_BYTES}")
    order = np.argsort(keys, kind="stable")
    alike = _facts_of_first(samples, order, encoders)
    labelled = version == 1 or source.is_labelled
    tasks = []
    for number, first in enumerate(range(0, len(order), options.samples_per_shard)):
        name = f"{split}-{number:06d}.tar"
        chunk = samples.take(order[first : first + options.samples_per_shard])
        known = records.get(name)
        tasks.append(
            _Task(out / name, first, chunk, labelled, encoders, alike, made, known, version, options.skip_broken)
        )
    return tasks


def _facts_of_first(samples: Samples, order: np.ndarray, encoders: Mapping[str, Encoder]) -> dict[str, Facts]:
    """What the first whole sample says that the others must be, so that the file that is not so is named."""
    columns, facts = columns_of(samples, encoders), {}
    for name, encoder in encoders.items():
        if encoder.alike:
            with contextlib.closing(columns[name]) as column:
                facts[name] = _first_whole(encoder, column, order).facts
    return facts


def _first_whole(encoder: Encoder, column: Column, order: np.ndarray) -> Encoded:
    """Raises BrokenSample, of the first one, if none is whole."""
    first = None
    for number in order.tolist():
        try:
            return encode(encoder, column, number)
        except BrokenSample as error:
            first = first or error
    assert first is not None, "there are samples"
    raise first


def _made_from(source: SampleSet, split: str, options: ShardOptions, version: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "size": None if options.size is None else image_size_of(options.size),
        "format": options.format,
        "samples_per_shard": options.samples_per_shard,
    }
    if version > 1 or options.value_range is not None:
        made["range"] = None if options.value_range is None else list(options.value_range)
    if options.background is not None:  # shards that were made before there was the option have no such key
        made["background"] = list(options.background)
    # Shards of version 1 are completed, but never begun: so that two runs of two versions at once do not mix.
    made |= {} if version == 1 else {"version": version}
    if version > 1 or source.fields != IMAGE:
        made["fields"] = {name: spec.to_json() for name, spec in source.fields.items()}
    return made | {"source": source.fingerprint(split)}


def _order_key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=_KEY_BYTES).digest()


def _check_same(out: Path, split: str, recorded: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    for key, value in {**dict.fromkeys(recorded), **made}.items():
        if recorded.get(key) == value:
            continue
        if key == "fields":
            raise UserError(
                f"{out}: its {split} shards were made with other fields; give the same, or choose another folder"
            )
        if key == "source":
            raise UserError(f"{out}: its {split} shards were made from other files or classes; choose another folder")
        flag = f"--{key.replace('_', '-')}"
        raise UserError(
            f"{out}: its {split} shards were made with {flag} {_as_flag(key, recorded.get(key))}, not "
            f"{_as_flag(key, value)}; give the same {flag} or choose another folder"
        )


def _as_flag(key: str, value: Any) -> str:
    """A value of `made` as the command line has it."""
    return ("x" if key == "size" else ",").join(map(str, value)) if isinstance(value, list) else str(value)


def _records(out: Path, split: str) -> dict[str, Record]:
    """The records of the split's shards, by name: from the index, or from those that a stopped run has left.

    Another run at the same time writes record, tar and index in this order, and then removes the records. Here tars are
    listed first, then records, then the index, so that a tar without record and index was not made by this command.
    """
    tars, records = left_behind(out, split)
    path = out / f"{split}.json"
    if path.exists():
        index = Index.read(path)
        if index.made is None:
            raise UserError(f"{path}: it describes shards that launch/shard.py did not make; choose another folder")
        return {shard.name: Record.of_index(index, shard, index.made) for shard in index.shards}
    if unknown := sorted(tars - records.keys()):
        raise UserError(
            f"{out / unknown[0]}: this shard was not made by launch/shard.py, and would be overwritten; choose another "
            f"folder, or index it as it is with `python launch/shard.py {out} --index-only`"
        )
    return records


def _complete(task: _Task, progress: Progress) -> Record | tuple[str, ...]:
    """The record of the task's shard, which is written unless it is complete already; or a line for each broken sample."""
    record = whole_record(task.path, task.made, task.record)
    if record is not None:
        progress(len(task.samples))
        return record
    try:
        return write_shard(task.path, len(task.samples), lambda writer: _write_samples(task, writer, progress))
    except BrokenShard as error:
        return error.lines


def _write_samples(task: _Task, writer: ShardWriter, progress: Progress) -> Record:
    labels = task.samples.labels.tolist()

    def add(number: int, members: Mapping[str, bytes]) -> None:
        writer.add(f"{task.first + number:08d}", labels[number] if task.is_labelled else None, members)

    written = encode_samples(task.samples, task.encoders, task.alike, add, progress, task.skip_broken)
    shard = writer.finish(len(written.skipped))
    return Record(shard, task.made, written.found, written.mended, task.version, written.remarks, written.skipped)


def _write_index(
    source: SampleSet, split: str, out: Path, encoders: Mapping[str, Encoder], records: Sequence[Record]
) -> Path:
    version, fields = records[0].version, {}
    whole = [record for record in records if record.shard.samples]
    if not whole:
        raise UserError(f"{source.path}: no sample of the split {split} is whole")
    for name, encoder in encoders.items():
        described = functools.reduce(partial(merged, encoder), [record.found[name] for record in whole])
        if version == 1 and image_side({"image": described}) is None:
            described = {**described, "size": None}
        fields[name] = field_from_json(name, described)
    label = LabelField(LABEL, ("cls",) if version == 1 or source.is_labelled else (), source.classes)
    shards = tuple(record.shard for record in records)
    index = Index(out / f"{split}.json", split, {**fields, LABEL: label}, shards, records[0].made, version=version)
    index.write()
    return index.path
