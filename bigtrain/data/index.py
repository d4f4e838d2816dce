"""The index of a split: what its samples are made of, its shards, and the offset and size of each member in them.

Shards are plain webdataset tars. With `SPLIT.json` beside them every sample can be read by one positioned read a member, so
that order, exactly-once and resume are arithmetic on sample numbers. Sample numbers run through the shards in the index's
order. The JSON holds one column per property and shard, about 50 MB for a million samples:

    {"format": "bigtrain-index", "version": 2,
     "split": "train",
     "fields": {                      by name; bigtrain.data.fields has the kinds, and what each says here
       "image": {"kind": "image", "members": ["jpg", "png"], "size": [32, 32] or null, "channels": 3},
       "label": {"kind": "label", "members": ["cls"], "classes": ["cat", "dog"]}},
     "made": {...} or null,           what launch/shard.py made these shards from; null for shards made by others
     "shards": [
       {"url": "train-000000.tar",    relative to the folder of the index, or a URL
        "size": 1234944, "sha256": "...", "samples": 2,
        "keys": ["00000000", "00000001"],
                                      (of a tar at a URL of which only parts were read: "outline", data.tars.outline)
        "labels": [1, 0],             numbers of classes, as in the .cls members; left out where there is no label
        "members": {"jpg": {"offsets": [512, 3584], "sizes": [1893, 2210]}, "cls": {...}}}]}

A sample that has no member of an extension has offset -1 there. At most one field is a label. Nothing in an index is ever
executed or unpickled. For codes (launch/encode.py) the index has, before "shards", the key "codes", a `CodesManifest`, and
"size", the size of the images that were encoded.

Version 1 had no "fields" but "classes" and "size", the side of square images or null: each sample was an image of three
channels in one of IMAGE_EXTENSIONS, or codes, and a label ("labels_from": cls, json:KEY or none). It is read as the fields
`image`, or one per level of the codes, and `label`, keeps its fingerprint, and is written again as version 1.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bigtrain.data.containers import archive_or_container
from bigtrain.data.fields.codes import CodesManifest
from bigtrain.data.fields.field import Field
from bigtrain.data.fields.label import UNLABELLED, LabelField
from bigtrain.data.fields.pictures import IMAGE_EXTENSIONS, ImageField, PicturedField
from bigtrain.data.fields.registry import field_from_json
from bigtrain.data.indexes_beside import FORMAT, how_to_make, why_a_folder_is_none, why_none_is_there
from bigtrain.data.remote import HERE, Origin, beside, check_url, is_remote, receive, shown
from bigtrain.data.shard import Shard
from bigtrain.errors import UserError
from bigtrain.runs.atomic import aside, cache_folder, write_bytes
from bigtrain.sizes import image_size_of, size_of
from bigtrain.untrusted import check_plain, looked_for, parse_json, read_plain

FORMAT_VERSION = 2
LABEL = "label"
"""The name of the label of samples that have none of their own: the one class UNLABELLED."""
MOST_BYTES = 2**31
"""The largest index that is fetched from a URL: about fifty million samples."""
_PROCESS_BEGAN = time.time()


def _parsed(data: bytes) -> Any:
    """The JSON of an index. If each shard has its own line, as `Index.write` writes them, they are parsed one at a time: a
    million samples at once, as Python numbers, would take ten times the memory of their columns."""
    lines = io.BytesIO(data)
    head = next(lines, b"").rstrip(b"\n")
    if head.endswith(b'"shards": [') and data.endswith(b"\n]}\n"):
        with contextlib.suppress(ValueError):
            value = parse_json(head + b"]}")
            value["shards"] = (parse_json(line.rstrip(b",\n")) for line in lines if line != b"]}\n")
            return value
    return parse_json(data)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time. On a file system without locks all go at once, which only costs time."""
    with path.open("ab") as lock:
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(path: Path, origin: Origin) -> None:
    """Fetches the index; the file's modification time is when the download began."""
    assert origin.url is not None
    temporary, begun = aside(path), time.time()
    try:
        with temporary.open("x+b") as file:
            receive(origin.url, file, origin, "the index", most=MOST_BYTES)
        os.utime(temporary, (begun, begun))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True, eq=False)
class Index:
    """One split: the fields of its samples by name, its shards in order.

    `path`: the file; for an index from a URL, its copy in the user's cache folder. `made`: what launch/shard.py made the
    shards from; `codes`: what codes were made from and how, and `encoded_size`, the (height, width) of the images that they
    were made from; None for everything else. `version`: of the JSON. `variant`: how fields are resized, cropped, renamed,
    derived or filtered by class when they are read (bigtrain.data.read.variants), never written; `origin`: the URL that it came
    from; `verified`: whether what is read is held to the shards' hashes (data.verify). One of the fields is a label: LABEL, of
    one class, where the shards have none.
    """

    path: Path
    split: str
    fields: Mapping[str, Field]
    shards: tuple[Shard, ...]
    made: Mapping[str, Any] | None = None
    codes: CodesManifest | None = None
    encoded_size: tuple[int, int] | None = None
    version: int = FORMAT_VERSION
    variant: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = HERE
    verified: bool = True

    @cached_property
    def label_field(self) -> LabelField:
        return next(field for field in self.fields.values() if isinstance(field, LabelField))

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes by number."""
        return self.label_field.classes

    @property
    def picture(self) -> PicturedField | None:
        """The field whose size is that of the data: of the largest pictured ones `image`, or else the first."""
        pictured = [field for field in self.fields.values() if isinstance(field, PicturedField)]
        return min(pictured, key=lambda field: (field.factor, field.name != "image"), default=None)

    @property
    def labelled_image(self) -> tuple[str, str]:
        """The names of the image and of the label: what an evaluation reads."""
        assert self.picture is not None, f"{self.path}: has no images"
        return self.picture.name, self.label_field.name

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) of the images, or of those that codes were made from; None if they differ, or there are none."""
        return self.encoded_size if self.picture is None else self.picture.size

    @property
    def channels(self) -> int:
        """Of the images, or of those that codes were made from."""
        if self.codes is not None:
            return self.codes.images.get("channels", 3)
        return getattr(self.picture, "channels", 3)

    @property
    def parts(self) -> "tuple[Part, ...]":
        """What a stream reads: this index alone. (Of a `SideBySide`: each of its indexes.)"""
        return (Part(self, {name: name for name in self.fields}, "data/order"),)

    @property
    def is_fetched(self) -> bool:
        """Whether any shard must be fetched before it can be read."""
        return any(map(self.is_remote, range(len(self.shards))))

    @property
    def folder(self) -> Path:
        """The local folder of the index, where results that are computed from it may be cached."""
        return self.path.parent

    @property
    def where(self) -> str:
        """The path, or the URL without any token, for messages."""
        return shown(self.origin.url) if self.origin.url else str(self.path)

    @property
    def home(self) -> str:
        """The folder or URL that the shards' names are relative to, for messages."""
        return self.where.rpartition("/")[0] if self.origin.url else str(self.folder)

    def location(self, number: int) -> str:
        """The path or the URL of shard `number`."""
        name = self.shards[number].name
        if self.origin.url is not None:
            return beside(self.origin.url, name)
        return name if is_remote(name) else str(self.folder / name)

    def is_remote(self, number: int) -> bool:
        """Whether shard `number` must be fetched before it can be read."""
        return self.origin.url is not None or is_remote(self.shards[number].name)

    @property
    def made_by(self) -> str:
        """The script that makes such shards, for messages."""
        return "launch/shard.py" if self.codes is None else "launch/encode.py"

    @cached_property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 [samples], by sample number."""
        return np.concatenate([shard.labels for shard in self.shards])

    @cached_property
    def class_counts(self) -> tuple[int, ...]:
        """Samples of each class in an epoch: the class's own number, or that of the largest class if balanced."""
        counts = np.bincount(self.labels, minlength=len(self.classes))
        if self.is_balanced:
            counts[:] = counts.max()
        return tuple(counts.tolist())

    @property
    def is_balanced(self) -> bool:
        """Whether every class has equally many samples in an epoch."""
        return bool(self.variant.get("balance"))

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the samples and their numbering; it does not depend on the files' paths."""
        shards = [[shard.sha256, shard.samples, shard.members_hash] for shard in self.shards]
        codes = [] if self.codes is None else [self.codes.identity()]
        # Without a variant the size is that of the images in the shards, which their hashes determine.
        size = None if self.image_size is None else image_size_of(self.image_size)
        variant = [{**self.variant, "image_size": size}] if self.variant else []
        if self.version == 1:
            source = labels_from(self.label_field)
            facts: list[Any] = [list(self.classes), *codes, *([] if source == "cls" else [source])]
        else:
            facts = [self._fields_json(), *codes]
        text = json.dumps([self.version, shards, *facts, *variant])
        return hashlib.sha256(text.encode()).hexdigest()

    def _fields_json(self) -> dict[str, Any]:
        """The fields as they are declared; a label that the shards do not have is not."""
        return {name: field.to_json() for name, field in self.fields.items() if field.members}

    @classmethod
    def read(cls, where: Path | str, origin: Origin = HERE) -> "Index":
        """Reads the index at a path, or at a URL: then `origin` says how to fetch it, and its shards are not fetched yet. The
        shards of a link to an index are beside the link, or else beside what it points to.

        An index at a URL is fetched once for all processes that share a cache folder and had started by then. Raises UserError
        if it is absent, is not an index, or is of another version.
        """
        if is_remote(str(where)):
            return cls._fetch(replace(origin, url=str(where)))
        index = cls._open(Path(where), replace(origin, url=None))
        behind = replace(index, path=index.path.resolve()) if index.path.is_symlink() else index
        return behind if behind._has_first_shard() and not index._has_first_shard() else index

    def _has_first_shard(self) -> bool:
        return self.is_remote(0) or Path(self.location(0)).exists()

    @classmethod
    def _fetch(cls, origin: Origin) -> "Index":
        assert origin.url is not None
        check_url(origin.url, origin)
        folder = cache_folder() / "indexes" / hashlib.sha256(origin.url.encode()).hexdigest()[:24]
        path = folder / "index.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / "lock"):
                # A time in the future comes from a clock that was wrong; it must not keep the index from being fetched again.
                if not path.exists() or not _PROCESS_BEGAN <= path.stat().st_mtime <= time.time():
                    _download(path, origin)
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be written: {error.strerror}; set BIGTRAIN_CACHE to a folder that can be written"
            ) from None
        try:
            return cls._open(path, origin)
        except UserError as error:
            raise UserError(str(error).replace(str(path), shown(origin.url))) from None

    @classmethod
    def _open(cls, path: Path, origin: Origin) -> "Index":
        try:
            value = _parsed(read_plain(path, MOST_BYTES))
        except FileNotFoundError:
            raise UserError(f"{path}: there is no index here{looked_for(path)}; {why_none_is_there(path)}") from None
        except IsADirectoryError:
            raise UserError(f"{path}: {why_a_folder_is_none(path)}") from None
        except (OSError, ValueError) as error:
            if kind := archive_or_container(path):
                raise UserError(f"{path}: is {kind}, and no index; {how_to_make(path.parent)}") from None
            if isinstance(error, OSError):
                raise UserError(f"{path}: the index cannot be read: {error.strerror}") from None
            raise UserError(f"{path}: not an index: {error}; {how_to_make(path.parent)}") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: not an index of shards (no format: {FORMAT}); {how_to_make(path.parent)}")
        if value.get("version") not in (1, FORMAT_VERSION):
            raise UserError(
                f"{path}: index version {value.get('version')}, but this bigtrain reads versions 1 and {FORMAT_VERSION}; "
                f"install the bigtrain that wrote it, or index the shards again with `python launch/shard.py {path.parent} "
                "--index-only`"
            )
        try:
            return cls._from_json(path, value, origin)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UserError(
                f"{path}: the index is damaged ({type(error).__name__}: {error}); {how_to_make(path.parent)}"
            ) from None

    @classmethod
    def _from_json(cls, path: Path, value: dict[str, Any], origin: Origin) -> "Index":
        codes = CodesManifest.from_json(value["codes"]) if "codes" in value else None
        split, version = str(value["split"]), int(value["version"])
        if split in ("", "..") or Path(split).name != split or "\0" in split:
            raise ValueError(f"{split!r} cannot name a split")  # shards of codes are written under this name
        if version == 1:
            fields = _fields_of_version_1(value, codes)
        else:
            fields = {str(name): field_from_json(str(name), facts) for name, facts in value["fields"].items()}
        if all(isinstance(field, LabelField) for field in fields.values()):
            raise ValueError("its samples have no field but a label")
        factors = {field.factor for field in fields.values() if isinstance(field, PicturedField)}
        if factors and min(factors) > 1:
            raise ValueError(f"all its pictures are {min(factors)} times smaller than the largest, which is not there")
        labelled = any(isinstance(field, LabelField) and field.members for field in fields.values())
        shards = tuple(Shard.from_json(shard, labelled) for shard in value["shards"])
        encoded = None if codes is None else _sides(value["size"])
        named = Counter(shard.name for shard in shards)
        if len(named) < len(shards):  # its samples would count twice
            raise ValueError(f"it names the shard {named.most_common(1)[0][0]!r} more than once")
        index = cls(path, split, with_label(fields), shards, value["made"], codes, encoded, version, origin=origin)
        for number in range(len(shards)):
            if index.is_remote(number):
                index.location(number)
            elif shards[number].name.startswith("/") or "\0" in shards[number].name:  # others are relative to the index
                raise ValueError(f"{shards[number].name!r} is not the name of a shard beside its index")
            elif shards[number].outlined:
                raise ValueError(f"{shards[number].name} has no sha256, as all shards on this machine have")
        if index.samples == 0:
            raise ValueError("it has no samples")
        index._check_members()
        if index.labels.min() < 0 or index.labels.max() >= len(index.classes):
            raise ValueError(f"labels run to {index.labels.max()} but there are {len(index.classes)} classes")
        return index

    def _check_members(self) -> None:
        """Raises ValueError for a field that no sample has."""
        held = {
            extension
            for shard in self.shards
            for extension, (offsets, _) in shard.members.items()
            if (offsets >= 0).any()
        }
        for name, declared in self.fields.items():
            if not isinstance(declared, LabelField) and held.isdisjoint(declared.members):
                raise ValueError(
                    f"no sample has the field {name}: there is no {', '.join(declared.members[:8])} member"
                )

    def write(self) -> None:
        """Writes `self.path` atomically, unless it holds exactly this already."""
        assert not self.variant, f"{self.path}: a variant of a split is never written"
        head: dict[str, Any] = {"format": FORMAT, "version": self.version, "split": self.split}
        if self.version == 1:
            size = None if self.image_size is None else self.image_size[0]
            head |= {"classes": list(self.classes), "size": size, "made": self.made}
            source = labels_from(self.label_field)
            head |= {} if source == "cls" else {"labels_from": source}
        else:
            head |= {"fields": self._fields_json(), "made": self.made}
            head |= {"size": self.encoded_size} if self.codes is not None else {}
        if self.codes is not None:
            head["codes"] = self.codes.to_json()
        labelled = self.version == 1 or bool(self.label_field.members)
        shards = ",\n".join(json.dumps(shard.to_json(labelled), separators=(",", ":")) for shard in self.shards)
        data = f'{json.dumps(head)[:-1]}, "shards": [\n{shards}\n]}}\n'.encode()
        if not self.path.exists() or self.path.read_bytes() != data:
            write_bytes(self.path, data)

    def check_files(self) -> None:
        """Raises UserError, naming the shard, unless every shard has the path and the size that the index says.

        Shards that must be fetched are checked when they arrive; here only whether their URLs are allowed.
        """
        command = self.made_by
        for number, shard in enumerate(self.shards):
            if self.is_remote(number):
                check_url(self.location(number), self.origin)
                continue
            path = self.folder / shard.name
            try:
                status = path.stat()
                check_plain(status, path)
                size = status.st_size
            except OSError as error:
                raise UserError(
                    f"{path}: the shard cannot be opened ({error.strerror}) but {self.path} lists it; "
                    f"copy it here again, or run {command} again, which completes what is missing"
                ) from None
            if size != shard.size:
                raise UserError(
                    f"{path}: the shard has {size} bytes where {self.path} expects {shard.size}: it is truncated, or "
                    f"another file; copy it here again, or run {command} again, which replaces damaged shards"
                )


@dataclass(frozen=True, eq=False)
class Part:
    """An index as a part of a stream. names: of its fields in a batch, by their own; stream: of the draws of its order."""

    index: Index
    names: Mapping[str, str]
    stream: str

    def own_names(self, wanted: Sequence[str] | None) -> dict[str, str]:
        """Of the fields that are `wanted` in the batch, or all: their names in the batch by their own."""
        return {own: name for own, name in self.names.items() if wanted is None or name in wanted}


def with_label(fields: Mapping[str, Field]) -> dict[str, Field]:
    """The fields with a label: the one class UNLABELLED where there is none. Raises ValueError if there are two."""
    labels = [name for name, field in fields.items() if isinstance(field, LabelField)]
    if len(labels) > 1:
        raise ValueError(f"it has two labels, {labels[0]} and {labels[1]}; one at most can be the class of a sample")
    if not labels and LABEL in fields:
        raise ValueError(f"its field {LABEL} is of the kind {fields[LABEL].kind}; give it another name")
    return dict(fields) if labels else {**fields, LABEL: LabelField(LABEL, (), (UNLABELLED,))}


def label_from(source: str, classes: tuple[str, ...]) -> LabelField:
    """The label whose values are where `source` says: cls, json:KEY or none."""
    kind, _, key = source.partition(":")
    return LabelField(LABEL, () if kind == "none" else (kind,), classes, key or None)


def labels_from(label: LabelField) -> str:
    """The inverse of `label_from`."""
    if not label.members:
        return "none"
    return "cls" if label.key is None else f"json:{label.key}"


def plain_fields(
    classes: tuple[str, ...], size: tuple[int, int] | None, channels: int = 3, labels: str = "cls"
) -> dict[str, Field]:
    """The fields of samples that are one image in any of its formats, and one label."""
    image = ImageField("image", IMAGE_EXTENSIONS, size, channels=channels)
    return {"image": image, LABEL: label_from(labels, classes)}


def _fields_of_version_1(value: Mapping[str, Any], codes: CodesManifest | None) -> dict[str, Field]:
    label = label_from(str(value.get("labels_from", "cls")), tuple(map(str, value["classes"])))
    if codes is not None:
        return {**codes.fields(), LABEL: label}
    return {**plain_fields((), _sides(value["size"])), LABEL: label}


def _sides(size: Any) -> tuple[int, int] | None:
    """(height, width) of a size as JSON, if there is one. Raises TypeError or ValueError."""
    if size is None:
        return None
    height, width = map(int, size_of(size))
    return height, width
