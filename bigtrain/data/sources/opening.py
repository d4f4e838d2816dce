"""Which kind of source lies at a path."""

import zipfile
from pathlib import Path

from bigtrain.data.containers import container
from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.data.sources.tar import Tar
from bigtrain.data.sources.zip import Zip
from bigtrain.errors import UserError


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
