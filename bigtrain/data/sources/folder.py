"""A folder of image files, at any depth."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from bigtrain.data.decode import Undecodable
from bigtrain.data.sources.image_source import ImageSource, Member, check_size, is_hidden
from bigtrain.errors import UserError


class Folder(ImageSource):
    """A member's location is its name. Links to folders are followed."""

    kind = "folder"
    columns = 0

    def members(self) -> Iterator[Member]:
        """The files of each folder, sorted, before those of its folders."""
        for name in self._names(""):
            yield name, ()

    def _names(self, prefix: str) -> Iterator[str]:
        folder = self.path / prefix
        try:
            with os.scandir(folder) as entries:
                found = sorted((entry.is_dir(), entry.name) for entry in entries if not is_hidden(entry.name))
        except OSError as error:
            raise UserError(f"{folder}: the folder cannot be read: {error.strerror}") from None
        for is_folder, name in found:
            if is_folder:
                _refuse_a_circle(folder / name)
                yield from self._names(f"{prefix}{name}/")
            else:
                yield prefix + name

    def read(self, name: str, location: Sequence[int]) -> bytes:
        path = self.path / name
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):  # a pipe or a device has no end, or no beginning
            raise Undecodable("it is not a plain file")
        check_size(facts.st_size)
        return path.read_bytes()

    def shown(self, name: str) -> str:
        return str(self.path / name)

    def fingerprint(self, names: Iterable[str]) -> str:
        """A hash of its files' names, sizes and times of change; names: those of `members`, in their order."""
        digest = hashlib.sha256(str(self.path.resolve()).encode(errors="surrogateescape"))
        for name in names:
            facts = os.stat(os.path.join(self.path, name))  # a Path for each would take longer than the stat
            digest.update(f"\n{name} {facts.st_size} {facts.st_mtime_ns}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def close(self) -> None:
        """Nothing stays open."""


def _refuse_a_circle(folder: Path) -> None:
    """Raises UserError if the folder is a link to one that it lies in: there would be no end of it."""
    if folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{folder}: this link leads back to a folder that it lies in; take it away")
