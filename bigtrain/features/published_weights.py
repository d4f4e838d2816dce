"""Where the weights of published feature networks come from: a path, the cache, or a download that is checked.

A feature network never keeps random weights: if they are missing, a UserError says where to get them.
"""

import fcntl
import hashlib
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bigtrain.errors import UserError
from bigtrain.progress import ProgressBar
from bigtrain.runs import atomic
from bigtrain.untrusted import looked_for, open_plain

TIMEOUT_S = 60.0
"""How long a download may stall."""
CHUNK = 2**20


@dataclass(frozen=True)
class Published:
    """A file that its authors publish at `url`, and the sha256 of its bytes."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def published_file(published: Published, given: str | None) -> Path:
    """The path `given` (evaluation.weights), or the file in the cache, downloaded first if it is not there.

    Several processes of a machine may call it: one downloads, the others wait. Raises UserError if there is no such file, it
    cannot be downloaded, or its sha256 is not the published one.
    """
    if given is not None:
        return existing(given)
    path = atomic.cache_folder() / "weights" / published.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path):
            if not path.exists():
                _download(published, path)
    except OSError as error:  # includes URLError and timeouts
        reason = getattr(error, "reason", None) or error.strerror or error
        raise UserError(
            f"evaluation.weights: {published.name} is not in {path.parent} and could not be fetched from {published.url} "
            f"({reason}); fetch it elsewhere, and give its path with evaluation.weights=PATH"
        ) from None
    return path


def existing(given: str) -> Path:
    """The path of a file that must exist. Raises UserError."""
    path = Path(given)
    if not path.exists():
        raise UserError(f"evaluation.weights: {given}: there is no such file{looked_for(given)}")
    try:
        open_plain(path).close()
    except (OSError, ValueError) as error:
        raise UserError(f"evaluation.weights: {given}: {getattr(error, 'strerror', None) or error}") from None
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Only one process of this machine at a time; the kernel releases the lock if the process is killed."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(published: Published, path: Path) -> None:
    """Downloads to a temporary file, checks it, and renames it to `path`. Raises OSError and UserError."""
    temporary, digest = atomic.aside(path), hashlib.sha256()
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT_S) as answer, open(temporary, "wb") as file:
            size = answer.headers.get("Content-Length")
            with ProgressBar(int(size) if size else None, path.name, "B", unit_scale=True) as bar:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != published.sha256:
            raise UserError(
                f"evaluation.weights: the file from {published.url} has the sha256 {digest.hexdigest()}, not "
                f"{published.sha256}; try again, or give the path of the right file with evaluation.weights=PATH"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
