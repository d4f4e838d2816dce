"""Files of weights that somebody else has written, opened so that they can do no harm: safetensors, and what torch.save writes,
by torch.load(weights_only=True) alone, which builds tensors and runs nothing.

Before anything is read, a file's size is compared with the machine's memory, and what a zip says that it holds with the size of
the file: torch.save compresses nothing, so a zip that holds more than itself is a bomb.
"""

import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bigtrain.errors import UserError
from bigtrain.untrusted import looked_for, open_plain, parse_json, read_plain

MOST_ENTRIES = 100_000
"""Entries of a zip, one for each tensor and a few more."""
MOST_PICKLE = 2**26
"""Bytes of the pickle in a zip, which has names and shapes alone: 64 MiB."""
MOST_HEADER = 10**8
"""Bytes of the header of a safetensors file: the library's own bound."""
ZIP, PICKLE, OLD = b"PK\x03\x04", b"\x80", bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")
"""How zips and pickles begin, and what torch.save wrote before there were zips: a pickle of a number of its own."""
NESTED = ("state_dict", "model_state_dict", "model", "params")
"""The keys under which trainings keep a network's tensors in a larger checkpoint, by the name of the weights."""
NESTED_AVERAGES = ("ema_state_dict", "model_ema", "ema_model", "g_ema", "ema")
WRAPPED = "module."
"""What torch's parallel wrappers put before every name."""


def read_weights(path: Path, averaged: bool = True) -> tuple[dict[str, Tensor], Mapping[str, Any], bool]:
    """(tensors by name on the CPU, the numbers and texts beside them, whether they are averages that lay within the file).

    `averaged`: which of two state dicts in one file is taken. Raises UserError for a file that is no checkpoint, that is
    damaged, or that holds other things than tensors, or more of them than memory does.
    """
    try:
        with open_plain(path) as file:
            begins = file.read(16)
            size = file.seek(0, 2)
    except OSError as error:
        where = looked_for(path) if isinstance(error, FileNotFoundError) else ""
        raise UserError(f"{path}: cannot be read ({error.strerror}){where}") from None
    if size > psutil.virtual_memory().total:
        raise UserError(f"{path}: has {size / 2**30:,.1f} GiB, which is more than the memory of this machine")
    if begins.startswith(ZIP):
        _check_zip(path, size)
        return _state_dict(path, _load(path), averaged)
    if begins.startswith(OLD):
        return _state_dict(path, _load(path), averaged)
    if _is_safetensors(begins, size):  # whose length, which comes first, may begin as a pickle does
        return _plain(path, _safetensors(path)), {}, False
    if begins.startswith(PICKLE):
        raise UserError(f"{path}: is a pickle, but not of torch.save: such a file can run code, and is not opened")
    raise UserError(
        f"{path}: is no checkpoint: it is neither what torch.save writes nor safetensors"
        + (
            "; git has left its address in the place of the file: fetch it with `git lfs pull`"
            if begins.startswith(b"version ")
            else ""
        )
    )


def _check_zip(path: Path, size: int) -> None:
    """Raises UserError for a zip that torch.save has not written: one that is compressed, or whose entries hold more bytes than
    the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(
            f"{path}: is damaged, or only the beginning of a checkpoint ({error}); fetch it again"
        ) from None
    if sum(entry.filename.endswith(".pkl") for entry in entries) > 1:
        raise UserError(f"{path}: is no checkpoint but a TorchScript program; give a file that holds a state dict")
    held = sum(entry.file_size for entry in entries)
    if (
        len(entries) > MOST_ENTRIES
        or held > size
        or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    ):
        raise UserError(
            f"{path}: is a zip of {len(entries)} entries that hold {held:,} bytes in a file of {size:,}: torch.save writes no "
            "such file, and it is not opened"
        )
    pickles = [entry.file_size for entry in entries if entry.filename.endswith(".pkl")]
    if not pickles or pickles[0] > MOST_PICKLE:
        raise UserError(f"{path}: is a zip, but not of torch.save; give a file that holds a state dict")


def _load(path: Path) -> Any:
    try:
        with open_plain(path) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error) or "Weights only" in str(error):
            raise UserError(
                f"{path}: holds Python objects beside tensors, which could run code, and is not opened; where you trust it, "
                "load it yourself and save its state_dict() alone"
            ) from None
        raise UserError(f"{path}: is damaged, or no checkpoint; fetch it again") from None
    except MemoryError:
        raise UserError(f"{path}: needs more memory than there is") from None
    except (
        Exception
    ) as error:  # torch raises anything for a damaged file: RuntimeError, EOFError, KeyError, IndexError ...
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"{path}: is damaged, or only the beginning of a checkpoint ({reason}); fetch it again"
        ) from None


def _state_dict(path: Path, content: Any, averaged: bool) -> tuple[dict[str, Tensor], Mapping[str, Any], bool]:
    """The state dict in what a file holds, and the numbers and texts beside it."""
    if not isinstance(content, Mapping):
        raise UserError(f"{path}: holds a {type(content).__name__}; a checkpoint is a mapping of names to tensors")
    order = (*NESTED_AVERAGES, *NESTED) if averaged else (*NESTED, *NESTED_AVERAGES)
    for key in order:
        if isinstance(content.get(key), Mapping):
            beside = {str(name): value for name, value in content.items() if isinstance(value, int | float | str)}
            return _plain(path, content[key]), beside, key in NESTED_AVERAGES
    return _plain(path, content), {}, False


def _plain(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Raises UserError unless the content is plain tensors by name, each with a storage of its own size."""
    tensors = {}
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(
                f"{path}: {str(name)[:80]!r} is a {type(value).__name__}, where a state dict has tensors alone"
            )
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise UserError(f"{path}: {name} is not a plain tensor")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise UserError(f"{path}: {name} has {value.numel():,} elements, and the file does not hold so many")
        tensors[name.removeprefix(WRAPPED)] = value.detach()
    if not tensors:
        raise UserError(f"{path}: holds no tensors")
    bad = next((name for name, value in tensors.items() if not _finite(value)), None)
    if bad is not None:
        raise UserError(
            f"{path}: {bad} has values that are not finite: this training had diverged; take an earlier checkpoint"
        )
    return tensors


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _is_safetensors(begins: bytes, size: int) -> bool:
    if len(begins) < 9 or begins[8:9] != b"{":
        return False
    (header,) = struct.unpack("<Q", begins[:8])
    return bool(header <= min(size - 8, MOST_HEADER))


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: is damaged, or only the beginning of a checkpoint ({error}); fetch it again"
        ) from None


def read_json_beside(path: Path) -> Any:
    """A JSON file of a folder of others. Raises UserError."""
    try:
        return parse_json(read_plain(path, 2**24))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: is no JSON that can be read ({error})") from None
