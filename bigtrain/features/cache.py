"""The cache of evaluations: features, moments and classifiers, beside the shards they were computed from or in the user's cache
folder.

An entry is one safetensors file, written atomically. Its name is a hash of everything that determines its contents; its header
holds that key and a hash of the contents, so a damaged file is noticed and made again. Nothing is unpickled.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.data.index import Index
from bigtrain.data.splits import image_shape
from bigtrain.runs.atomic import cache_folder, write_bytes
from bigtrain.sizes import image_size_of

FORMAT_VERSION = 1
"""Part of every key: raise it when the meaning of an entry changes."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    tensors: dict[str, Tensor]
    facts: dict[str, Any]
    """JSON values."""


def fingerprint(tensors: Mapping[str, Tensor], facts: Any = None) -> str:
    """A hash of the tensors' names, types, shapes and values, on whatever device, and of `facts` (JSON values)."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(f"{name}/{values.dtype}/{list(values.shape)}/".encode())
        digest.update(values.numpy().tobytes())
    return digest.hexdigest()


def key_of_images(index: Index) -> dict[str, Any]:
    """What determines the images of an index, as a part of keys."""
    channels, height, width = image_shape(index)
    key = {"index": index.fingerprint, "image_size": image_size_of((height, width))}
    # Keys from when all images were RGB do not name their channels.
    return key if channels == 3 else key | {"channels": channels}


class Cache:
    """The entries of one index, in `.bigtrain` beside it; in the user's cache folder if that is read-only, or if there is no
    index, since nothing is written into folders of images."""

    def __init__(self, index: Index | None) -> None:
        beside = [] if index is None else [index.folder / ".bigtrain"]
        self._folders = (*beside, cache_folder() / "evaluation")

    def read(self, kind: str, key: Mapping[str, Any]) -> Entry | None:
        """The entry, or None if it does not exist or is damaged."""
        for folder in self._folders:
            path = folder / _name(kind, key)
            try:
                if path.exists():
                    return _read(path, _text(kind, key))
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                log.warning("%s: a damaged cache file, made again: %s", path, error)
        return None

    def write(self, kind: str, key: Mapping[str, Any], entry: Entry) -> None:
        """Writes the entry; only warns if no folder can be written, since then the next evaluation computes it again."""
        text = {"key": _text(kind, key), "facts": json.dumps(entry.facts, sort_keys=True)}
        text["sha256"] = fingerprint(entry.tensors, text["key"] + text["facts"])
        tensors = {name: tensor.cpu().contiguous() for name, tensor in entry.tensors.items()}
        data = safetensors.torch.save(tensors, metadata=text)
        errors = []
        for folder in self._folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(folder / _name(kind, key), data)
            except OSError as error:
                errors.append(f"{folder}: {error.strerror}")
            else:
                return
        log.warning("the %s of this evaluation could not be kept for the next: %s", kind, "; ".join(errors))


def _text(kind: str, key: Mapping[str, Any]) -> str:
    return json.dumps({"kind": kind, "version": FORMAT_VERSION, **key}, sort_keys=True)


def _name(kind: str, key: Mapping[str, Any]) -> Path:
    return Path(f"{kind}-{hashlib.sha256(_text(kind, key).encode()).hexdigest()[:20]}.safetensors")


def _read(path: Path, key: str) -> Entry:
    with safe_open(path, framework="pt") as file:
        text = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    if text["key"] != key or text["sha256"] != fingerprint(tensors, text["key"] + text["facts"]):
        raise ValueError("its contents are not what was written")
    return Entry(tensors, json.loads(text["facts"]))
