"""CelebA's list of attributes: the number of pictures, the names of the attributes, and a line a picture: its name and -1 or 1
for each."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from bigtrain.data.sources.image_source import FileSource, Member
from bigtrain.data.sources.tables.csv_file import numbers_as_npy
from bigtrain.errors import UserError
from bigtrain.untrusted import open_plain


class AttributeList(FileSource):
    """A member's name is its picture's; its location (offset, size) in bytes. Read as an npy of numbers."""

    kind = "attributes"
    columns = 2

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with open_plain(path) as file:
            count, names = file.readline(), file.readline()
        self.names = tuple(names.decode(errors="replace").split())
        if not count.strip().isdigit() or not self.names:
            raise UserError(
                f"{path}: no list of attributes: its first line is the number of pictures, and its second line names the "
                "attributes, as in CelebA's list_attr_celeba.txt"
            )

    def members(self) -> Iterator[Member]:
        begin = 0
        with open_plain(self.path) as file:
            for number, line in enumerate(file):
                words = line.split(maxsplit=1)
                if number >= 2 and words:
                    yield words[0].decode(errors="surrogateescape"), (begin, len(line))
                begin += len(line)

    def read(self, name: str, location: Sequence[int]) -> bytes:
        offset, size = location
        return numbers_as_npy(self._file.read(offset, size).decode(errors="surrogateescape").split()[1:])
