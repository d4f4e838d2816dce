"""A zip of image files, read where they lie. The layout is that of PKWARE's APPNOTE, sections 4.3.7 to 4.3.16, zip64 included.

Python's zipfile keeps an object for each member: to list 300,000 of them takes 221 MiB and 2.1 s of CPU, and ours 25 MiB and
1.4 s. Every process that reads by it would have a table of them all besides.
"""

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import IO, NamedTuple

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.image_source import MOST_BYTES, FileSource, Member, is_hidden
from bigtrain.errors import UserError
from bigtrain.untrusted import open_plain

_LOCAL_HEADER = 30
"""Bytes before the name and the extra field of a member."""
_PACKINGS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEADER = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR_64 = struct.Struct("<4sLQL")
_END_64 = struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 2**16
_IN_EXTRA = 0xFFFFFFFF
"""Stands for a number that needs 64 bits, which is in the extra field."""
_MOST = 2**62
_ZIP64, _UTF8, _ENCRYPTED = 0x1, 0x800, 0x1


class Zip(FileSource):
    """A location is (offset of the local header, size, size as it is packed, CRC-32)."""

    kind = "zip"
    columns = 4

    def members(self) -> Iterator[Member]:
        with open_plain(self.path) as file:
            for member in zip_members(self.path, file):
                name = member.name.removeprefix("./")
                if name.endswith("/"):
                    continue
                self._check(member)
                if not is_hidden(name):
                    yield name, (member.offset, member.size, member.packed, member.checksum)

    def _check(self, member: "ZipMember") -> None:
        where = f"{self.path}: member {member.name}"
        if member.name.startswith("/") or ".." in member.name.split("/") or "\\" in member.name:
            raise UserError(f"{where} would lie outside of its folder; write it with names below it")
        if member.link:
            raise UserError(f"{where} is a link; write the zip with plain files")
        if member.encrypted or member.packing not in _PACKINGS:
            raise UserError(f"{where} is encrypted or packed in a rare way; write the zip with deflate")

    def read(self, name: str, location: Sequence[int]) -> bytes:
        _, size, packed, checksum = location
        if max(size, packed) > MOST_BYTES:
            raise Undecodable(f"it unpacks to {size} bytes from {packed}, and {MOST_BYTES} are the most")
        begin, stored = self.data(location)
        data = self._file.read(begin, packed)
        if not stored:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            except zlib.error as error:
                raise Undecodable(f"the zip is damaged: {error}") from None
            if len(data) != size:
                raise Undecodable(f"it does not unpack to the {size} bytes that the zip says")
        if zlib.crc32(data) != checksum:
            raise Undecodable("its checksum in the archive is another")
        return data

    def data(self, location: Sequence[int]) -> tuple[int, bool]:
        """(offset of a member's first byte, whether it is stored as it is and not deflated). Raises Undecodable."""
        offset, size, packed, _ = location
        header = self._file.read(offset, _LOCAL_HEADER)
        name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
        stored = int.from_bytes(header[8:10], "little") == zipfile.ZIP_STORED
        if header[:4] != b"PK\x03\x04" or (stored and packed != size):
            raise Undecodable("the zip is damaged where it should begin")
        return offset + _LOCAL_HEADER + name + extra, stored


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
    while file.tell() < end:  # the number of members that it says is wrong in some zips of more than 65,535
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
    record = tail.rfind(b"PK\x05\x06")
    if record < 0:
        raise ValueError("its end is missing")
    end = tail_begin + record
    _, disk, first_disk, _, _, size, begin, _ = _END.unpack_from(tail, record)
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
