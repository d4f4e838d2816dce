"""Models on the Hugging Face Hub: exports are pushed there, and opened from there as hf://OWNER/NAME[@REVISION].

Of a repository only the files of an export are fetched, into the Hub's own cache, and none of them is run by bigtrain's
commands. Its token goes to the Hub (HF_ENDPOINT) alone.
"""

import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from bigtrain import progress
from bigtrain.errors import UserError
from bigtrain.untrusted import one_line

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_MODEL = re.compile(r"hf://(?!datasets/|spaces/)(?P<repository>[^/@]+/[^/@]+)(?:@(?P<revision>[^@]+))?")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_LONGEST = 96
FETCHED = (
    "model_index.json", "pipeline.py", "recipe.yaml", "provenance.json", "manifest.json",
    "*/*.json", "*/*.safetensors", "*/*.py",
)  # fmt: skip
"""The files of an export."""


class HubModel(NamedTuple):
    """`revision`: a branch, a tag or a commit; None: the newest of the main branch."""

    repository: str
    revision: str | None


class File(NamedTuple):
    """A file of an export; `size` in bytes."""

    name: str
    size: int


def check_repository(name: str) -> str:
    """`name`, if a repository on the Hub can have it. Raises UserError."""
    if not _REPOSITORY.fullmatch(name) or len(name) > _LONGEST or "--" in name or ".." in name:
        raise UserError(
            f"--push: {name!r} is no name of a model on the Hub; it is OWNER/NAME, of letters, digits, '-', '_' and '.', which "
            f"neither begins nor ends with one of these, at most {_LONGEST} characters"
        )
    return name


def is_hub_model(word: str) -> bool:
    """Whether a word of the command line, or a path of a recipe, means a model on the Hub."""
    return _MODEL.fullmatch(word) is not None


def hub_model(word: str) -> HubModel:
    """Raises UserError for what is not of the form hf://OWNER/NAME[@REVISION]."""
    match = _MODEL.fullmatch(word)
    revision = match["revision"] if match is not None else None
    if match is None or not _REPOSITORY.fullmatch(match["repository"]) or not _is_revision(revision):
        raise UserError(f"{word}: not a model on the Hub; it is hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return HubModel(match["repository"], revision)


def _is_revision(revision: str | None) -> bool:
    return revision is None or (_REVISION.fullmatch(revision) is not None and ".." not in revision)


def local(word: str) -> str:
    """`word`, or where the Hub's cache has the model that it means, which is fetched if need be. Raises UserError."""
    if not word.startswith("hf://"):
        return word
    from huggingface_hub import snapshot_download

    model = hub_model(word)
    with _in_one_sentence(word):
        return snapshot_download(model.repository, revision=model.revision, allow_patterns=list(FETCHED))


def files_of(folder: Path) -> list[File]:
    """What is pushed of an export, by name."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [File(str(path.relative_to(folder)), path.stat().st_size) for path in paths]


def check_can_push(repository: str, *, public: bool) -> None:
    """Raises UserError, before a model is exported, if nobody is logged in, or if the repository is public and is not to be."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import RepositoryNotFoundError

    if get_token() is None:
        raise UserError(f"--push: {repository}: there is no token for the Hub; run `hf auth login`, or set HF_TOKEN")
    with _in_one_sentence(f"--push: {repository}"):
        try:
            there = HfApi().repo_info(repository, repo_type="model")
        except RepositoryNotFoundError:
            return
    if not there.private and not public:
        raise UserError(
            f"--push: {repository}: is public on the Hub, and without --public nothing is shown to all; give --public, or "
            "another name"
        )


def push(folder: Path, repository: str, *, public: bool, message: str) -> str:
    """Uploads an export; returns its address. `public`: for all to see, where the repository is made now. Raises UserError."""
    from huggingface_hub import HfApi

    api = HfApi()
    with _in_one_sentence(f"--push: {repository}"):
        address = api.create_repo(repository, repo_type="model", private=not public, exist_ok=True)
        files = files_of(folder)
        size = sum(file.size for file in files) / 1e6
        with _said_each_minute(f"uploads {len(files)} files, {size:,.1f} MB, to {repository}"):
            api.upload_folder(
                repo_id=repository,
                folder_path=folder,
                repo_type="model",
                commit_message=message,
                allow_patterns=[file.name for file in files],
            )
    return str(address)


@contextmanager
def _said_each_minute(what: str) -> Iterator[None]:
    """Says in a log that the work within goes on, in the place of the bars that the Hub's library draws on a terminal. How much
    has gone is known to that library alone."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    if sys.stderr.isatty():
        yield
        return
    done, begin = threading.Event(), time.monotonic()

    def say() -> None:
        while not done.wait(progress.LINE_S):
            print(f"{what}: {(time.monotonic() - begin) / 60:.0f} min so far", file=sys.stderr, flush=True)

    draws_bars = not are_progress_bars_disabled()
    disable_progress_bars()
    threading.Thread(target=say, name="upload", daemon=True).start()
    try:
        yield
    finally:
        done.set()
        if draws_bars:
            enable_progress_bars()


@contextmanager
def _in_one_sentence(what: str) -> Iterator[None]:
    """Raises UserError instead of what the Hub's library raises."""
    from huggingface_hub import errors

    remedies: dict[type[Exception], str] = {
        errors.GatedRepoError: "is gated; ask for access on its page, and log in with `hf auth login`",
        errors.RepositoryNotFoundError: "is not on the Hub, or it is private and you are not logged in (`hf auth login`)",
        errors.RevisionNotFoundError: "has no such revision; give a branch, a tag or a commit after @",
        errors.LocalEntryNotFoundError: "cannot be fetched, as the Hub is not reached, and it is not in the cache",
    }
    of_http: tuple[Any, ...] = errors.HfHubHTTPError.__bases__  # of whichever library the Hub's stands on
    try:
        yield
    except UserError:
        raise
    except (*of_http, OSError, ValueError) as error:
        known = next((text for kind, text in remedies.items() if isinstance(error, kind)), None)
        first_line = one_line(str(error).strip().partition("\n")[0])[:200]
        raise UserError(
            f"{what}: {known or f'the Hub could not be used ({type(error).__name__}: {first_line})'}"
        ) from None
