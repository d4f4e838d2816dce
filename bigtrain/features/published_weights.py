"""Where the weights of published feature networks come from: a path, the cache, or a download that is checked.

Nothing is ever left random: without its weights a feature network is a user's mistake that says where to get them.
"""

import fcntl
import hashlib
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from bigtrain.errors import UserError
from bigtrain.runs import atomic

TIMEOUT_S = 60.0
"""How long a download may give no byte."""
CHUNK = 2**20


@dataclass(frozen=True)
class Published:
    """A file that its authors publish at `url`; `sha256` of its bytes."""

    url: str
    sha256: str

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[1]


def published_file(published: Published, given: str | None) -> Path:
    """The path `given` (evaluation.weights), or the file in the cache, fetched first where it is not there.

    Of the processes of a machine one fetches and the others wait; any number may call this. Raises UserError where
    there is no such file, it cannot be fetched, or what came is not what was published.
    """
    if given is not None:
        return existing(given)
    path = atomic.cache_folder() / "weights" / published.name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(path):
            if not path.exists():
                _download(published, path)
    except OSError as error:  # URLError and timeouts are among them
        reason = getattr(error, "reason", None) or error.strerror or error
        raise UserError(
            f"evaluation.weights: {published.name} is not in {path.parent} and could not be fetched from {published.url} "
            f"({reason}); fetch it elsewhere, and give its path with evaluation.weights=PATH"
        ) from None
    return path


def existing(given: str) -> Path:
    """The path, if there is a file. Raises UserError."""
    path = Path(given)
    if not path.is_file():
        raise UserError(f"evaluation.weights: {given}: there is no such file")
    return path


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process of this machine at a time; the kernel drops the lock of one that is killed."""
    with open(path.with_name(f".{path.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(published: Published, path: Path) -> None:
    """Written aside, checked, renamed. Raises OSError and UserError."""
    temporary, digest = atomic.aside(path), hashlib.sha256()
    try:
        with urllib.request.urlopen(published.url, timeout=TIMEOUT_S) as answer, open(temporary, "wb") as file:
            size = answer.headers.get("Content-Length")
            with tqdm(total=int(size) if size else None, desc=path.name, unit="B", unit_scale=True) as bar:
                while chunk := answer.read(CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
        if digest.hexdigest() != published.sha256:
            raise UserError(
                f"evaluation.weights: what {published.url} gave has the sha256 {digest.hexdigest()}, not {published.sha256}; "
                "try again, or give the path of the right file with evaluation.weights=PATH"
            )
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
