"""TorchScript networks: files that hold a program, which reads and writes with the rights of whoever loads it.

So one runs only if it was named on the command line (`named_on_command_line`), never because a recipe, a run or an export
names it. These hold its name and sha256, `torchscript:NAME@SHA256`, by which a later command line is checked.
"""

import hashlib
import io
import re
import sys
import warnings
import zipfile
from pathlib import Path
from typing import IO

import torch

from bigtrain.cluster import world
from bigtrain.errors import UserError
from bigtrain.untrusted import looked_for, one_line, read_plain
from bigtrain.wrong_values import did_you_mean

STORED = "torchscript:"
BYTES = 2**33
"""The largest TorchScript file that is read: 8 GiB."""
A_PROGRAM = "a TorchScript file is a program, which runs with your rights, so it is taken from the command line only"

_WORD = re.compile(rf"{STORED}(.*?)(?:@([0-9a-f]{{64}}))?", re.DOTALL)
_named: dict[str, Path] = {}
"""By their sha256, the files that were named on this process's command line."""
_announced: set[str] = set()


def named_on_command_line(path: str, key: str, *, instead: str) -> str:
    """Lets this process run the TorchScript file at `path`. Returns the word that recipes store of it.

    `key`: what named it, and `instead`: what else it may say, for messages. Raises UserError if there is no such file.
    """
    if not _exists(path):
        where = looked_for(path) if "/" in path else ""  # else rather a word that is misspelt
        meant = did_you_mean([path], instead.split(", "))
        raise UserError(f"{key}: {path}: neither a file{where} nor {instead}{meant}")
    digest = hashlib.sha256(_read(Path(path), key)).hexdigest()
    _named[digest] = Path(path)
    return f"{STORED}{Path(path).name}@{digest}"


def without_digest(path: str) -> str:
    """The word for a file that an earlier version stored by its path: no command line is known to mean the same file.

    `path`: or the word that is stored of a file."""
    return f"{STORED}{script_name(path)}"


def script_name(name: str) -> str:
    """The file's name, of a path or of the word that is stored."""
    found = _WORD.fullmatch(name)
    return Path(found[1] if found else name).name


def stored_digest(name: str) -> str | None:
    """The sha256 in a stored word; None if it has none, and for a path."""
    found = _WORD.fullmatch(name)
    return found[2] if found else None


def check_same(before: object, now: object, key: str) -> None:
    """Raises UserError if the words that were stored before and now are of files that share the name, but not their bytes:
    results would go by the same name."""
    if not (isinstance(before, str) and isinstance(now, str)):
        return
    old, new = stored_digest(before), stored_digest(now)
    if old and new and old != new and script_name(before) == script_name(now):
        raise UserError(
            f"{key}: {script_name(now)} has the sha256 {new}, where the run has a file of this name with {old}; give that "
            "file, or another name to this one"
        )


def read_script(name: str, key: str) -> bytes:
    """The bytes of the file of a path that code gives, or of a stored word. Raises UserError unless the command line has named
    the file of that word."""
    if not name.startswith(STORED):
        return _read(Path(name), key)
    digest = stored_digest(name)
    path = _named.get(digest) if digest else None
    if path is None:
        known = f" of sha256 {digest}" if digest else ""
        raise UserError(
            f"{key}: {script_name(name)}{known}: {A_PROGRAM}: give the path of the file with {key}=PATH, if you trust it"
        )
    data = _read(path, key)
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"{key}: {path}: was changed while this command ran; run it again")
    return data


def _exists(path: str) -> bool:
    try:
        return Path(path).exists()
    except OSError:  # a name that is too long
        return False


def _read(path: Path, key: str) -> bytes:
    try:
        return read_plain(path, BYTES)
    except (OSError, ValueError) as error:
        raise UserError(f"{key}: {path}: {getattr(error, 'strerror', None) or error}") from None


def name_if_script(path: str, key: str) -> None:
    """Lets this process run the file that the command line names, if it is a TorchScript file, which weights may be."""
    if _exists(path) and Path(path).is_file() and is_script_file(Path(path)):
        named_on_command_line(path, key, instead="weights")


def is_script_file(file: Path | IO[bytes]) -> bool:
    """Whether it is an archive that TorchScript wrote."""
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile, ValueError):
        return False


def is_named(data: bytes) -> bool:
    """Whether the command line has named a file of these bytes."""
    return hashlib.sha256(data).hexdigest() in _named


def run_script(name: str, data: bytes, device: torch.device) -> torch.jit.ScriptModule:
    """The network in the bytes of a TorchScript file, for whose program this says once on stderr that it runs.

    Raises RuntimeError or ValueError for other bytes.
    """
    with warnings.catch_warnings():
        # Deprecated in favour of torch.export, but the public Inception exists in this form only.
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        _announce(name)
        return torch.jit.load(io.BytesIO(data), map_location=device).eval()


def _announce(name: str) -> None:
    if world.is_main() and name not in _announced:
        _announced.add(name)
        print(
            f"note: {one_line(name)} is a TorchScript file, that is a program: it runs now, with your rights",
            file=sys.stderr,
            flush=True,
        )
