"""One shard of a split, as its index says (bigtrain.data.index)."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Shard:
    """One tar. `name`: its path relative to the index's folder, or its URL; `size` in bytes; `labels`: int64 [samples].

    `sha256`: of all of it, or, if it is `outlined`, of what could be known without fetching it: its outline (data.tars).

    `members`: for each extension the (offsets, sizes) of its members in bytes, int64 [samples] each, -1 where absent.
    """

    name: str
    size: int
    sha256: str
    keys: tuple[str, ...]
    labels: np.ndarray
    members: Mapping[str, tuple[np.ndarray, np.ndarray]]
    outlined: bool = False

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

    def to_json(self, labelled: bool = True) -> dict[str, Any]:
        members = {
            extension: {"offsets": offsets.tolist(), "sizes": sizes.tolist()}
            for extension, (offsets, sizes) in sorted(self.members.items())
        }
        head = {
            "url": self.name,
            "size": self.size,
            "outline" if self.outlined else "sha256": self.sha256,
            "samples": self.samples,
            "keys": list(self.keys),
        }
        return head | ({"labels": self.labels.tolist()} if labelled else {}) | {"members": members}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], labelled: bool = True) -> "Shard":
        """labelled: whether it must have labels. Raises KeyError, TypeError or ValueError if `value` is not what `to_json`
        gives."""
        samples = int(value["samples"])
        members = {
            str(extension): (_column(member["offsets"], samples), _column(member["sizes"], samples))
            for extension, member in value["members"].items()
        }
        keys = tuple(map(str, value["keys"]))
        if len(keys) != samples:
            raise ValueError(f"{value['url']} has {samples} samples but {len(keys)} keys")
        labels = (
            _column(value["labels"], samples) if labelled or "labels" in value else np.zeros(samples, dtype=np.int64)
        )
        outlined = "outline" in value
        digest = str(value["outline" if outlined else "sha256"])
        shard = cls(str(value["url"]), int(value["size"]), digest, keys, labels, members, outlined)
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
