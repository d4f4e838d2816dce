"""Writes shards of samples; launch/shard.py calls this.

The same files and options give the same bytes: samples are sorted by a hash of their file's name (which mixes classes in
every shard), and tar headers have no time and no owner. A shard is written to a temporary file, flushed, recorded and renamed;
the record (a hidden `.SPLIT-000000.json`) lets a killed run continue, and is removed once the index is written. So running the
command again completes what is missing, and two runs at once write the same files. If two runs would write different files,
the first to finish a shard claims the split (a hidden `.SPLIT.claim`), and the other gets an error.

Shards that were begun when indexes had version 1 are completed as that version had it: with images of three channels, and the
same bytes and fingerprints.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from bigtrain.data.fields.label import LabelField
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS, ImageField
from bigtrain.data.fields.registry import field_from_json
from bigtrain.data.index import FORMAT_VERSION, LABEL, Index, Shard
from bigtrain.data.sources.samples import IMAGE, Samples, SampleSet
from bigtrain.data.tars import BLOCK, END_OF_TAR
from bigtrain.data.write.encoders.encoder import Encoder, Facts
from bigtrain.data.write.encoders.registry import PictureOptions, encoders_of
from bigtrain.data.write.encoding import columns_of, encode, encode_samples, merged
from bigtrain.data.write.parallel import Progress, run
from bigtrain.errors import UserError
from bigtrain.runs.atomic import aside, sha256_of, sync_folder, write_flushed, write_json
from bigtrain.sizes import image_size_of

_KEY_BYTES = 16
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class ShardOptions:
    """size: (height, width) in pixels, None: as they are; format: one of FORMATS, None: each file's own; value_range: see
    convert.convert."""

    size: tuple[int, int] | None
    format: str | None
    samples_per_shard: int
    value_range: tuple[int, int] | None = None

    def pictures(self, version: int) -> PictureOptions:
        """version: of the index; the first had images of three channels and no others."""
        return PictureOptions(self.size, self.format, 3 if version == 1 else None, self.value_range)


@dataclass(frozen=True)
class Record:
    """The description of a complete shard. `made`: what the shards of the split were made from, and with which options;
    `found`: its fields, as an index of this shard alone would describe them, without the label; `mended`: files that were
    damaged and are in the shard as Pillow reads them; `version`: of the index that the shard is for.
    """

    shard: Shard
    made: Mapping[str, Any]
    found: Mapping[str, Mapping[str, Any]]
    mended: tuple[str, ...] = ()
    version: int = FORMAT_VERSION

    def to_json(self) -> dict[str, Any]:
        found = {"image_size": _side(self.found)} if self.version == 1 else {"found": self.found}
        head = {"version": self.version, **found, "made": self.made, "mended": self.mended}
        return head | {"shard": self.shard.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Record":
        """Raises KeyError, TypeError or ValueError if `value` is not what `to_json` gives."""
        version = value["version"]
        if version not in (1, FORMAT_VERSION):
            raise ValueError(f"version {version}")
        found = _found_by_version_1(value["image_size"]) if version == 1 else value["found"]
        return cls(Shard.from_json(value["shard"]), value["made"], found, tuple(value["mended"]), version)

    @classmethod
    def of_index(cls, index: Index, shard: Shard, made: Mapping[str, Any]) -> "Record":
        """That of a shard that is in an index already."""
        found = {name: field.to_json() for name, field in index.fields.items() if field is not index.label_field}
        return cls(shard, made, found, version=index.version)


def _side(found: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The side of images that are all squares of one size, which version 1 noted."""
    height, width = found.get("image", {}).get("size") or (0, 1)
    return height if height == width else None


def _found_by_version_1(image_size: int | None) -> dict[str, Any]:
    size = None if image_size is None else (image_size, image_size)
    return {"image": ImageField("image", IMAGE_EXTENSIONS, size).to_json()}


@dataclass(frozen=True)
class _Task:
    """One shard to complete: its tar, its samples and the number of the first, and its record if there is one.

    alike: facts that those of the samples must agree with, by field; version: of the index.
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


def write_shards(
    source: SampleSet, out: Path, options: ShardOptions, *, workers: int, quiet: bool = False
) -> list[Path]:
    """Writes `out/SPLIT-000000.tar ...` and `out/SPLIT.json` for every split; returns the indexes' paths.

    Complete shards (by size and sha256) stay as they are. Raises UserError if `out` holds shards of other pictures or other
    options, or another run is writing such shards there, if a split is empty, if a picture is broken (naming the file), or if
    the disk is full (then a rerun continues).
    """
    with disk_troubles(out):
        out.mkdir(parents=True, exist_ok=True)
        remove_leftovers(out)
        known = {split: _records(out, split) for split in source.splits}
        version = min((record.version for found in known.values() for record in found.values()), default=FORMAT_VERSION)
        encoders = encoders_of(source.fields, options.pictures(version))
        tasks = {split: _plan(source, split, out, options, known[split], encoders, version) for split in source.splits}
        todo = [task for split in tasks.values() for task in split]
        total = sum(len(task.samples) for task in todo)
        with tqdm(total=total, unit=" samples", desc=str(out), disable=quiet, smoothing=0.1) as bar:
            done = run(_complete, todo, workers, bar.update)
        records = iter(done)
        indexes = [_write_index(source, split, out, encoders, [next(records) for _ in tasks[split]]) for split in tasks]
        drop_records(task.path for task in todo)
    for picture in (picture for record in done for picture in record.mended):
        tqdm.write(f"{picture}: this picture is damaged; its shard has it as Pillow reads it", file=sys.stderr)
    return indexes


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
    alike = _facts_of_first(samples.take(order[:1]), encoders)
    labelled = version == 1 or source.is_labelled
    tasks = []
    for number, first in enumerate(range(0, len(order), options.samples_per_shard)):
        name = f"{split}-{number:06d}.tar"
        chunk = samples.take(order[first : first + options.samples_per_shard])
        known = records.get(name)
        tasks.append(_Task(out / name, first, chunk, labelled, encoders, alike, made, known, version))
    return tasks


def _facts_of_first(samples: Samples, encoders: Mapping[str, Encoder]) -> dict[str, Facts]:
    """What the first sample says that the others must be, so that the file that is not so is named."""
    columns, facts = columns_of(samples, encoders), {}
    for name, encoder in encoders.items():
        if encoder.alike:
            with contextlib.closing(columns[name]) as column:
                facts[name] = encode(encoder, column, 0).facts
    return facts


def _made_from(source: SampleSet, split: str, options: ShardOptions, version: int) -> dict[str, Any]:
    made: dict[str, Any] = {
        "size": None if options.size is None else image_size_of(options.size),
        "format": options.format,
        "samples_per_shard": options.samples_per_shard,
    }
    if version > 1 or options.value_range is not None:
        made["range"] = None if options.value_range is None else list(options.value_range)
    # Shards of version 1 are completed, but never begun: so that two runs of two versions at once do not mix.
    made |= {} if version == 1 else {"version": version}
    if version > 1 or source.fields != IMAGE:
        made["fields"] = {name: spec.to_json() for name, spec in source.fields.items()}
    return made | {"source": source.fingerprint(split)}


def _order_key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=_KEY_BYTES).digest()


def _check_same(out: Path, split: str, recorded: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    for key, value in made.items():
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


def left_behind(out: Path, split: str) -> tuple[set[str], dict[str, Record]]:
    """What a stopped run has left: (names of the split's tars, records beside them by name of the tar). Lists tars first."""
    tars = _names(out, rf"{re.escape(split)}-\d+\.tar")
    records = [_read_record(out / name) for name in _names(out, rf"\.{re.escape(split)}-\d+\.json")]
    return tars, {record.shard.name: record for record in records if record is not None}


def _names(folder: Path, pattern: str) -> set[str]:
    return {path.name for path in folder.iterdir() if re.fullmatch(pattern, path.name)}


def record_path(tar: Path) -> Path:
    return tar.with_name(f".{tar.stem}.json")


def _claim_path(tar: Path) -> Path:
    return tar.with_name(f".{_split(tar)}.claim")


def _split(tar: Path) -> str:
    return tar.stem.rpartition("-")[0]


def drop_records(tars: Iterable[Path]) -> None:
    """Removes the records and claims of shards, which are needed only as long as there is no index."""
    for tar in tars:
        record_path(tar).unlink(missing_ok=True)
        _claim_path(tar).unlink(missing_ok=True)


def _claim(tar: Path, made: Mapping[str, Any]) -> None:
    """Claims the split for shards that are made from `made`, before the first is renamed. Raises UserError if another run has
    claimed it for other shards.

    Making a hard link either succeeds or finds the file in one step, and the linked file is complete. The index is read last,
    because a finished run has written it before it removed its claim.
    """
    path, index, digest = _claim_path(tar), tar.with_name(f"{_split(tar)}.json"), _digest(made)
    claimed = _link_or_read(path, digest)
    if claimed == digest and index.exists() and _made(index, index.stat().st_mtime_ns) != made:
        path.unlink(missing_ok=True)
        claimed = ""
    if claimed != digest:
        raise UserError(
            f"{tar.parent}: another run makes its {_split(tar)} shards, from other files or with other options; choose "
            f"another folder for these, or remove {path} if that run was killed"
        )


def _link_or_read(path: Path, text: str) -> str:
    """The content of the file, which is created with `text` if it does not exist."""
    while True:
        with contextlib.suppress(FileNotFoundError):
            return path.read_text()
        temporary = aside(path)
        try:
            # Flushed, because after a power cut an empty claim would refuse this same run.
            write_flushed(temporary, text.encode())
            os.link(temporary, path)
        except (FileExistsError, FileNotFoundError):
            # Another run was first, or removed the temporary file as a leftover.
            if not path.parent.exists():
                raise
        except OSError:
            # A file system without hard links: then only records and indexes show that there are other runs.
            return text
        finally:
            temporary.unlink(missing_ok=True)


def _digest(made: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()


@functools.lru_cache(maxsize=1)
def _made(index: Path, changed_ns: int) -> Mapping[str, Any] | None:
    """What the shards of an index were made from; `changed_ns`, its modification time, is for the cache."""
    content = Index.read(index)
    return content.made if content.codes is None else content.codes.identity()


def _read_record(path: Path) -> Record | None:
    """None if there is no record, or it is damaged or of another version."""
    try:
        return Record.from_json(json.loads(path.read_bytes()))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


def _complete(task: _Task, progress: Progress) -> Record:
    """The record of the task's shard, which is written unless it is complete already."""
    record = whole_record(task.path, task.made, task.record)
    if record is not None:
        progress(len(task.samples))
        return record
    return write_shard(task.path, len(task.samples), lambda writer: _write_samples(task, writer, progress))


def whole_record(path: Path, made: Mapping[str, Any], known: Record | None) -> Record | None:
    """The record (`known`, or the file beside the shard) if the shard was made from `made` and is complete, else None."""
    for record in (known, _read_record(record_path(path))):
        if record is not None and record.made == made and _is_whole(path, record.shard):
            return record
    return None


def _is_whole(path: Path, shard: Shard) -> bool:
    try:
        return path.stat().st_size == shard.size and sha256_of(path) == shard.sha256
    except FileNotFoundError:
        return False


def write_shard(path: Path, samples: int, fill: "Callable[[ShardWriter], Record]") -> Record:
    """Writes a shard and its record atomically; `fill` adds `samples` samples and finishes the writer.

    Raises UserError if the disk cannot be written or another run makes other shards there, and whatever `fill` raises.
    """
    with disk_troubles(path):
        temporary, file = _open_aside(path)
        try:
            with file:
                record = fill(ShardWriter(TarWriter(file), path.name, samples))
                file.flush()
                os.fsync(file.fileno())
                _claim(path, record.made)
                write_json(record_path(path), record.to_json(), indent=None)
                temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return record


def _write_samples(task: _Task, writer: "ShardWriter", progress: Progress) -> Record:
    labels = task.samples.labels.tolist()

    def add(number: int, members: Mapping[str, bytes]) -> None:
        writer.add(f"{task.first + number:08d}", labels[number] if task.is_labelled else None, members)

    found, mended = encode_samples(task.samples, task.encoders, task.alike, add, progress)
    return Record(writer.finish(), task.made, found, mended, task.version)


class TarWriter:
    """Writes a ustar archive whose bytes depend on names and contents alone, and hashes them."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self._digest, self._end = file, hashlib.sha256(), 0

    def add(self, name: str, data: bytes) -> tuple[int, int]:
        """Writes one member; returns (offset, size) of its data in bytes."""
        header = tarfile.TarInfo(name)
        header.size = len(data)
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self._end
        self._write(data + bytes(-len(data) % BLOCK))
        return offset, len(data)

    def finish(self) -> tuple[int, str]:
        """Ends the archive; returns (size in bytes, sha256)."""
        self._write(END_OF_TAR)
        return self._end, self._digest.hexdigest()

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)
        self._end += len(data)


class ShardWriter:
    """Writes a shard: its tar, and the offset and size of each member."""

    def __init__(self, tar: TarWriter, name: str, samples: int) -> None:
        self._tar, self._name, self._samples = tar, name, samples
        self._keys: list[str] = []
        self._labels: list[int] = []
        self._columns: dict[str, np.ndarray] = {}

    def add(self, key: str, label: int | None, members: Mapping[str, bytes]) -> None:
        """Writes a sample: `members` by extension, then its .cls if it has a label."""
        marks = {} if label is None else {"cls": str(label).encode()}
        for extension, content in {**members, **marks}.items():
            column = self._columns.setdefault(extension, np.tile(np.array([[-1], [0]]), self._samples))
            column[:, len(self._keys)] = self._tar.add(f"{key}.{extension}", content)
        self._keys.append(key)
        self._labels.append(label or 0)

    def finish(self) -> Shard:
        """Ends the tar and returns its description."""
        assert len(self._keys) == self._samples, f"{self._name}: {len(self._keys)} samples, not {self._samples}"
        size, digest = self._tar.finish()
        members = {extension: (column[0], column[1]) for extension, column in self._columns.items()}
        return Shard(self._name, size, digest, tuple(self._keys), np.array(self._labels, dtype=np.int64), members)


def _write_index(
    source: SampleSet, split: str, out: Path, encoders: Mapping[str, Encoder], records: Sequence[Record]
) -> Path:
    version, fields = records[0].version, {}
    for name, encoder in encoders.items():
        described = functools.reduce(partial(merged, encoder), [record.found[name] for record in records])
        if version == 1 and _side({"image": described}) is None:
            described = {**described, "size": None}
        fields[name] = field_from_json(name, described)
    label = LabelField(LABEL, ("cls",) if version == 1 or source.is_labelled else (), source.classes)
    shards = tuple(record.shard for record in records)
    index = Index(out / f"{split}.json", split, {**fields, LABEL: label}, shards, records[0].made, version=version)
    index.write()
    return index.path


def _open_aside(path: Path) -> tuple[Path, IO[bytes]]:
    """A temporary file that is locked while its writer lives, so that the file of a killed run can be recognised."""
    while True:
        temporary = aside(path)
        file = temporary.open("xb")
        with contextlib.suppress(OSError):  # a file system without locks: then leftovers are never removed
            fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # otherwise another run removed it as a leftover between these lines
            return temporary, file
        file.close()


def remove_leftovers(out: Path) -> None:
    """Removes the temporary files of killed runs."""
    # Listed first: whoever writes a record holds the lock of its shard's temporary file until the record is renamed.
    records = _names(out, r"\.\..+\.json\.[0-9a-f]+\.tmp")
    for name in _names(out, r"\..+\.(tar|claim)\.[0-9a-f]+\.tmp"):
        with contextlib.suppress(OSError), (out / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            (out / name).unlink(missing_ok=True)
    living = {name.rsplit(".", 3)[0] for name in _names(out, r"\..+\.tar\.[0-9a-f]+\.tmp")}
    for name in records:
        if name.rsplit(".", 3)[0].removeprefix(".") not in living:
            (out / name).unlink(missing_ok=True)


@contextlib.contextmanager
def disk_troubles(path: Path) -> Iterator[None]:
    """Turns a full disk, a read-only folder and the like into a UserError."""
    try:
        yield
    except BrokenPipeError:  # the parent process ended; not an error of the disk
        raise
    except OSError as error:
        after = "; free some space and run again, which continues" if error.errno in _FULL else ""
        raise UserError(f"{path}: cannot be written: {error.strerror}{after}") from None
