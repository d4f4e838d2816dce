"""A file at an http(s) or hf URL, of which only parts are fetched: the headers of a tar, say, and not what is between them."""

import contextlib
import io
import re
from bisect import bisect_right
from dataclasses import replace
from typing import IO, Any

from bigtrain.data.remote import (
    Interrupted,
    NoAnswer,
    Origin,
    Refused,
    address_of,
    answer,
    check_url,
    may_log_in,
    pieces_of,
    retried,
    steady,
)
from bigtrain.errors import UserError

LEAST_PART = 2**14
"""The fewest bytes that are asked for at once: a header, what is small behind it, and the next header."""
LARGEST_PART = 2**22
"""Parts grow to this where all of a file is read: fewer requests."""
_RETRIES_AT_FIRST = 1
"""Further attempts to get the first answer of all: somebody may have mistyped the address."""
_PART = re.compile(r"bytes (\d+)-(\d+)/(\d+)")


class NoParts(Exception):
    """The far side gives whole files only."""


class RemoteFile(io.RawIOBase):
    """Reads by `read` or by slices. kept: a file of this machine for the parts that were fetched; size: in bytes, None: as the
    far side says.

    Raises NoParts when it is opened, and UserError as `receive` does for what does not come, or changes meanwhile.
    """

    def __init__(self, url: str, origin: Origin, kept: IO[bytes], size: int | None = None) -> None:
        import requests

        check_url(url, origin)
        if url.lower().startswith("s3://"):
            raise NoParts
        self._url, self._origin, self._kept, self._size = url, origin, kept, size
        self._login = may_log_in(url, origin)
        self._session = requests.Session()  # so that all parts come over one connection
        self._redirected: str | None = None
        self._begins: list[int] = []
        self._ends: list[int] = []
        self._position = self._latest_end = 0
        self._part_size = LEAST_PART
        self._fetch(0, LEAST_PART)

    def close(self) -> None:
        self._session.close()
        super().close()

    def __len__(self) -> int:
        assert self._size is not None
        return self._size

    def __getitem__(self, part: slice) -> bytes:
        begin, end, _ = part.indices(len(self))
        return self._bytes(begin, max(begin, end))

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + (0, self._position, len(self))[whence]
        return self._position

    def read(self, size: int = -1) -> bytes:
        begin = min(self._position, len(self))
        data = self._bytes(begin, len(self) if size < 0 else min(begin + size, len(self)))
        self._position = begin + len(data)
        return data

    def _bytes(self, begin: int, end: int) -> bytes:
        while (absent := self._first_absent(begin)) < end:
            # Skipping less than what is asked for at least would cost a request and save next to nothing.
            is_near = 0 <= absent - self._latest_end < LEAST_PART
            self._part_size = min(2 * self._part_size, LARGEST_PART) if is_near else LEAST_PART
            self._fetch(absent, max(end - absent, self._part_size))
        self._kept.seek(begin)
        return self._kept.read(end - begin)

    def _first_absent(self, begin: int) -> int:
        """The first byte from `begin` on that was not fetched."""
        number = max(bisect_right(self._begins, begin) - 1, 0)
        while number < len(self._begins) and self._begins[number] <= begin < self._ends[number]:
            begin = self._ends[number]
            number += 1
        return begin

    def _fetch(self, begin: int, size: int) -> None:
        """Fetches at most `size` bytes from `begin` on, up to what there is already."""
        number = bisect_right(self._begins, begin)
        if number < len(self._begins):
            size = min(size, self._begins[number] - begin)
        data = retried(lambda: self._attempt(begin, size), self._url, self._origin, self._login, "a part of the file")
        self._kept.seek(begin)
        self._kept.write(data)
        self._latest_end = end = begin + len(data)
        if number and self._ends[number - 1] == begin:
            self._ends[number - 1] = end
        else:
            self._begins.insert(number, begin)
            self._ends.insert(number, end)

    def _attempt(self, begin: int, size: int) -> bytes:
        if self._redirected is not None:
            with contextlib.suppress(Refused):  # such addresses are signed, and their signature expires
                return self._asked(self._redirected, {"Accept-Encoding": "identity"}, False, begin, size)
            self._redirected = None
        return self._asked(*address_of(self._url, self._login), self._login, begin, size)

    def _asked(self, address: str, headers: dict[str, str], login: bool, begin: int, size: int) -> bytes:
        timeout_s = self._origin.options.timeout_s
        wanted = headers | {"Range": f"bytes={begin}-{begin + size - 1}"}
        with answer(address, wanted, login, timeout_s, self._session) as response:
            size = self._promised(response, begin, size)
            if response.history:
                self._redirected = response.url
            data = bytearray()
            for _, piece in steady(pieces_of(response, begin), timeout_s):
                data += piece
                if len(data) > size:
                    self._refuse("more than was asked for")
        if len(data) < size:
            raise Interrupted(f"{len(data)} bytes came of {size}")
        return bytes(data)

    def _promised(self, response: Any, begin: int, size: int) -> int:
        """The size of the part that comes. Raises NoParts, Interrupted and Refused for an answer that is not the part that was
        asked for."""
        if response.status_code == 416:
            raise Refused(f"it has no byte {begin} (HTTP 416)")
        match = _PART.match(response.headers.get("Content-Range", ""))
        if response.status_code != 206 or match is None:
            return self._refuse("no part (HTTP 200)")
        first, last, whole = map(int, match.groups())
        if self._size not in (None, whole):
            raise Refused(f"it has {whole} bytes, not {self._size} as before: it was replaced")
        if first != begin or last != min(begin + size, whole) - 1:
            return self._refuse(f"bytes {first} to {last}, which is not what was asked for")
        self._size = whole
        return last + 1 - first

    def _refuse(self, what: str) -> Any:
        """Raises NoParts at the first answer, and Interrupted afterwards: another machine of the far side may do better."""
        if not self._begins:
            raise NoParts
        raise Interrupted(f"the server gave {what}")


def gives_parts(url: str, origin: Origin) -> bool:
    """Whether parts of what is at the URL can be fetched; True for what does not come at all. Raises NoAnswer, after fewer
    attempts than `receive`, if the far side says nothing."""
    retries = min(origin.options.retries, _RETRIES_AT_FIRST)
    asked = replace(origin, options=origin.options.model_copy(update={"retries": retries}))
    try:
        with io.BytesIO() as kept, RemoteFile(url, asked, kept):
            return True
    except NoParts:
        return False
    except NoAnswer:
        raise
    except UserError:
        return True
