"""Files from far away: http(s), hf:// (Hugging Face Hub) and s3:// (any S3-compatible store).

A file is received in pieces into a local one, and again from where it broke off if its hash is known and the server can
do that. Whatever may pass (a reset connection, an overloaded server, silence, half a file) is tried again a bounded number
of times, each time after a longer pause; what will not pass (an absent file, a refused login) ends at once in one sentence.

http(s) goes through requests: fsspec's HTTP file system ends at the first failure, keeps no part of a file, and waits without
end for a server that sends a byte now and then. hf:// goes by the Hub's plain download address, as huggingface_hub makes it,
$HF_ENDPOINT and $HF_TOKEN included; its HfFileSystem asks the Hub's API besides, which mirrors may not have. s3:// goes
through fsspec and s3fs, which read the usual environment: AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_PROFILE. A login belongs there, or in ~/.netrc: a recipe is copied into every run folder, and a token in its URLs with it.
"""

import contextlib
import hashlib
import os
import posixpath
import random
import re
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any, ClassVar, TypeVar
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from pydantic import Field
from tqdm import tqdm

from bigtrain.errors import UserError
from bigtrain.options import Options, Whole
from bigtrain.untrusted import one_line

T = TypeVar("T")
SCHEMES = ("http", "https", "hf", "s3")
_PIPE = "pipe:"
_PIPES_ARE_GONE = (
    "pipe: URLs are gone, because no file may start a program; fetch the shards first and name the copy, or use https://, "
    "hf:// or s3://"
)
FIRST_PAUSE_S = 1.0
"""Before the second attempt; it doubles from attempt to attempt."""
SAY_AFTER_S = 5.0
"""How long nothing comes before it is said what is waited for."""
_SAY_AGAIN_S = 60.0
_said_at: dict[str, float] = {}
"""When each place was last said to be waited for."""
LONGEST_PAUSE_S = 30.0
LEAST_BYTES = 2**16
"""A server that sends less than this within the time-out has stalled, even if a byte comes now and then."""
PIECE = 2**20
_S3_PIECE = 2**23
"""Each piece of an S3 object is a request of its own."""
_MAY_PASS = frozenset({408, 416, 425, 429, *range(500, 600)})
Pieces = Generator[tuple[int, bytes], None, None]
"""(offset, bytes): successive pieces of a file, each with its first byte's offset in it."""
_PLACE_ON_HUB = re.compile(r"hf://datasets/[^/@]+/[^/@]+")
_HUB = re.compile(r"hf://datasets/(?P<repo>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<file>.+)")


class RemoteOptions(Options):
    """How shards that lie elsewhere are fetched and kept on this machine. No result depends on it."""

    removed_keys: ClassVar[Mapping[str, str]] = {"allow_pipe": _PIPES_ARE_GONE}

    cache: str | None = None
    """Folder of the fetched shards, best on a disk of the node; $VARIABLES are replaced. null: `shards` in $BIGTRAIN_CACHE,
    else in the user's cache folder. Several ranks and jobs may share it."""
    cache_gib: float = Field(default=64.0, gt=0, le=2**30)
    """What the folder may hold, in GiB; the shards that were not used for longest are removed first."""
    prefetch_shards: Whole = 16
    """Shards fetched ahead of their first use, in the order of that use; as many as data.shuffle_shards hide all waiting."""
    retries: int = Field(default=6, ge=0, le=100)
    """Further attempts at a download that broke off, 1, 2, 4 ... seconds apart."""
    timeout_s: float = Field(default=30.0, ge=0.001, le=86400)
    """Seconds of silence after which an attempt counts as broken off."""
    logins: tuple[str, ...] = ()
    """Places beside the index's own to which a login may be sent ($HF_TOKEN, ~/.netrc, AWS keys), because an index may name
    shards anywhere: hf://datasets/OWNER/NAME, https://HOST or s3://BUCKET. $BIGTRAIN_LOGINS adds some, separated by commas."""


DEFAULTS = RemoteOptions()


@dataclass(frozen=True)
class Origin:
    """Where an index came from. url: None for a file here; key: the recipe's key that named it, for messages."""

    url: str | None = None
    key: str = ""
    options: RemoteOptions = DEFAULTS


HERE = Origin()


class Interrupted(Exception):
    """An attempt that broke off, for a reason that may pass; `pause_s`: what the server asks for, None if nothing; `answered`:
    whether the far side has said anything at all."""

    def __init__(self, reason: str, pause_s: float | None = None, *, answered: bool = True) -> None:
        super().__init__(reason)
        self.pause_s, self.answered = pause_s, answered


class Refused(Exception):
    """A reason that will not pass."""


class NoAnswer(UserError):
    """The far side said nothing at all, at the last attempt: what else lies there will not come either."""


def is_remote(where: str) -> bool:
    """Whether `where` is a URL rather than a path; one that begins with pipe: counts, so that `check_url` says what it is."""
    return "://" in where or where.startswith(_PIPE)


def shown(url: str) -> str:
    """The URL without a login or a token in it, for messages and logs."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment=""))


def check_url(url: str, origin: Origin) -> None:
    """Raises UserError unless the URL is of a kind that can be fetched."""
    if url.startswith(_PIPE):
        raise UserError(f"{origin.key}: {url}: {_PIPES_ARE_GONE}")
    try:
        urlsplit(url)
    except ValueError as error:
        bare = url.rpartition("@")[2].partition("?")[0]  # `shown` cannot take a login or a token out of what is no URL
        raise UserError(f"{origin.key}: {bare}: {error}; look at the address") from None
    if (scheme := url.partition("://")[0].lower()) not in SCHEMES:
        raise UserError(
            f"{origin.key}: {shown(url)}: {scheme}:// cannot be read; give a path, or one of "
            f"{', '.join(f'{known}://' for known in SCHEMES)}"
        )
    if scheme == "hf" and (not _HUB.fullmatch(url) or leads_outside(unquote(url.partition("://")[2]))):
        raise UserError(f"{origin.key}: {url}: not of the form hf://datasets/OWNER/NAME[@REVISION]/PATH")


def leads_outside(name: str) -> bool:
    """Whether a relative name leads out of the folder that it is relative to."""
    return name.startswith("/") or ".." in name.split("/") or "\0" in name


def beside(index_url: str, name: str) -> str:
    """The URL of a shard that an index at `index_url` calls `name`: relative to it, or a URL of its own.

    Raises ValueError for a name that can be neither.
    """
    if is_remote(name):
        return name
    parts = urlsplit(index_url)
    path = posixpath.normpath(posixpath.join(posixpath.dirname(unquote(parts.path)), name))
    leaves = parts.scheme == "hf" and leads_outside(name)
    if leaves or name.startswith("/") or "\0" in name or not path.strip("/."):
        raise ValueError(f"{name!r} is not the name of a shard beside its index")
    return urlunsplit(parts._replace(path=quote(path) if parts.scheme in ("http", "https") else path))


def receive(
    url: str,
    file: IO[bytes],
    origin: Origin,
    what: str,
    *,
    size: int | None = None,
    sha256: str | None = None,
    most: int | None = None,
) -> None:
    """Completes `file`, open for reading and writing, with what lies at `url`; what it holds already is the beginning.

    Without a sha256 every attempt begins anew, for the parts of two versions could not be told from one whole. size: how many
    bytes there are; most: how many there may be. Raises UserError, which names the key, the URL and the last reason, after
    data.remote.retries further attempts or at once for what will not pass; OSError if the disk does not take it. The pauses
    have some jitter, so that not all nodes come back in one moment; it is drawn from the system, and no draw of the experiment.
    """
    check_url(url, origin)
    login = may_log_in(url, origin)

    def attempt() -> None:
        if sha256 is None:
            file.truncate(0)
        _attempt(url, file, login, origin.options.timeout_s, size, most)
        _check(file, size, sha256)

    retried(attempt, url, origin, login, what)


def retried(attempt: Callable[[], T], url: str, origin: Origin, login: bool, what: str) -> T:
    """What an attempt gives; it is made again where it was Interrupted. Raises UserError, as `receive` says."""
    attempts, failure, begin = origin.options.retries + 1, UserError, time.monotonic()
    for number in range(attempts):
        try:
            return attempt()
        except Interrupted as error:
            reason, failure = str(error), UserError if error.answered else NoAnswer
            if number + 1 < attempts:
                if time.monotonic() - begin >= SAY_AFTER_S:
                    _say_waiting(url, f"attempt {number + 1} of {attempts} ended with: {reason}")
                pause = min(FIRST_PAUSE_S * 2**number, LONGEST_PAUSE_S) * random.SystemRandom().uniform(0.5, 1.0)
                time.sleep(max(pause, min(error.pause_s or 0.0, LONGEST_PAUSE_S)))
        except Refused as error:
            hint = (
                ""
                if login
                else f"; its index names {place_of(url)}, to which no login is sent unless data.remote.logins or "
                "$BIGTRAIN_LOGINS has it"
            )
            raise UserError(f"{_named(url, origin)}: {what} cannot be fetched: {error}{hint}") from None
    # A flag of a command has no options beside it that a recipe would have.
    raised = "" if origin.key.startswith("-") else " raise data.remote.retries,"
    raise failure(
        f"{_named(url, origin)}: {what} could not be fetched in {attempts} attempt{'s' if attempts > 1 else ''}; the last "
        f"ended with: {reason}; look at the server and the address,{raised} or copy the shards here and name the copy"
    )


@contextlib.contextmanager
def waiting(url: str) -> Iterator[None]:
    """Says, while what is done within lasts longer than SAY_AFTER_S, that the far side is waited for."""
    timer = threading.Timer(SAY_AFTER_S, _say_waiting, (url, "no answer yet"))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _say_waiting(url: str, why: str) -> None:
    """Says so once a minute for each place, however many of its files are waited for."""
    place, now = place_of(url), time.monotonic()
    if now - _said_at.get(place, float("-inf")) >= _SAY_AGAIN_S:
        _said_at[place] = now
        tqdm.write(one_line(f"waiting for {place}: {why}"), file=sys.stderr)


def _named(url: str, origin: Origin) -> str:
    return f"{origin.key}: {shown(url)}" if origin.key else shown(url)


def place_of(url: str) -> str:
    """What a login is for: the dataset of an hf:// URL, or scheme and host (the bucket) of another."""
    match = _PLACE_ON_HUB.match(url)
    if match is not None:
        return match[0]
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}".lower()


def may_log_in(url: str, origin: Origin) -> bool:
    """Whether a login may be sent to the URL: to the place of the index that the user named, and to those that the recipe or
    the environment names."""
    known = [*origin.options.logins, *os.environ.get("BIGTRAIN_LOGINS", "").split(","), origin.url or ""]
    return place_of(url) in [place_of(place.strip()) for place in known if place.strip()]


def _attempt(url: str, file: IO[bytes], login: bool, timeout_s: float, size: int | None, most: int | None) -> None:
    """Appends to the file until the far side has no more. Raises Interrupted, Refused, or OSError of the local disk."""
    begin = file.seek(0, os.SEEK_END)
    if begin == size:  # whoever received it died before it was checked
        return
    with contextlib.closing(_pieces(url, begin, login, timeout_s)) as pieces:
        for offset, piece in steady(pieces, timeout_s):
            if offset != file.tell():  # the far side begins anew
                file.seek(offset)
                file.truncate()
            if size is not None and offset + len(piece) > size:
                file.truncate(0)
                raise Interrupted(f"it has more than the {size} bytes that the index says")
            if most is not None and offset + len(piece) > most:
                raise Refused(f"it has more than {most} bytes, the most that are taken (is the name right?)")
            file.write(piece)


def steady(pieces: Iterable[tuple[int, bytes]], timeout_s: float) -> Iterator[tuple[int, bytes]]:
    """The same pieces. Raises Interrupted once they come too slowly, which no time-out of a socket sees."""
    since, received = time.monotonic(), 0
    for offset, piece in pieces:
        yield offset, piece
        received += len(piece)
        if time.monotonic() - since > timeout_s:
            if received < LEAST_BYTES:
                raise Interrupted(f"only {received} bytes came in {timeout_s:g} s")
            since, received = time.monotonic(), 0


def sha256_of(file: IO[bytes]) -> str:
    """Of all of an open file."""
    file.seek(0)
    return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # IO does not say that it has readinto


def _check(file: IO[bytes], size: int | None, sha256: str | None) -> None:
    file.flush()
    found = file.seek(0, os.SEEK_END)
    if size is not None and found != size:
        raise Interrupted(f"{found} bytes came where the index says {size}")
    if sha256 is not None:
        digest = sha256_of(file)
        if digest != sha256:
            file.truncate(0)
            raise Interrupted(f"its sha256 is {digest}, not {sha256} as in the index: another or a damaged file")


def _pieces(url: str, begin: int, login: bool, timeout_s: float) -> Pieces:
    """What lies at the URL from byte `begin` on, or from 0 where the far side can do no other."""
    scheme = url.partition("://")[0].lower()
    if scheme == "s3":
        return _of_s3(url, begin, login, timeout_s)
    return _of_http(*address_of(url, login), begin, login, timeout_s)


def address_of(url: str, login: bool) -> tuple[str, dict[str, str]]:
    """The http(s) address of an http(s) or hf URL, and the headers of a request for it."""
    headers = {"Accept-Encoding": "identity"}
    if url.partition("://")[0].lower() == "hf":
        url, authorization = _on_the_hub(url)
        headers |= authorization if login else {}
    return url, headers


def _on_the_hub(url: str) -> tuple[str, dict[str, str]]:
    """The plain address of a file on the Hub, and the headers of whoever is logged in."""
    from huggingface_hub import get_token, hf_hub_url  # here, because local shards need none of this

    match = _HUB.fullmatch(url)
    assert match is not None, url
    revision = unquote(match["revision"]) if match["revision"] else None
    endpoint = os.environ.get("HF_ENDPOINT")
    address = hf_hub_url(match["repo"], match["file"], repo_type="dataset", revision=revision, endpoint=endpoint)
    token = get_token()
    return address, {"Authorization": f"Bearer {token}"} if token else {}


def _of_http(url: str, headers: dict[str, str], begin: int, login: bool, timeout_s: float) -> Pieces:
    wanted = headers | ({"Range": f"bytes={begin}-"} if begin else {})
    with answer(url, wanted, login, timeout_s) as response:
        if response.status_code == 416:  # what is here is no beginning of what is there
            yield 0, b""
            raise Interrupted("HTTP 416")
        offset = first_byte(response) if response.status_code == 206 else 0
        yield from pieces_of(response, offset)


@contextlib.contextmanager
def answer(url: str, headers: Mapping[str, str], login: bool, timeout_s: float, session: Any = None) -> Iterator[Any]:
    """The response to a GET, whose status is 200, 206 or 416, with its body still to come; session: of requests, if there is
    to be one. Raises Interrupted and Refused, here and while the body is read."""
    import requests
    import urllib3

    get, answered = requests.get if session is None else session.get, False
    try:
        with waiting(url):
            response = get(url, headers=headers, auth=None if login else _no_login, stream=True, timeout=timeout_s)
        answered = True
        with response:
            if response.status_code not in (200, 206, 416):
                _raise_for_status(response.status_code, response.reason, response.headers.get("Retry-After", ""))
            yield response
    except requests.exceptions.InvalidURL as error:
        raise Refused(str(error)) from None
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise Interrupted(_reason(error), answered=answered) from None


def pieces_of(response: Any, offset: int) -> Iterator[tuple[int, bytes]]:
    """The body of a response, whose first byte is the file's byte `offset`."""
    while piece := response.raw.read1(PIECE):
        yield offset, piece
        offset += len(piece)


def _no_login(request: Any) -> Any:
    """An `auth` of requests, which without one takes a login from ~/.netrc."""
    return request


def first_byte(response: Any) -> int:
    """Where in the file a part begins. Raises Interrupted for an answer that does not say."""
    content_range = response.headers.get("Content-Range", "")
    match = re.match(r"bytes (\d+)-", content_range)
    if match is None:
        raise Interrupted(f"HTTP 206 with the range {content_range!r}")
    return int(match[1])


def _raise_for_status(status: int, words: str, retry_after: str) -> None:
    reason = f"HTTP {status} {words}".strip()
    if status in _MAY_PASS:
        raise Interrupted(reason, float(retry_after) if retry_after.isdecimal() else None)
    hint = {401: " (is a login missing?)", 403: " (is a login missing?)", 404: " (is the name right?)"}
    raise Refused(reason + hint.get(status, ""))


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: libraries wrap it many times over."""
    while (inner := error.__cause__ or error.__context__ or getattr(error, "reason", None)) is not None:
        if not isinstance(inner, BaseException):
            break
        error = inner
    return f"{type(error).__name__}: {error}"


def _of_s3(url: str, begin: int, login: bool, timeout_s: float) -> Pieces:
    """Reads with ranged requests. Each has its time-out from botocore; the attempts are counted by `receive` alone."""
    try:
        import botocore.exceptions
        import s3fs
    except ImportError:
        raise Refused("s3:// needs the package s3fs: pip install s3fs") from None
    settings = {"connect_timeout": timeout_s, "read_timeout": timeout_s, "retries": {"max_attempts": 1}}
    files = s3fs.S3FileSystem(anon=not login, config_kwargs=settings, use_listings_cache=False)
    files.retries = 1
    try:
        with waiting(url):
            opened = files.open(url, "rb", block_size=_S3_PIECE, cache_type="none")
        with opened as file:
            offset = begin if begin < file.size else 0
            while offset < file.size:
                file.seek(offset)
                piece = file.read(min(_S3_PIECE, file.size - offset))
                if not piece:
                    raise Interrupted(f"S3 gave nothing at byte {offset}")
                yield offset, piece
                offset += len(piece)
    except FileNotFoundError:
        raise Refused("S3 has no such object (HTTP 404; is the name right?)") from None
    except (PermissionError, botocore.exceptions.NoCredentialsError) as error:
        raise Refused(f"S3 refuses it: {error} (is a login missing? see AWS_ACCESS_KEY_ID, AWS_PROFILE)") from None
    except (OSError, botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError, TimeoutError) as error:
        raise Interrupted(_reason(error)) from None
