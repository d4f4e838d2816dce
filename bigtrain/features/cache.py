"""The cache of evaluations: features, moments and classifiers, beside the shards they were computed from or in the user's cache
folder.

An entry is one safetensors file, written atomically. Its name is a hash of everything that determines its contents; its header
holds that key, a hash of the contents, and a signature of both: whoever writes an entry dictates a number, and data come from
others, with whatever lies beside them. So an entry is believed only if this user owns it and signed it; a damaged or foreign
one is made again, in the user's cache folder. Nothing is unpickled.
"""

import hashlib
import hmac
import json
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.data.index import Index
from bigtrain.data.splits import image_shape
from bigtrain.runs.atomic import aside, cache_folder, write_bytes
from bigtrain.signals import held_back
from bigtrain.sizes import image_size_of
from bigtrain.untrusted import open_plain

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
    """The entries of one index, in `.bigtrain` beside it; in the user's cache folder if that is read-only or a link, if a file
    there is not this user's, or if there is no index, since nothing is written into folders of images."""

    def __init__(self, index: Index | None) -> None:
        beside = [] if index is None or (index.folder / ".bigtrain").is_symlink() else [index.folder / ".bigtrain"]
        self._folders = (*beside, cache_folder() / "evaluation")

    def read(self, kind: str, key: Mapping[str, Any]) -> Entry | None:
        """The entry, or None if it does not exist, is damaged, or was not written by this user."""
        refused = []
        for folder in self._folders:
            path = folder / _name(kind, key)
            try:
                return _read(path, _text(kind, key))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                refused.append((path, error))
        for path, reason in refused:
            log.warning("%s: a damaged or foreign cache file, made again: %s", path, reason)
        return None

    def write(self, kind: str, key: Mapping[str, Any], entry: Entry, *, shared: bool = False) -> None:
        """Writes the entry; only warns if no folder can be written, since then the next evaluation computes it again.

        `shared`: also into the user's cache folder, where evaluations of the same data in another folder find it; for what is
        small and took long.
        """
        text = {"key": _text(kind, key), "facts": json.dumps(entry.facts, sort_keys=True)}
        text["sha256"] = fingerprint(entry.tensors, text["key"] + text["facts"])
        tensors = {name: tensor.cpu().contiguous() for name, tensor in entry.tensors.items()}
        errors, written = [], False
        for folder in self._folders:
            if written and not shared:
                break
            path = folder / _name(kind, key)
            try:
                if folder != self._folders[-1] and os.path.lexists(path):
                    _read(path, text["key"])  # what somebody else wrote beside the data is left there
                data = safetensors.torch.save(tensors, metadata=text | {"signature": _signature(text["sha256"])})
                folder.mkdir(parents=True, exist_ok=True)
                write_bytes(path, data)
            except (OSError, SafetensorError, KeyError, ValueError) as error:
                errors.append(f"{folder}: {getattr(error, 'strerror', None) or error}")
            else:
                written = True
        if not written:
            log.warning("the %s of this evaluation could not be kept for the next: %s", kind, "; ".join(errors))


def _text(kind: str, key: Mapping[str, Any]) -> str:
    return json.dumps({"kind": kind, "version": FORMAT_VERSION, **key}, sort_keys=True)


def _name(kind: str, key: Mapping[str, Any]) -> Path:
    return Path(f"{kind}-{hashlib.sha256(_text(kind, key).encode()).hexdigest()[:20]}.safetensors")


def _read(path: Path, key: str) -> Entry:
    with open_plain(path) as plain:
        if os.fstat(plain.fileno()).st_uid != os.getuid():
            raise ValueError("another user wrote it")
    with held_back(), safe_open(path, framework="pt") as file:
        text = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, it is not a dict
    if text["key"] != key or text["sha256"] != fingerprint(tensors, text["key"] + text["facts"]):
        raise ValueError("its contents are not what was written")
    if not hmac.compare_digest(text.get("signature", "").encode(), _signature(text["sha256"]).encode()):
        raise ValueError("this user's installation did not write it")
    return Entry(tensors, json.loads(text["facts"]))


# -- the signature ---------------------------------------------------------------------------------------------------

KEY_BYTES = 32


def _signature(digest: str) -> str:
    """HMAC-SHA256 by the user's key. Raises OSError if there is none and none can be written."""
    return hmac.digest(_signing_key(), digest.encode(), "sha256").hex()


def _signing_key() -> bytes:
    """The key in the user's cache folder, made at the first use; a new one if others could read or write the old one."""
    path = cache_folder() / f"signing-{os.getuid()}.key"
    with suppress(FileNotFoundError):
        if (key := _read_key(path)) is not None:
            return key
        path.unlink()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = aside(path)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):  # another process was first
            os.link(temporary, path)
    finally:
        temporary.unlink()
    key = _read_key(path)
    if key is None:
        raise PermissionError(f"{path} is not private to its user")
    return key


def _read_key(path: Path) -> bytes | None:
    """None if the file is another user's, readable for others, or no key."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:  # a link, or another user's
        return None
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        private = stat.S_ISREG(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o077
        content = file.read(KEY_BYTES + 1) if private else b""
    return content if len(content) == KEY_BYTES else None
