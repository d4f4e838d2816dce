"""The index of a split: its shards, and the offset and size of each member in them.

Shards are plain webdataset tars. With `SPLIT.json` beside them every sample can be read by one positioned read, so that
order, exactly-once and resume are arithmetic on sample numbers. Sample numbers run through the shards in the index's
order. The JSON holds one column per property and shard, about 50 MB for a million samples:

    {"format": "bigtrain-index", "version": 1,
     "split": "train", "classes": ["cat", "dog"],
     "size": 32,                      pixels of a side if every image is a square of that size, else null
     "made": {...} or null,           what launch/shard.py made these shards from; null for shards made by others
     "shards": [
       {"url": "train-000000.tar",    relative to the folder of the index, or a URL
        "size": 1234944, "sha256": "...", "samples": 2,
        "keys": ["00000000", "00000001"],
        "labels": [1, 0],             numbers of classes, as in the .cls members
        "members": {"jpg": {"offsets": [512, 3584], "sizes": [1893, 2210]}, "cls": {...}}}]}

A sample that has no member of an extension has offset -1 there. "labels_from" (after "made") says where labels come from if
not from .cls members. Nothing in an index is ever executed or unpickled.

Shards of codes (launch/encode.py) have one npy member per level of their tokenizer instead of the image, and the index has,
before "shards", the key "codes": a `CodesManifest`. "size" is then that of the images that were encoded.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, get_args

import numpy as np

from bigtrain.data.remote import HERE, Origin, beside, check_url, is_remote, receive, shown
from bigtrain.errors import UserError
from bigtrain.runs.atomic import aside, cache_folder, write_bytes

FORMAT = "bigtrain-index"
FORMAT_VERSION = 1
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "npy")
"""Extensions of members that are read as images; the first that a sample has. Decoding checks the content again. npy comes
last, because some shards keep features as npy beside a picture."""
HOW_TO_MAKE = "make the shards with `python launch/shard.py SOURCE OUT --size N`"
Resize = Literal["never", "exact", "scaled"]
"""How images are made squares of one size when they are read: bigtrain.data.resize."""
UNLABELLED = "unlabelled"
"""The name of the only class of data without labels."""
LARGEST_CODEBOOK = 2**16
"""Codes are stored as uint16."""
MOST_BYTES = 2**31
"""The largest index that is fetched from a URL: about fifty million samples."""
_PROCESS_BEGAN = time.time()
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar. `name`: its path relative to the index's folder, or its URL; `size` in bytes; `labels`: int64 [samples].

    `members`: for each extension the (offsets, sizes) of its members in bytes, int64 [samples] each, -1 where absent.
    """

    name: str
    size: int
    sha256: str
    keys: tuple[str, ...]
    labels: np.ndarray
    members: Mapping[str, tuple[np.ndarray, np.ndarray]]

    @property
    def samples(self) -> int:
        return len(self.keys)

    @cached_property
    def members_hash(self) -> str:
        """A hash of the labels and of the members' offsets and sizes: two indexes of one tar may read it differently."""
        digest = hashlib.sha256(self.labels.astype("<i8").tobytes())
        for extension, columns in sorted(self.members.items()):
            digest.update(extension.encode())
            for column in columns:
                digest.update(column.astype("<i8").tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        members = {
            extension: {"offsets": offsets.tolist(), "sizes": sizes.tolist()}
            for extension, (offsets, sizes) in sorted(self.members.items())
        }
        return {
            "url": self.name,
            "size": self.size,
            "sha256": self.sha256,
            "samples": self.samples,
            "keys": list(self.keys),
            "labels": self.labels.tolist(),
            "members": members,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Shard":
        """Raises KeyError, TypeError or ValueError if `value` is not what `to_json` gives."""
        samples = int(value["samples"])
        members = {
            str(extension): (_column(member["offsets"], samples), _column(member["sizes"], samples))
            for extension, member in value["members"].items()
        }
        keys = tuple(map(str, value["keys"]))
        if len(keys) != samples:
            raise ValueError(f"{value['url']} has {samples} samples but {len(keys)} keys")
        labels = _column(value["labels"], samples)
        shard = cls(str(value["url"]), int(value["size"]), str(value["sha256"]), keys, labels, members)
        shard._check()
        return shard

    def _check(self) -> None:
        """Raises ValueError for values that no tar can have: an index may come from an untrusted source."""
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"{self.name}: {self.sha256!r} is not a sha256")
        for extension, (offsets, sizes) in self.members.items():
            if offsets.size and (min(offsets.min() + 1, sizes.min()) < 0 or (offsets > self.size - sizes).any()):
                raise ValueError(f"{self.name}: a {extension} member is outside of its {self.size} bytes")


def _column(values: Any, samples: int) -> np.ndarray:
    column = np.asarray(values, dtype=np.int64)
    if column.shape != (samples,):
        raise ValueError(f"a column has shape {column.shape}, but the shard has {samples} samples")
    return column


def _parsed(data: bytes) -> Any:
    """The JSON of an index. If each shard has its own line, as `Index.write` writes them, they are parsed one at a time: a
    million samples at once, as Python numbers, would take ten times the memory of their columns."""
    lines = io.BytesIO(data)
    head = next(lines, b"").rstrip(b"\n")
    if head.endswith(b'"shards": [') and data.endswith(b"\n]}\n"):
        with contextlib.suppress(ValueError):
            value = json.loads(head + b"]}")
            value["shards"] = (json.loads(line.rstrip(b",\n")) for line in lines if line != b"]}\n")
            return value
    return json.loads(data)


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


class Level(TypedDict):
    """One level of a tokenizer, as JSON. `grid`: [height, width] in codes."""

    codebook_size: int
    grid: list[int]


class EncodedImages(TypedDict):
    """The image index that codes were made from, as JSON. `path` is absolute, or a URL; `resize`: how its images were made
    squares, if they were resized when read."""

    path: str
    fingerprint: str
    resize: NotRequired[Resize]


@dataclass(frozen=True)
class CodesManifest:
    """What codes were made from and how. Raises ValueError for levels that cannot be stored.

    tokenizer: fingerprint of its weights; levels: by name, the coarsest first; flip_variants: 1, or 2 if the codes of each
    mirrored image are stored too; transform: how pixels were transformed before they were encoded.
    """

    tokenizer: str
    levels: Mapping[str, Level]
    flip_variants: int
    transform: str
    images: EncodedImages

    def __post_init__(self) -> None:
        if self.flip_variants not in (1, 2) or not self.levels:
            raise ValueError(
                f"codes have 1 or 2 flip variants of at least one level, not {self.flip_variants} of {len(self.levels)}"
            )
        for name, level in self.levels.items():
            if not re.fullmatch(r"\w+", name, re.ASCII):
                raise ValueError(f"level {name!r} cannot name a member; a name is letters, digits and underscores")
            if not 0 < level["codebook_size"] <= LARGEST_CODEBOOK:
                raise ValueError(f"level {name} has {level['codebook_size']} codes; uint16 holds {LARGEST_CODEBOOK}")
            if len(level["grid"]) != 2 or min(level["grid"]) < 1:
                raise ValueError(f"level {name} has the grid {level['grid']}, which is not [height, width]")

    def shape(self, level: str) -> tuple[int, int, int]:
        """(flip variants, height, width) of a sample's codes."""
        height, width = self.levels[level]["grid"]
        return self.flip_variants, height, width

    def identity(self) -> dict[str, Any]:
        """`to_json` without the path of the images: equal for equal codes."""
        return self.to_json() | {"images": self.images["fingerprint"]}

    def to_json(self) -> dict[str, Any]:
        return {
            "tokenizer": self.tokenizer,
            "levels": {name: dict(level) for name, level in self.levels.items()},
            "views": self.flip_variants,
            "transform": self.transform,
            "images": dict(self.images),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "CodesManifest":
        """Raises KeyError, TypeError or ValueError if `value` is not what `to_json` gives."""
        levels = {
            str(name): Level(codebook_size=int(level["codebook_size"]), grid=[int(side) for side in level["grid"]])
            for name, level in value["levels"].items()
        }
        images = EncodedImages(path=str(value["images"]["path"]), fingerprint=str(value["images"]["fingerprint"]))
        if "resize" in value["images"]:
            images["resize"] = value["images"]["resize"]
            if images["resize"] not in get_args(Resize):
                raise ValueError(f"{images['resize']!r} is not one of the ways to resize images")
        return cls(str(value["tokenizer"]), levels, int(value["views"]), str(value["transform"]), images)


def codes_extension(level: str) -> str:
    """The extension of a level's members; for the level `codes` it is codes.npy, so that a tokenizer of one level has
    KEY.codes.npy."""
    return "codes.npy" if level == "codes" else f"{level}.codes.npy"


@dataclass(frozen=True, eq=False)
class Index:
    """One split: its classes by number, its shards in order. `image_size`: pixels, None if images differ in size.

    `path`: the file; for an index from a URL, its copy in the user's cache folder. `made`: what launch/shard.py made the
    shards from; `codes`: what codes were made from and how, None for shards of images; `labels_from`: cls, json:FIELD or
    none; `variant`: how images are resized or filtered by class when they are read (bigtrain.data.read.variants), never
    written; `origin`: the URL that it came from.
    """

    path: Path
    split: str
    classes: tuple[str, ...]
    image_size: int | None
    shards: tuple[Shard, ...]
    made: Mapping[str, Any] | None = None
    codes: CodesManifest | None = None
    labels_from: str = "cls"
    variant: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = HERE

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
        labels = [] if self.labels_from == "cls" else [self.labels_from]
        # Without a variant the size is that of the images in the shards, which their hashes determine.
        variant = [{**self.variant, "image_size": self.image_size}] if self.variant else []
        text = json.dumps([FORMAT_VERSION, shards, list(self.classes), *codes, *labels, *variant])
        return hashlib.sha256(text.encode()).hexdigest()

    @classmethod
    def read(cls, where: Path | str, origin: Origin = HERE) -> "Index":
        """Reads the index at a path, or at a URL: then `origin` says how to fetch it, and its shards are not fetched yet.

        An index at a URL is fetched once for all processes that share a cache folder and had started by then. Raises UserError
        if it is absent, is not an index, or is of another version.
        """
        if is_remote(str(where)):
            return cls._fetch(replace(origin, url=str(where)))
        return cls._open(Path(where), replace(origin, url=None))

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
            value = _parsed(path.read_bytes())
        except FileNotFoundError:
            raise UserError(f"{path}: there is no index here; {HOW_TO_MAKE}") from None
        except OSError as error:
            raise UserError(f"{path}: the index cannot be read: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: not an index: {error}; {HOW_TO_MAKE}") from None
        if not isinstance(value, dict) or value.get("format") != FORMAT:
            raise UserError(f"{path}: not an index of shards (no format: {FORMAT}); {HOW_TO_MAKE}")
        if value.get("version") != FORMAT_VERSION:
            raise UserError(
                f"{path}: index version {value.get('version')}, but this bigtrain reads version {FORMAT_VERSION}; "
                f"index the shards again with `python launch/shard.py {path.parent} --index-only`"
            )
        try:
            return cls._from_json(path, value, origin)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: the index is damaged ({type(error).__name__}: {error}); {HOW_TO_MAKE}") from None

    @classmethod
    def _from_json(cls, path: Path, value: dict[str, Any], origin: Origin) -> "Index":
        shards = tuple(Shard.from_json(shard) for shard in value["shards"])
        size = None if value["size"] is None else int(value["size"])
        codes = CodesManifest.from_json(value["codes"]) if "codes" in value else None
        split, classes = str(value["split"]), tuple(map(str, value["classes"]))
        if split in ("", "..") or Path(split).name != split or "\0" in split:
            raise ValueError(f"{split!r} cannot name a split")  # shards of codes are written under this name
        labels_from = str(value.get("labels_from", "cls"))
        index = cls(path, split, classes, size, shards, value["made"], codes, labels_from, origin=origin)
        for number in range(len(shards)):
            if index.is_remote(number):
                index.location(number)
        if index.samples == 0:
            raise ValueError("it has no samples")
        if index.labels.min() < 0 or index.labels.max() >= len(index.classes):
            raise ValueError(f"labels run to {index.labels.max()} but there are {len(index.classes)} classes")
        return index

    def write(self) -> None:
        """Writes `self.path` atomically, unless it holds exactly this already."""
        assert not self.variant, f"{self.path}: a variant of a split is never written"
        head = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "split": self.split,
            "classes": list(self.classes),
            "size": self.image_size,
            "made": self.made,
        }
        if self.labels_from != "cls":
            head["labels_from"] = self.labels_from
        if self.codes is not None:
            head["codes"] = self.codes.to_json()
        shards = ",\n".join(json.dumps(shard.to_json(), separators=(",", ":")) for shard in self.shards)
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
                size = path.stat().st_size
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
