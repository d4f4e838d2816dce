"""Files that hold data in a way that is not read here, known by how they begin, so that a message can say what they are."""

from pathlib import Path

from bigtrain.untrusted import open_plain

_BEGINNINGS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"SQLite format 3": "an SQLite database",
}
_ARCHIVES = {b"PK\x03\x04": "a zip", b"\x1f\x8b": "a gzip file"}
_USTAR_AT = 257


def container(path: Path) -> str | None:
    """What a file is, such as `an HDF5 file`, if it is one of those that are never read; None for any other. Raises OSError."""
    return _known(_beginning(path), _BEGINNINGS)


def archive_or_container(path: Path) -> str | None:
    """The same, also for tars and zips; None also for what cannot be read."""
    try:
        begin = _beginning(path)
    except OSError:
        return None
    return "a tar" if begin[_USTAR_AT:].startswith(b"ustar") else _known(begin, _BEGINNINGS | _ARCHIVES)


def may_be_tar(path: Path) -> bool:
    """Whether a file begins as tars do that are no older than POSIX. Raises OSError."""
    return _beginning(path)[_USTAR_AT:].startswith(b"ustar")


def _beginning(path: Path) -> bytes:
    with open_plain(path) as file:
        return file.read(_USTAR_AT + 5)


def _known(begin: bytes, kinds: dict[bytes, str]) -> str | None:
    return next((kind for start, kind in kinds.items() if begin.startswith(start)), None)
