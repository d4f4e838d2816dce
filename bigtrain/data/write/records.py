"""Records of complete shards, and what runs at once, or one after the other, know each other by.

A shard is written to a temporary file, flushed, recorded and renamed; the record (a hidden `.SPLIT-000000.json`) lets a killed
run continue, and is removed once the index is written. So running a command again completes what is missing, and two runs at
once write the same files. If two runs would write different files, the first to finish a shard claims the split (a hidden
`.SPLIT.claim`), and the other gets an error.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS, ImageField
from bigtrain.data.index import FORMAT_VERSION, Index
from bigtrain.data.shard import Shard
from bigtrain.data.write.remarks import Remarks
from bigtrain.data.write.tar_writer import ShardWriter, TarWriter
from bigtrain.errors import UserError
from bigtrain.runs.atomic import aside, opened_aside, sha256_of, sync_folder, write_flushed, write_json
from bigtrain.untrusted import read_json

_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Record:
    """The description of a complete shard. `made`: what the shards of the split were made from, and with which options;
    `found`: its fields, as an index of this shard alone would describe them, without the label; `mended`: files that were
    damaged and are in the shard as Pillow reads them; `version`: of the index that the shard is for; `remarks`: on pictures;
    `skipped`: a line for each broken sample that was left out.
    """

    shard: Shard
    made: Mapping[str, Any]
    found: Mapping[str, Mapping[str, Any]]
    mended: tuple[str, ...] = ()
    version: int = FORMAT_VERSION
    remarks: Remarks = field(default_factory=Remarks)
    skipped: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found = {"image_size": image_side(self.found)} if self.version == 1 else {"found": self.found}
        head = {"version": self.version, **found, "made": self.made, "mended": self.mended}
        head |= {"remarks": self.remarks.to_json(), "skipped": self.skipped}
        return head | {"shard": self.shard.to_json()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Record":
        """Raises KeyError, TypeError or ValueError if `value` is not what `to_json` gives."""
        version = value["version"]
        if version not in (1, FORMAT_VERSION):
            raise ValueError(f"version {version}")
        found = _found_by_version_1(value["image_size"]) if version == 1 else value["found"]
        remarks = Remarks.from_json(value.get("remarks", {}))
        mended, skipped = tuple(value["mended"]), tuple(value.get("skipped", ()))
        return cls(Shard.from_json(value["shard"]), value["made"], found, mended, version, remarks, skipped)

    @classmethod
    def of_index(cls, index: Index, shard: Shard, made: Mapping[str, Any]) -> "Record":
        """That of a shard that is in an index already."""
        found = {name: field.to_json() for name, field in index.fields.items() if field is not index.label_field}
        return cls(shard, made, found, version=index.version)


def image_side(found: Mapping[str, Mapping[str, Any]]) -> int | None:
    """The side of images that are all squares of one size, which version 1 noted."""
    height, width = found.get("image", {}).get("size") or (0, 1)
    return height if height == width else None


def _found_by_version_1(image_size: int | None) -> dict[str, Any]:
    size = None if image_size is None else (image_size, image_size)
    return {"image": ImageField("image", IMAGE_EXTENSIONS, size).to_json()}


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
        return Record.from_json(read_json(path))
    except (FileNotFoundError, KeyError, TypeError, ValueError):
        return None


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


def write_shard(path: Path, samples: int, fill: Callable[[ShardWriter], Record]) -> Record:
    """Writes a shard and its record atomically; `fill` adds `samples` samples and finishes the writer.

    Raises UserError if the disk cannot be written or another run makes other shards there, and whatever `fill` raises.
    """
    with disk_troubles(path):
        with opened_aside(path) as (temporary, file):
            record = fill(ShardWriter(TarWriter(file), path.name, samples))
            file.flush()
            os.fsync(file.fileno())
            _claim(path, record.made)
            write_json(record_path(path), record.to_json(), indent=None)
            temporary.replace(path)
        sync_folder(path.parent)
    return record


def remove_leftovers(out: Path) -> None:
    """Removes the temporary files of killed runs."""
    for name in _names(out, r"\..+\.(tar|claim|json)\.[0-9a-f]+\.tmp"):
        with contextlib.suppress(OSError), (out / name).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
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
