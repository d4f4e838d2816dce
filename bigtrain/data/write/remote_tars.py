"""Which tars a URL names: one, those of a pattern with braces, those of a list, or those of a data set on the Hub.

https://host/train-{00000..00146}.tar        also {a,b}, and hf:// and s3://
https://host/shards.txt, or shards.txt here  a URL a line, or names beside the list
hf://datasets/OWNER/NAME[@REVISION][/FOLDER] every .tar in it, also hf://OWNER/NAME
"""

import io
import itertools
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from tqdm import tqdm

from bigtrain.data.remote import Origin, beside, check_url, is_remote, place_of, receive, shown, waiting
from bigtrain.data.remote_file import gives_parts
from bigtrain.data.sources.layouts.by_class import SPLITS
from bigtrain.data.write.tar_inputs import RemoteTar
from bigtrain.errors import UserError
from bigtrain.untrusted import read_plain

MOST_TARS = 1_000_000
_LIST_BYTES = 2**26
_TIMEOUT_S = 30.0
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_HUB = re.compile(r"hf://(?:datasets/)?(?!datasets/)(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?(/(?P<folder>.*))?")
_KEY = "--index-only"
_NUMBER_IN_SPLIT = re.compile(rf"/({'|'.join(sorted(SPLITS))})/\d+\.tar$")


@dataclass(frozen=True)
class RemoteSource:
    """What a user named instead of a folder of tars."""

    text: str

    def __str__(self) -> str:
        return shown(self.text)

    @classmethod
    def parse(cls, text: str) -> "RemoteSource | None":
        """None for a folder, or what looks like one."""
        is_list = text.lower().endswith(".txt") and Path(text).is_file()
        return cls(text) if is_remote(text) or is_list else None

    def tars(self) -> list[RemoteTar]:
        """Raises UserError for an address that is none, or names none."""
        if is_remote(self.text) and "@" in urlsplit(self.text).netloc and not self.text.startswith("hf://"):
            raise UserError(
                f"{self}: give the login in ~/.netrc: an index holds its shards' URLs, with all that is in them"
            )
        if self.text.startswith("hf://") and not self.text.endswith((".tar", ".txt")):
            return _on_the_hub(self.text)
        is_tar = urlsplit(self.text).path.endswith(".tar")
        urls = expanded(self.text) if is_tar else _listed(self.text)
        # A login goes to the place that the user named; what a list names elsewhere gets none.
        origin = Origin(url=urls[0] if is_tar else self.text if is_remote(self.text) else None, key=_KEY)
        for url in urls:
            check_url(url, origin)
        return _asked_for_parts(named([RemoteTar(url, origin) for url in urls]))


def _asked_for_parts(tars: Sequence[RemoteTar]) -> list[RemoteTar]:
    """The same, with `gives_parts` as the first tar of each place says; it is said where all is fetched."""
    places: dict[str, bool] = {}
    for tar in tars:
        place = place_of(tar.url)
        if place not in places:
            places[place] = gives_parts(tar.url, tar.origin)
            if not places[place]:
                count = sum(place_of(other.url) == place for other in tars)
                tqdm.write(
                    f"{place}: gives no parts of files: {count} tars are fetched whole, once, and not kept",
                    file=sys.stderr,
                )
    return [replace(tar, gives_parts=places[place_of(tar.url)]) for tar in tars]


def expanded(text: str) -> list[str]:
    """A pattern with braces as a shell expands it: {000..003} counts with leading zeros, {a,b} are alternatives. Raises
    UserError."""
    pieces = _BRACES.split(text)
    choices = [_choices(text, piece) if number % 2 else [piece] for number, piece in enumerate(pieces)]
    count = 1
    for choice in choices:
        count *= len(choice)
    if count > MOST_TARS:
        raise UserError(f"{shown(text)}: names {count} tars, and {MOST_TARS} are the most; look at its braces")
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(text: str, inner: str) -> Sequence[str]:
    if (match := _RANGE.fullmatch(inner)) is not None:
        first, last = int(match[1][-18:]), int(match[2][-18:])
        if last < first or last - first >= MOST_TARS:
            raise UserError(f"{shown(text)}: {{{inner}}} counts {first} .. {last}; give the smaller number first")
        width = max(map(len, match.groups())) if any(len(one) > 1 and one[0] == "0" for one in match.groups()) else 0
        return [f"{number:0{width}d}" for number in range(first, last + 1)]
    if "," not in inner:
        raise UserError(f"{shown(text)}: {{{inner}}} is neither a range {{000..147}} nor alternatives {{a,b}}")
    return inner.split(",")


def _listed(where: str) -> list[str]:
    """The URLs of a list: a line each, relative ones beside the list, with braces or not. Raises UserError."""
    if is_remote(where):
        file = io.BytesIO()
        receive(where, file, Origin(url=where, key=_KEY), "the list of tars", most=_LIST_BYTES)
        content = file.getvalue()
    else:
        try:
            content = read_plain(where, _LIST_BYTES)
        except OSError as error:
            raise UserError(f"{where}: the list of tars cannot be read: {error.strerror}") from None
    lines = [line.strip() for line in content.decode("utf-8", "replace").splitlines()]
    names = [line for line in lines if line and not line.startswith("#")]
    if wrong := next((name for name in names if not urlsplit(name).path.endswith(".tar")), None):
        raise UserError(f"{shown(where)}: {wrong[:100]!r} is not the name of a tar; give a list of URLs, one a line")
    return [_absolute(where, name) for line in names for name in expanded(line)]


def _absolute(where: str, name: str) -> str:
    if is_remote(name):
        return name
    try:
        if is_remote(where):
            return beside(where, name)
    except ValueError as error:
        raise UserError(f"{shown(where)}: {error}") from None
    raise UserError(f"{where}: {name!r} is not a URL; tars on this machine are indexed by their folder")


def _on_the_hub(url: str) -> list[RemoteTar]:
    """The tars of a data set, with their sizes and hashes, at the commit that it has now. Raises UserError."""
    import requests
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    match = _HUB.fullmatch(url)
    if match is None:
        raise UserError(f"{url}: not of the form hf://datasets/OWNER/NAME[@REVISION][/FOLDER]")
    folder = f"{match['folder'].strip('/')}/" if match["folder"] and match["folder"].strip("/") else ""
    try:
        api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=get_token())
        with waiting(url):
            info = api.dataset_info(match["repo"], revision=match["revision"], files_metadata=True, timeout=_TIMEOUT_S)
    except (HfHubHTTPError, requests.RequestException, ValueError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{url}: the Hub does not list it: {reason} (is the name right, or a login missing?)") from None
    place = f"hf://datasets/{match['repo']}"
    tars = [
        RemoteTar(
            f"{place}@{info.sha}/{file.rfilename}",
            Origin(url=f"{place}/", key=_KEY),
            told_size=file.size or 0,
            sha256=None if file.lfs is None else file.lfs.sha256,
        )
        for file in info.siblings or ()
        if file.rfilename.endswith(".tar") and file.rfilename.startswith(folder)
    ]
    return _asked_for_parts(named(tars))


def named(tars: Sequence[RemoteTar]) -> list[RemoteTar]:
    """With names: the last part of each URL, or with folders before it where that is not unique, or no more than a number:
    train-00000.tar for train/00000.tar. Raises UserError for a tar that is there twice."""
    if twice := [tar for tar, times in Counter(tar.url for tar in tars).items() if times > 1]:
        raise UserError(f"{shown(twice[0])}: is there twice; leave one of them away")
    paths = [urlsplit(tar.url).path.lstrip("/").split("/") for tar in tars]
    least = 2 if any(_NUMBER_IN_SPLIT.search(urlsplit(tar.url).path) for tar in tars) else 1
    for parts in range(least, max(map(len, paths), default=0) + 1):
        names = ["-".join(path[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return [replace(tar, name=name) for tar, name in zip(tars, names, strict=True)]
    return [replace(tar, name=f"{number:05d}.tar") for number, tar in enumerate(tars)]  # equal paths of several hosts
