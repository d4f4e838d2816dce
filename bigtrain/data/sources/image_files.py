"""Images that lie loose: a folder of files, a tar or a zip of them, or an npz of samples as guided-diffusion writes it.

They are listed in sorted order, so that image i is the same wherever and however often it is read, and read one by one,
so that memory does not grow with their number. Content decides what an image is, nothing is unpickled, and a member that
announces too many bytes or pixels is refused before memory is taken for it. EXIF does not turn them: other evaluators take
pixels as they are stored, and the same files must give the same number.
"""

import hashlib
import itertools
import lzma
import math
import os
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from bigtrain.data.decode import Undecodable, decode, label
from bigtrain.data.index import IMAGE_EXTENSIONS
from bigtrain.data.read.loader import Loader
from bigtrain.data.sources.pictures import refuse_a_circle
from bigtrain.data.tars import members as tar_members
from bigtrain.errors import UserError

Kind = Literal["folder", "tar", "zip", "npz"]
EXTENSIONS = tuple(f".{extension}" for extension in IMAGE_EXTENSIONS)
UNREAD = (".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif", ".heic", ".jfif")
"""Images that other tools count: a set must not be measured without them in silence."""
MOST_BYTES = 2**28
"""Of one member: no picture that decode.MAX_PIXELS allows takes more, and a zip bomb does."""
DIGEST_BYTES = 16
"""Of the hash of one image's pixels."""
_ZIP_TROUBLES = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, OSError, RuntimeError)
"""What zipfile raises for a damaged or an encrypted member."""
_SAMPLES, _LABELS = "arr_0.npy", "arr_1.npy"
_ZIP_HEADER = 30
"""Bytes of a zip member's local header before its name (APPNOTE 4.3.7)."""


@dataclass(frozen=True)
class Member:
    """One file: its name, where it begins in its archive, its size in bytes."""

    name: str
    offset: int
    size: int


class Loose(ABC):
    """`labels`: int64 [count], or None; `classes`: names by label, or None where labels are numbers of somebody else's.

    `key`: a hash of names, sizes and times of change, by which work on these very files is found again.
    """

    kind: Kind
    path: Path
    count: int
    labels: np.ndarray | None = None
    classes: tuple[str, ...] | None = None
    key: str

    @abstractmethod
    def image(self, number: int) -> np.ndarray:
        """uint8 [H, W, 3]. Raises Undecodable, or UserError if the file cannot be read."""

    @abstractmethod
    def name(self, number: int) -> str:
        """What a message calls the image."""


class _Files(Loose):
    """Encoded images, by members in sorted order."""

    def __init__(self, path: Path, found: Iterable[Member], key: str) -> None:
        self.path, self.key = path, key
        every = sorted(found, key=lambda member: member.name)
        images = [member for member in every if member.name.lower().endswith(EXTENSIONS)]
        pictures = {_stem(member) for member in images if not member.name.lower().endswith(".npy")}
        # As in shards: npy holds pixels only where there is no picture, and features of it otherwise.
        self._members = [
            member for member in images if not member.name.lower().endswith(".npy") or _stem(member) not in pictures
        ]
        self.count = len(self._members)
        unread = next((member.name for member in every if member.name.lower().endswith(UNREAD)), None)
        if unread is not None:
            raise UserError(
                f"{path}: {unread} looks like an image, of a kind that is not read ({', '.join(EXTENSIONS)} are); convert it, "
                "or take it away"
            )
        if not self._members:
            raise UserError(f"{path}: no images here ({', '.join(EXTENSIONS)}), in a {self.kind} of {len(every)} files")
        names = [member.name for member in self._members]
        twice = next((name for name, after in itertools.pairwise(names) if name == after), None)
        if twice is not None:
            raise UserError(f"{path}: {twice} stands in it twice; pack it again")
        self._find_labels(every)

    def _find_labels(self, every: Sequence[Member]) -> None:
        """From KEY.cls members if every image has one, else from the folders if each image lies in a class's."""
        stems = [_stem(member) for member in self._members]
        marks = {_stem(member): member for member in every if _is_mark(member)}
        if marks and all(stem in marks for stem in stems):
            self.labels = np.array([self._label(marks[stem]) for stem in stems], dtype=np.int64)
            return
        folders = [PurePosixPath(member.name).parent.parts for member in self._members]
        first, last = min(folders), max(folders)  # what these two share, all do
        shared = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))))
        if all(len(parts) == shared + 1 for parts in folders):
            self.classes = tuple(sorted({parts[-1] for parts in folders}))
            numbers = {name: number for number, name in enumerate(self.classes)}
            self.labels = np.array([numbers[parts[-1]] for parts in folders], dtype=np.int64)

    def _label(self, member: Member) -> int:
        try:
            return label(self._bytes(member))
        except Undecodable as error:
            raise UserError(f"{self.path}: {member.name}: {error}") from None

    def image(self, number: int) -> np.ndarray:
        member = self._members[number]
        if member.size > MOST_BYTES:
            raise Undecodable(f"it takes {member.size} bytes, more than {MOST_BYTES}")
        return decode(self._bytes(member))

    def name(self, number: int) -> str:
        return self._members[number].name

    @abstractmethod
    def _bytes(self, member: Member) -> bytes:
        """The member's content. Raises Undecodable or UserError."""


def _stem(member: Member) -> str:
    return str(PurePosixPath(member.name).with_suffix(""))


def _is_mark(member: Member) -> bool:
    return member.name.endswith(".cls") and member.size <= 32


class _Folder(_Files):
    kind = "folder"

    def __init__(self, path: Path) -> None:
        members, digest = [], hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape"))
        for where, folders, names in os.walk(path, onerror=_unreadable, followlinks=True):
            folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
            for folder in folders:
                refuse_a_circle(Path(where, folder))
            for name in sorted(name for name in names if not name.startswith(".")):
                file = Path(where, name)
                try:
                    facts = file.stat()
                except OSError as error:
                    raise UserError(f"{file}: cannot be read: {error.strerror}") from None
                relative = file.relative_to(path).as_posix()
                members.append(Member(relative, 0, facts.st_size))
                text = f"\n{relative} {facts.st_size} {facts.st_mtime_ns}"
                digest.update(text.encode(errors="surrogateescape"))
        super().__init__(path, members, digest.hexdigest())

    def _bytes(self, member: Member) -> bytes:
        try:
            return (self.path / member.name).read_bytes()
        except OSError as error:
            raise UserError(f"{self.path / member.name}: cannot be read: {error.strerror}") from None


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename}: the folder cannot be read: {error.strerror}")


class _Tar(_Files):
    kind = "tar"

    def __init__(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                found = [
                    Member(name.removeprefix("./"), offset, size)
                    for name, offset, size in tar_members(path, file, 0, path.stat().st_size)
                    if not _hidden(name)
                ]
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        self._file = _Positioned(path)
        super().__init__(path, found, _stamp(path))

    def _bytes(self, member: Member) -> bytes:
        return self._file.read(member.offset, member.size)


class _Zip(_Files):
    kind = "zip"

    def __init__(self, path: Path) -> None:
        self._archive = _Archive(path)
        members = [
            Member(info.filename, info.header_offset, info.file_size)
            for info in self._archive.open().infolist()
            if not info.is_dir() and not _hidden(info.filename)
        ]
        super().__init__(path, members, _stamp(path))

    def _bytes(self, member: Member) -> bytes:
        try:
            # No more than the member announces: `ZipFile.read` unpacks all of it before it looks.
            with self._archive.open().open(member.name) as file:
                return file.read(member.size)
        except _ZIP_TROUBLES as error:
            raise UserError(
                f"{self.path}: {member.name}: {error}; pack it again, whole and without a password"
            ) from None


def _hidden(name: str) -> bool:
    """Such as the `__MACOSX/._cat.png` that some systems pack beside each picture."""
    parts = PurePosixPath(name).parts
    return "__MACOSX" in parts or any(part.startswith(".") and part not in (".", "..") for part in parts)


class Npz(Loose):
    """`arr_0`, uint8 [N, H, W, 3], and where samples have classes `arr_1`, integers [N]; compressed or not.

    An image of an uncompressed file is one positioned read; a compressed one is unpacked up to it, forwards.
    """

    kind = "npz"

    def __init__(self, path: Path) -> None:
        self.path, self.key = path, _stamp(path)
        self._archive, self._file = _Archive(path), _Positioned(path)
        archive = self._archive.open()
        names = archive.namelist()
        if _SAMPLES not in names:
            raise UserError(f"{path}: holds {', '.join(names)}, and no samples: arr_0, uint8 [N, H, W, 3]")
        with archive.open(_SAMPLES) as member:
            shape, dtype, fortran = _npy_header(member, path)
            begin = member.tell()
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or fortran or not math.prod(shape):
            raise UserError(f"{path}: arr_0 is {dtype} {list(shape)}, where samples are uint8 [N, H, W, 3]")
        self.count, self._shape = shape[0], shape[1:]
        self._row = math.prod(self._shape)
        if self._row > 3 * 2**27:
            raise UserError(f"{path}: arr_0 has images of {shape[1]} x {shape[2]}, which is too many pixels")
        info = archive.getinfo(_SAMPLES)
        if info.file_size != begin + self.count * self._row:
            raise UserError(f"{path}: arr_0 announces {self.count} images and holds another number; copy it here again")
        stored = info.compress_type == zipfile.ZIP_STORED
        self._begin, self._offset = begin, self._data_offset(info) + begin if stored else None
        self._stream: tuple[int, Any] | None = None
        if _LABELS in names:
            self.labels = self._read_labels()

    def _data_offset(self, info: zipfile.ZipInfo) -> int:
        header = self._file.read(info.header_offset, _ZIP_HEADER)
        return info.header_offset + _ZIP_HEADER + sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28))

    def _read_labels(self) -> np.ndarray:
        try:
            with np.load(self.path, allow_pickle=False) as arrays:
                labels = arrays["arr_1"]
        except _ZIP_TROUBLES as error:
            raise UserError(f"{self.path}: arr_1 is damaged: {error}; copy it here again") from None
        except ValueError:
            raise UserError(
                f"{self.path}: arr_1 holds pickled objects, which are never read; save labels as integers"
            ) from None
        if labels.shape != (self.count,) or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
            raise UserError(
                f"{self.path}: arr_1 is {labels.dtype} {list(labels.shape)}, not {self.count} class numbers"
            )
        return labels.astype(np.int64)

    def image(self, number: int) -> np.ndarray:
        if self._offset is not None:
            data = self._file.read(self._offset + number * self._row, self._row)
        else:
            data = self._unpacked(number)
        if len(data) != self._row:
            raise UserError(f"{self.path}: the file ends within image {number}: it is truncated; copy it here again")
        return np.frombuffer(bytearray(data), np.uint8).reshape(self._shape)

    def _unpacked(self, number: int) -> bytes:
        if self._stream is None or self._stream[0] != os.getpid():
            self._stream = (os.getpid(), self._archive.open().open(_SAMPLES))
        try:
            self._stream[1].seek(self._begin + number * self._row)
            return self._stream[1].read(self._row)
        except _ZIP_TROUBLES as error:
            raise UserError(f"{self.path}: arr_0 is damaged: {error}; copy it here again") from None

    def name(self, number: int) -> str:
        return f"arr_0[{number}]"


def _npy_header(member: Any, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], bool]:
    """(shape, dtype, Fortran order). Raises UserError; numpy parses a literal here and unpickles nothing."""
    try:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(member)
    except (ValueError, *_ZIP_TROUBLES) as error:
        raise UserError(f"{path}: arr_0 is damaged: {error}; copy it here again") from None
    if dtype.hasobject:
        raise UserError(f"{path}: arr_0 holds pickled objects, which are never read; save uint8 [N, H, W, 3]")
    return shape, dtype, fortran


class _Positioned:
    """Positioned reads of one file; opened when first read. A descriptor may be shared by processes: pread has no place."""

    def __init__(self, path: Path) -> None:
        self._path, self._descriptor = path, -1

    def read(self, offset: int, size: int) -> bytes:
        try:
            if self._descriptor < 0:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            return os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise UserError(f"{self._path}: cannot be read: {error.strerror}") from None


class _Archive:
    """A zip file, opened anew in each process: a handle that processes share would share its place in the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: tuple[int, zipfile.ZipFile] | None = None

    def open(self) -> zipfile.ZipFile:
        if self._opened is None or self._opened[0] != os.getpid():
            try:
                self._opened = (os.getpid(), zipfile.ZipFile(self._path))
            except (zipfile.BadZipFile, OSError, EOFError) as error:
                raise UserError(f"{self._path}: cannot be read: {error}; copy it here again") from None
        return self._opened[1]


def _stamp(path: Path) -> str:
    facts = path.stat()
    return hashlib.sha256(f"{path.resolve()} {facts.st_size} {facts.st_mtime_ns}".encode()).hexdigest()


def open_loose(path: Path) -> Loose:
    """What lies at `path`. Raises UserError if that is nothing that holds images."""
    if path.is_dir():
        return _Folder(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file or folder")
    if path.suffix == ".npz":
        return Npz(path)
    if zipfile.is_zipfile(path):
        return _Zip(path)
    if path.name.endswith((".tar", ".tgz", ".tar.gz", ".tar.xz", ".tar.bz2")):
        return _Tar(path)
    raise UserError(f"{path}: is none of a folder, a tar or zip of images, or an npz of samples")


@dataclass(frozen=True)
class Pictures:
    """Images `numbers`, int64 [n], by size: (places among the n, uint8 [m, H, W, 3]); `digests`: a hash of each's pixels."""

    numbers: np.ndarray
    groups: list[tuple[np.ndarray, Tensor]]
    digests: list[bytes]


def read_loose(
    loose: Loose, chunks: Iterable[np.ndarray], workers: int, room: int = 0
) -> Generator[Pictures, None, None]:
    """The images of each of `chunks` (int64 [n], numbers ascending over all), read by `workers` processes (0: this one).

    `room`: bytes that most chunks take; workers hand over larger ones more slowly. Raises UserError, naming the image, for
    one that cannot be read.
    """
    batches = Loader(_Chunks(loose), iter(chunks), workers, pin_memory=False, room=room)
    try:
        yield from batches
    finally:
        batches.close()


class _Chunks(Dataset[Any]):
    def __init__(self, loose: Loose) -> None:
        self._loose = loose

    def __getitem__(self, numbers: np.ndarray) -> Pictures:
        images = [self._image(int(number)) for number in numbers]
        places: dict[tuple[int, ...], list[int]] = {}
        for place, image in enumerate(images):
            places.setdefault(image.shape, []).append(place)
        groups = [
            (np.array(same), torch.from_numpy(np.stack([images[place] for place in same]))) for same in places.values()
        ]
        return Pictures(numbers, groups, [_digest(image) for image in images])

    def _image(self, number: int) -> np.ndarray:
        try:
            return self._loose.image(number)
        except Undecodable as error:
            raise UserError(
                f"{self._loose.path}: {self._loose.name(number)} cannot be decoded: {error}; mend it or take it away"
            ) from None


def _digest(image: np.ndarray) -> bytes:
    return hashlib.sha256(str(image.shape).encode() + np.ascontiguousarray(image).tobytes()).digest()[:DIGEST_BYTES]
