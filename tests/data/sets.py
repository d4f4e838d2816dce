"""Making sets of pictures as they are handed out, and reading them back."""

import io
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from bigtrain.data.sources.layouts.known import list_source
from bigtrain.data.sources.samples import SampleSet
from bigtrain.data.write.shards import ShardOptions, write_shards

OLD_FOLDERS = Path(__file__).parents[1] / "fixtures" / "a3de763"
"""Shards, runs and exports that an old commit made: tests/fixtures/make.py."""


def listed(where: Path, layout: str | None = None) -> SampleSet:
    return list_source(where, layout, quiet=True)


def read(source: SampleSet) -> dict[str, list[tuple[str, int, bytes]]]:
    """(name, label, file's bytes) of every picture, by split."""
    found = {}
    for split, pictures in source.splits.items():
        found[split] = [(name, label, pictures.members.read(n)) for n, (name, label) in enumerate(pictures)]
        pictures.members.close()
    return found


def tarred(members: Sequence[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    return file.getvalue()


def zip_of(path: Path, members: Sequence[tuple[str, bytes]], packing: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def link(header: tarfile.TarInfo) -> None:
    header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"


def hard_link(header: tarfile.TarInfo) -> None:
    header.type, header.linkname = tarfile.LNKTYPE, "/etc/passwd"


def device(header: tarfile.TarInfo) -> None:
    header.type, header.devmajor, header.devminor = tarfile.CHRTYPE, 1, 5


def shard(where: Path, out: Path, layout: str | None = None) -> list[Path]:
    options = ShardOptions(size=None, format="png", samples_per_shard=100)
    return write_shards(listed(where, layout), out, options, workers=1, quiet=True)
