"""Which kind of source lies at a path."""

import zipfile
from pathlib import Path

from bigtrain.data.sources.folder import Folder
from bigtrain.data.sources.image_source import ImageSource
from bigtrain.data.sources.tar import Tar
from bigtrain.data.sources.zip import Zip
from bigtrain.untrusted import open_plain


def open_source(path: Path) -> ImageSource:
    """A folder, a zip, or else a tar: what is neither is refused when it is listed. Raises OSError for what is no file."""
    if path.is_dir():
        return Folder(path)
    open_plain(path).close()  # zipfile would wait for a FIFO
    return Zip(path) if zipfile.is_zipfile(path) else Tar(path)
