"""Archives of pictures, read where they lie: a tar's members, or a zip's."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

from bigtrain.data.sources.pictures import STORED, Listing, Source, by_class
from bigtrain.data.sources.zip import zip_members
from bigtrain.data.tars import members
from bigtrain.errors import UserError

Tick = Callable[[int], object]
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)


def list_archive(path: Path, tick: Tick) -> Source:
    """The pictures SPLIT/CLASS/picture or CLASS/picture of a tar or a zip, with or without a folder around all.

    Raises UserError for what is neither or is damaged, and for links and for names that would leave a folder.
    """
    listing = Listing()
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            _list_zip(path, file, listing, tick)
        else:
            for name, offset, size in members(path, file, 0, path.stat().st_size):
                add_member(listing, name, 0, offset, size, tick)
    return by_class(path, listing, (path,), "parts", top=True)


def add_member(listing: Listing, name: str, file: int, offset: int, size: int, tick: Tick) -> None:
    """Takes in a tar's member; hidden ones are left out, as in a folder."""
    name = name.removeprefix("./")
    if not any(part.startswith(".") for part in name.split("/")):
        listing.add(name, (file, offset, size, STORED, STORED))
        tick(1)


def _list_zip(path: Path, file: IO[bytes], listing: Listing, tick: Tick) -> None:
    for member in zip_members(path, file):
        name = member.name
        if name.endswith("/"):
            continue
        if name.startswith("/") or ".." in name.split("/") or "\\" in name:
            raise UserError(f"{path}: member {name} would lie outside of its folder; write it with names below it")
        if member.link:
            raise UserError(f"{path}: member {name} is a link; write the zip with plain files")
        if member.encrypted or member.packing not in _PACKINGS:
            raise UserError(f"{path}: member {name} is encrypted or packed in a rare way; write the zip with deflate")
        if not any(part.startswith(".") for part in name.split("/")):
            listing.add(name, (0, member.offset, member.size, member.packed, member.checksum))
            tick(1)
