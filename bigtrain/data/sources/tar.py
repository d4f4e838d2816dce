"""A tar of image files, read where they lie."""

from collections.abc import Iterator, Sequence

from bigtrain.data.sources.image_source import FileSource, Member, check_size, is_hidden
from bigtrain.data.tars import members
from bigtrain.untrusted import open_plain


class Tar(FileSource):
    """A location is (offset, size) in bytes."""

    kind = "tar"
    columns = 2

    def members(self) -> Iterator[Member]:
        return self.members_within(0, self.path.stat().st_size, str(self.path))

    def members_within(self, begin: int, end: int, shown: str) -> Iterator[Member]:
        """Those of a tar at the bytes begin .. end of this one; `shown`: what messages call it."""
        with open_plain(self.path) as file:
            for name, offset, size in members(shown, file, begin, end):
                if not is_hidden(name := name.removeprefix("./")):
                    yield name, (offset, size)

    def read(self, name: str, location: Sequence[int]) -> bytes:
        offset, size = location
        check_size(size)
        return self._file.read(offset, size)
