"""The members of a zip, found in its central directory one by one.

Python's zipfile keeps an object for each: half a kilobyte for every one of a million pictures. Nothing is unpacked here; the
layout is that of PKWARE's APPNOTE, sections 4.3.12 to 4.3.16, zip64 included.
"""

import os
import stat
import struct
from collections.abc import Iterator
from typing import IO, NamedTuple

from bigtrain.errors import UserError

_HEADER = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 2**16
_IN_EXTRA = 0xFFFFFFFF
"""In the place of a number that needs 64 bits, which then stands in the extra field."""
_MOST = 2**62
_ZIP64, _UTF8, _ENCRYPTED = 0x1, 0x800, 0x1


class ZipMember(NamedTuple):
    """offset: of the local header; size, packed: bytes, plain and as they are stored; packing: compression method."""

    name: str
    offset: int
    size: int
    packed: int
    checksum: int
    packing: int
    encrypted: bool
    link: bool


def zip_members(path: object, file: IO[bytes]) -> Iterator[ZipMember]:
    """Every member, folders included. Raises UserError, which names `path`, for a damaged zip."""
    try:
        yield from _members(file)
    except (ValueError, struct.error) as error:
        raise UserError(f"{path}: the zip is damaged ({error}); copy it here again") from None


def _members(file: IO[bytes]) -> Iterator[ZipMember]:
    """Raises ValueError or struct.error for what is no zip."""
    begin, end, before = _directory(file)
    file.seek(begin)
    while (
        file.tell() < end
    ):  # by its length: the number of members that it says is wrong in some zips of more than 65,535
        fields = _HEADER.unpack(file.read(_HEADER.size))
        signature, _, _, flags, packing, _, _, checksum, packed, size, *lengths, _, _, attributes, offset = fields
        if signature != b"PK\x01\x02":
            raise ValueError("its directory holds what is no member")
        name, extra, comment = (file.read(length) for length in lengths)
        if len(comment) < lengths[2] or file.tell() > end:
            raise ValueError("its directory ends within a member")
        size, packed, offset = _in_64_bits(extra, size, packed, offset)
        if max(size, packed, offset) > _MOST:
            raise ValueError("a member of it is larger than any file")
        text = name.decode("utf-8" if flags & _UTF8 else "cp437")
        link = stat.S_ISLNK(attributes >> 16)
        yield ZipMember(text, before + offset, size, packed, checksum, packing, bool(flags & _ENCRYPTED), link)


def _directory(file: IO[bytes]) -> tuple[int, int, int]:
    """(where the directory begins, where it ends, the bytes before the zip: of a program that unpacks it, say)."""
    length = file.seek(0, os.SEEK_END)
    tail_begin = file.seek(max(0, length - _END.size - _LONGEST_COMMENT))
    tail = file.read()
    place = tail.rfind(b"PK\x05\x06")
    if place < 0:
        raise ValueError("its end is missing")
    end = tail_begin + place
    _, disk, first_disk, _, _, size, begin, _ = _END.unpack_from(tail, place)
    locator = end - _LOCATOR_64.size
    if locator >= _END_64.size:
        file.seek(locator - _END_64.size)
        far, near = file.read(_END_64.size), file.read(_LOCATOR_64.size)
        if near.startswith(b"PK\x06\x07") and far.startswith(b"PK\x06\x06"):
            _, _, _, _, disk, first_disk, _, _, size, begin = _END_64.unpack(far)
            end = locator - _END_64.size
    if disk or first_disk:
        raise ValueError("it is one of several volumes")
    before = end - size - begin
    if before < 0:
        raise ValueError("its directory lies before its beginning")
    return before + begin, end, before


def _in_64_bits(extra: bytes, *numbers: int) -> list[int]:
    """The numbers, those that are too large for 32 bits from the extra field."""
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<2H", extra)
        if kind == _ZIP64:
            large = sum(number == _IN_EXTRA for number in numbers)
            found = iter(struct.unpack_from(f"<{large}Q", extra[: 4 + length], 4))
            return [next(found) if number == _IN_EXTRA else number for number in numbers]
        extra = extra[4 + length :]
    return list(numbers)
