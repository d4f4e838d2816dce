"""Tars whose bytes depend on names and contents alone, and the description of a shard that is written as one."""

import hashlib
import tarfile
from collections.abc import Mapping
from typing import IO

import numpy as np

from bigtrain.data.shard import Shard
from bigtrain.data.tars import BLOCK, END_OF_TAR


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

    def finish(self, skipped: int = 0) -> Shard:
        """Ends the tar and returns its description; skipped: how many of the samples were left out."""
        count = len(self._keys)
        assert count + skipped == self._samples, f"{self._name}: {count} samples and {skipped}, not {self._samples}"
        size, digest = self._tar.finish()
        members = {extension: (column[0, :count], column[1, :count]) for extension, column in self._columns.items()}
        return Shard(self._name, size, digest, tuple(self._keys), np.array(self._labels, dtype=np.int64), members)
