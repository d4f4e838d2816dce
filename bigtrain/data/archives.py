"""Archives of pictures, read where they lie: a tar's members, or a zip's."""

import stat
import zipfile
from collections.abc import Callable
from pathlib import Path

from bigtrain.data.sources import STORED, Listing, Source, by_class
from bigtrain.data.tars import members
from bigtrain.errors import UserMistake

Tick = Callable[[int], object]
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


def list_archive(path: Path, tick: Tick) -> Source:
    """The pictures SPLIT/CLASS/picture or CLASS/picture of a tar or a zip, with or without a folder around all.

    Raises UserMistake for what is neither or is damaged, and for links and for names that would leave a folder.
    """
    listing = Listing()
    if zipfile.is_zipfile(path):
        _list_zip(path, listing, tick)
    else:
        try:
            with path.open("rb") as file:
                for name, offset, size in members(path, file, 0, path.stat().st_size):
                    add_member(listing, name, 0, offset, size, tick)
        except OSError as error:
            raise UserMistake(f"{path}: cannot be read: {error.strerror}") from None
    return by_class(path, listing, (path,), "parts", top=True)


def add_member(listing: Listing, name: str, file: int, offset: int, size: int, tick: Tick) -> None:
    """Takes in a tar's member; hidden ones are left out, as in a folder."""
    name = name.removeprefix("./")
    if not any(part.startswith(".") for part in name.split("/")):
        listing.add(name, (file, offset, size, STORED, STORED))
        tick(1)


def _list_zip(path: Path, listing: Listing, tick: Tick) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (zipfile.BadZipFile, OSError, NotImplementedError) as error:
        raise UserMistake(f"{path}: the zip is damaged ({error}); copy it here again") from None
    for member in found:
        name = member.filename
        if member.is_dir():
            continue
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise UserMistake(f"{path}: member {name} would lie outside of its folder; write it with names below it")
        if stat.S_ISLNK(member.external_attr >> 16):
            raise UserMistake(f"{path}: member {name} is a link; write the zip with plain files")
        if member.flag_bits & _ENCRYPTED or member.compress_type not in _PACKINGS:
            raise UserMistake(f"{path}: member {name} is encrypted or packed in a rare way; write the zip with deflate")
        if not any(part.startswith(".") for part in name.split("/")):
            listing.add(name, (0, member.header_offset, member.file_size, member.compress_size, member.CRC))
            tick(1)
