"""Which kind of source lies at a path."""

import zipfile
from pathlib import Path

from bigtrain.data.containers import container, may_be_tar
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.data.sources.tar import Tar
from bigtrain.data.sources.zip import Zip
from bigtrain.errors import UserError

_ARCHIVES = (".tar", ".tgz", ".gz", ".bz2", ".xz", ".zst", ".zip")
"""Endings of what is a tar or a zip, or was one before it was damaged or compressed."""


def open_source(path: Path) -> ImageSource:
    """A folder, a zip, or else a tar: what is neither is refused when it is listed. Raises OSError for what is no file, and
    UserError for a kind of file that is known and not read."""
    if path.is_dir():
        return Folder(path)
    if kind := container(path):  # opens plain files alone: zipfile would wait for a FIFO
        raise UserError(
            f"{path}: is {kind}, which is not read here; write what it holds as files SOURCE/CLASS/*.png (without classes by "
            "--labels none), or as a tar or zip of them"
        )
    return Zip(path) if zipfile.is_zipfile(path) else Tar(path)


def open_pictures(path: Path) -> ImageSource:
    """`open_source` of what no kind of data set but a folder, a tar or a zip of pictures is left for. Raises UserError for what
    is none, rather than calling it a damaged tar."""
    source = open_source(path)
    if source.kind == "zip" and path.suffix == ".npz":
        raise UserError(
            f"{path}: is an npz of arrays, which is not read here; save the pixels by numpy.save as a .npy, uint8 [n, H, W, "
            "channels], or write them as files SOURCE/CLASS/*.png"
        )
    if source.kind == "tar" and path.suffix.lower() not in _ARCHIVES and not may_be_tar(path):
        raise UserError(
            f"{path}: is neither a tar nor a zip, and not read here; give a folder, tar or zip of files SOURCE/CLASS/*.png, or "
            "the folder of a data set as published"
        )
    return source
