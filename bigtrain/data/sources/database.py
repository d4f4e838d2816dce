"""An LMDB database whose values are image files, as LSUN is handed out."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.image_source import ImageSource, Member, check_size
from bigtrain.errors import UserError
from bigtrain.untrusted import open_plain


class Database(ImageSource):
    """A member's name is its key in hexadecimal digits, after any folders; that is its location too. Opened read only."""

    kind = "lmdb"
    columns = 0

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._environment: Any = None

    def __reduce__(self) -> tuple[type["Database"], tuple[Path]]:
        return Database, (self.path,)

    def members(self) -> Iterator[Member]:
        with contextlib.closing(self._open()) as environment, environment.begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                yield bytes(key).hex(), ()

    def read(self, name: str, location: Sequence[int]) -> bytes:
        if self._environment is None:
            self._environment = self._open()
        with self._environment.begin(buffers=True) as transaction:
            value = transaction.get(bytes.fromhex(name.rpartition("/")[2]))
            if value is None:
                raise Undecodable("the database has it no more")
            check_size(len(value))
            return bytes(value)

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def _open(self) -> Any:
        """Raises UserError without the package, or if it is no database."""
        try:
            import lmdb
        except ImportError:
            raise UserError(
                f"{self.path}: LMDB needs the package lmdb: pip install lmdb; or unpack it to a folder CLASS/*.webp"
            ) from None
        file = self.path / "data.mdb" if self.path.is_dir() else self.path
        try:
            open_plain(file).close()
            environment = lmdb.open(
                str(self.path), readonly=True, lock=False, readahead=False, subdir=self.path.is_dir()
            )
        except lmdb.Error as error:
            raise UserError(f"{self.path}: not an LMDB database: {error}") from None
        # It is mapped into memory: to read a page that the file lacks would end the process by a signal.
        pages = environment.info()["last_pgno"] + 1
        wanted, size = pages * environment.stat()["psize"], file.stat().st_size
        if size < wanted:
            environment.close()
            raise UserError(
                f"{file}: has {size} bytes of the {wanted} that its database takes: truncated; copy it here again"
            )
        return environment
