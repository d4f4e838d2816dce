"""What hostile cases are made of: payloads, bombs, and files that are none."""

import hashlib
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

DEEP = 100_000
"""Levels of lists within each other, which a recursive parser does not survive."""
HUGE = 10**18
ESCAPES = "\x1b[2J\x1b]0;owned\x07\nerror: all is well"
"""A name that clears the screen and looks like a second message."""
DEEP_JSON = b"[" * DEEP + b"]" * DEEP
NOT_UTF8 = b'{"step": "\xff\xfe"}\n'


class Payload:
    """Unpickled, it makes an empty file."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {self._canary}",)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def pickled_npy(canary: Path) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return stream.getvalue()


def write_zip(path: Path, members: Mapping[str, bytes], zeros: Mapping[str, int] | None = None) -> None:
    """`zeros`: by member, how many mebibytes of zeros follow its content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
                for _ in range((zeros or {}).get(name, 0)):
                    member.write(bytes(2**20))


def npy_header(shape: tuple[int, ...], dtype: str = "<f8") -> bytes:
    """An npy file that says it is so large, and holds nothing."""
    head = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    head += b" " * (-(len(head) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def png_bomb(side: int = 50_000) -> bytes:
    """A valid PNG of so many pixels a side, all of one colour, in few bytes: 2.5 GB of grey pixels once decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    deflate = zlib.compressobj(9)
    rows = b"".join(deflate.compress(bytes(side + 1)) for _ in range(min(side, 2000))) + deflate.flush()
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def safetensors_file(header: bytes, length: int | None = None, data: bytes = b"") -> bytes:
    """`length`: what the file says of its header; None: the truth."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


BROKEN_TENSORS: Mapping[str, bytes] = {
    "garbage": bytes(range(256)) * 4,
    "empty": b"",
    "header-of-2^60": safetensors_file(b"{}", 2**60),
    "header-no-utf8": safetensors_file(b"\xff\xfe"),
    "deep-header": safetensors_file(DEEP_JSON),
    "no-tensors": safetensors_file(b"{}"),
    "beyond-the-file": safetensors_file(b'{"a": {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}}'),
    "shape-of-2^62": safetensors_file(
        b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 0]}}'
    ),
}
BROKEN_JSON: Mapping[str, bytes] = {
    "empty": b"",
    "no-json": b"\x00\x01\x02",
    "not-utf8": NOT_UTF8,
    "deep": DEEP_JSON,
    "list": b"[]",
    "null": b"null",
    "number": b"1e999",
    "long-number": b'{"format": ' + b"9" * 5000 + b"}",
    "empty-mapping": b"{}",
    "twice-escaped": json.dumps({"format": ESCAPES, "step": ESCAPES}).encode(),
}


def make_fifo(path: Path) -> None:
    """In the place of whatever is there."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def link(path: Path, to: Path | str) -> None:
    """In the place of the file that is there."""
    path.unlink(missing_ok=True)
    path.symlink_to(to)


NO_FILES: Mapping[str, Callable[[Path], None]] = {
    "fifo": make_fifo,
    "link-to-dev-zero": lambda path: link(path, "/dev/zero"),
    "link-to-dev-stdin": lambda path: link(path, "/dev/stdin"),
    "folder": lambda path: (path.unlink(missing_ok=True), path.mkdir())[1],
    "dangling-link": lambda path: link(path, "nowhere"),
    "link-to-itself": lambda path: link(path, path.name),
}
"""What may lie where a file is expected."""


def change_json(path: Path, change: Callable[[Any], Any]) -> None:
    """`change` alters the value, or returns another."""
    value = json.loads(path.read_bytes())
    other = change(value)
    path.write_text(json.dumps(value if other is None else other))


def reseal(checkpoint: Path) -> None:
    """Makes the manifest agree with the files, as anybody can who writes checkpoints."""

    def agree(manifest: dict[str, Any]) -> None:
        for name in manifest["files"]:
            data = (checkpoint / name).read_bytes()
            manifest["files"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}

    change_json(checkpoint / "manifest.json", agree)


def write_tar(path: Path, members: Mapping[str, bytes | tarfile.TarInfo]) -> None:
    """A member may be given as its header alone: a link, a FIFO or a device."""
    with tarfile.open(path, "w") as archive:
        for name, member in members.items():
            if isinstance(member, bytes):
                info = tarfile.TarInfo(name)
                info.size = len(member)
                archive.addfile(info, io.BytesIO(member))
            else:
                member.name = name
                archive.addfile(member)


def special_member(kind: bytes, linkname: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo()
    info.type, info.linkname = kind, linkname
    return info


def scripted(path: Path, canary: Path) -> None:
    """A TorchScript network that also writes a file when it is called."""
    import torch

    class Writes(torch.nn.Module):
        def __init__(self, where: str) -> None:
            super().__init__()
            self.where = where

        def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            torch.save(torch.zeros(1), self.where)
            return images.float().flatten(1)[:, :16]

    torch.jit.script(Writes(str(canary))).save(path)
